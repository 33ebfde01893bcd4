"""Places to write to that are links, devices, inputs, folders that vanish, or that two processes write at once."""

import argparse
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from run_steps import arguments, argv, config_of, contents, run
from tiny import TinyData

from autoformer import files
from autoformer.errors import AutoFormerError
from autoformer.files import check_writable, replacing, write_text
from commands import evaluate_official, fetch, latency
from components.prepare_data.pack import pack
from pipeline.cluster import compile as cluster_compile
from runtime.common.config import load_config
from runtime.common.console import check_apart, error_line
from runtime.common.locks import hold_lock
from runtime.steps.step_context import open_step

LINKS: dict[str, Callable[[Path], None]] = {
    "to a file": lambda out: out.symlink_to("other/file"),
    "to a folder": lambda out: out.symlink_to("other"),
    "to nothing": lambda out: out.symlink_to("nowhere"),
    "to itself": lambda out: out.symlink_to(out.name),
    "hard": lambda out: out.hardlink_to(out.parent / "other" / "file"),
}


def write(out: Path, kind: str, text: str = "new") -> None:
    with replacing(out) as temporary:
        if kind == "folder":
            temporary.mkdir()
        (temporary / "file" if kind == "folder" else temporary).write_text(text)


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("link", [*LINKS])
def test_a_link_at_an_output_is_replaced_and_what_it_leads_to_stays(
    link: str, kind: str, exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("kept")
    LINKS[link](tmp_path / "out")
    if (link, kind) == ("hard", "folder"):
        with pytest.raises(AutoFormerError, match="out: a file, where a folder is to be written; name another place"):
            write(tmp_path / "out", kind)
        assert contents(tmp_path) == {"other/file": b"kept", "out": b"kept"}
        return
    write(tmp_path / "out", kind)
    assert contents(tmp_path) == {"other/file": b"kept", "out/file" if kind == "folder" else "out": b"new"}
    assert {path.name for path in tmp_path.iterdir()} == {"other", "out"} and not (tmp_path / "out").is_symlink()


@pytest.mark.parametrize("target", ["/dev/full", "/proc/self/fd/1", "/proc/self/fd/99"])
def test_a_link_to_a_device_or_a_stream_is_never_replaced(target: str, tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(target)
    for attempt in (lambda: write_text(tmp_path / "out", "x"), lambda: check_writable(tmp_path / "out")):
        with pytest.raises(AutoFormerError, match="out: a pipe or a device; name a file to write"):
            attempt()
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and str((tmp_path / "out").readlink()) == target


@pytest.mark.parametrize("out_is_file", [False, True])
def test_an_output_of_another_kind_is_refused_before_the_work(out_is_file: bool, tmp_path: Path) -> None:
    """A file where a step writes a folder, or the reverse."""
    out = tmp_path / "out"
    if out_is_file:
        out.mkdir()
    else:
        out.write_text("kept")
    given = argparse.Namespace(out=out, record=tmp_path / "record.json")
    with pytest.raises(AutoFormerError, match=r"out: (a file, where a folder|is a directory; choose)"):
        with open_step("evaluate_subnet", given, load_config("smoke"), out_is_file=out_is_file):
            pytest.fail("the work began")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


VIRTUAL = ["/proc/x", "/proc/x/y", "/sys/x", "/dev/full", "/dev/full/x", "/dev/fd/1"]


@pytest.mark.parametrize("place", VIRTUAL)
def test_a_virtual_file_system_refuses_an_output_in_one_line(
    place: str, tmp_path: Path, tiny_data: TinyData, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = arguments("train_supernet", tiny_data, tmp_path, tmp_path / "out", config_of("train_supernet"))
    runs: list[Callable[[], int]] = [
        lambda: cluster_compile.main(["--out", place]),
        lambda: latency.main(["--space", "fashion-mnist", "--out", place]),
        lambda: run("train_supernet", given | {"--out": place}),
        lambda: run("train_supernet", given | {"--record": place}),
    ]
    for attempt in runs:
        assert attempt() == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and place.rpartition("/")[0] in lines[0], lines
    monkeypatch.setenv("AUTOFORMER_WORK", place)
    assert run("train_supernet", given) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_link_in_the_place_of_a_lock_is_refused_and_its_target_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / ".out.lock").symlink_to("file")
    with pytest.raises(OSError, match="Too many levels of symbolic links") as raised:
        with hold_lock(tmp_path / "out", "output"):
            pass
    assert "a link in the way; remove it" in error_line(raised.value)
    assert (tmp_path / "file").read_text() == "kept"


def test_a_folder_that_closes_to_its_user_refuses_an_output_in_one_line(tmp_path: Path) -> None:
    """As another user than root, who may write anywhere."""
    (tmp_path / "closed").mkdir(mode=0o555)

    def attempt(out: Path) -> None:
        if os.getuid() == 0:
            for parent in (tmp_path, *tmp_path.parents[:3]):
                if parent.name.startswith(("test_", "pytest-", "popen-")):  # never the system's own folder
                    parent.chmod(0o755)
            os.setuid(65534)
        for refused in (lambda: write_text(out, "x"), lambda: check_writable(out)):
            with pytest.raises(AutoFormerError, match="closed/out: permission denied; choose a place"):
                refused()

    assert in_child(attempt, tmp_path / "closed" / "out") == 0


def in_child(work: Callable[[Path], None], out: Path) -> int | None:
    process = multiprocessing.get_context("fork").Process(target=work, args=(out,))
    process.start()
    process.join(30)
    return process.exitcode


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_parent_folder_that_is_removed_in_mid_write_is_one_line(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "parent" / "out"
    with pytest.raises(AutoFormerError, match="parent/out: no such file or directory; its folder was removed"):
        with replacing(out) as temporary:
            if kind == "folder":
                temporary.mkdir()
            shutil.rmtree(out.parent)
            (temporary / "file" if kind == "folder" else temporary).write_text("new")
    with pytest.raises(FileNotFoundError):  # a missing input is no fault of the output
        with replacing(out):
            (out.parent / "input").read_text()


def writes_often(out: str, kind: str, text: str) -> None:
    for _ in range(200):
        write(Path(out), kind, text)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_of_two_writers_of_one_output_one_stays_whole(kind: str, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    out = tmp_path / "out"
    writers = [fork.Process(target=writes_often, args=(str(out), kind, text * 5000)) for text in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert set(contents(tmp_path).values()) <= {b"a" * 5000, b"b" * 5000}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_another_process_makes_first_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look and the rename: a plain rename refuses to replace a folder that holds files."""
    exchange, calls = files._exchange, list[Path]()

    def late(one: Path, other: Path) -> bool:
        calls.append(other)
        if len(calls) > 1:
            return exchange(one, other)
        worked = exchange(one, other)
        other.mkdir()
        (other / "file").write_text("another's")
        return worked

    monkeypatch.setattr(files, "_exchange", late)
    write(tmp_path / "out", "folder")
    assert contents(tmp_path) == {"out/file": b"new"} and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_no_output_may_be_in_an_input_or_around_it(tmp_path: Path) -> None:
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "link").symlink_to("data")
    data = tmp_path / "data"
    for out in (data, data / "scores", tmp_path, tmp_path / "link" / "x", data / "train" / ".." / ".." / "data"):
        with pytest.raises(AutoFormerError, match=f"{out}: writing it would change .*; name another place"):
            check_apart([out], None, "s3://bucket/data", data)
    for out in (tmp_path / "data-2", tmp_path / "link", tmp_path / "a" / "data"):  # the link alone is replaced
        check_apart([out], data)


def test_an_output_of_a_step_or_command_that_is_its_input_is_refused_before_the_work(
    tmp_path: Path, tiny_data: TinyData, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments("train_supernet", tiny_data, tmp_path, tmp_path / "out", config_of("train_supernet"))
    space = tmp_path / "space.yaml"
    space.write_text(Path("configs/spaces/fashion-mnist.yaml").read_text())
    (tmp_path / "supernet.pth").write_bytes(b"weights")
    official = ["--checkpoint", str(tmp_path / "supernet.pth"), "--subnet", "autoformer-tiny", "--data", "data"]
    (tmp_path / "file").write_text("x")
    before = contents(tmp_path)
    wrong = [{"--out": given["--data"]}, {"--out": f"{given['--data']}/out"}, {"--record": f"{given['--out']}/record"},
             {"--record": given["--card"]}, {"--out": str(tmp_path / "file")}]  # fmt: skip
    runs: list[Callable[[], int]] = [
        *(lambda change=change: run("train_supernet", given | change) for change in wrong),  # type: ignore[misc]
        lambda: latency.main(["--space", str(space), "--out", str(space)]),
        lambda: cluster_compile.main(["--out", str(tmp_path / "a.yaml"), "--manifests", str(tmp_path / "a.yaml")]),
        lambda: evaluate_official.main([*official, "--out", str(tmp_path / "supernet.pth")]),
    ]
    for attempt in runs:
        assert attempt() == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and ("would change" in lines[0] or "a file, where a folder" in lines[0]), lines
    assert contents(tmp_path) == before and argv(given)


def test_images_are_never_packed_into_their_own_folder_or_through_a_link(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (name == "cat" and "red") or "blue").save(tmp_path / "photos" / name / "1.png")

    def packed_into(packs: Path) -> Path:
        return pack(tmp_path / "photos", packs, 8, 3, 1.0, lambda *_: None)

    for inside in (tmp_path / "photos", tmp_path / "photos" / "cat"):
        with pytest.raises(AutoFormerError, match=r"writing it would change .*photos, which is needed"):
            packed_into(inside)
    name = packed_into(tmp_path / "packs").name
    for link in (name, f".{name}.packing"):
        (tmp_path / link / "packs").mkdir(parents=True)
        (tmp_path / link / "packs" / link).symlink_to(tmp_path / "nowhere")
        with pytest.raises(AutoFormerError, match=r"remove that folder first|a link, where the pack is made"):
            packed_into(tmp_path / link / "packs")
    assert not (tmp_path / "nowhere").exists() and len(list((tmp_path / "photos").rglob("*"))) == 4


def test_a_call_that_may_be_long_is_announced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetch._call(["true", "update"], tmp_path)
    assert capsys.readouterr().out == "fetch: true update, up to 300 s\n"
