"""A full disk and a place that cannot be written to: one line, exit code 2, and what was there is as it was.

The disks are real ones, small and in memory; mounting them takes a privileged user.
"""

import errno
import resource
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from interrupted import Sandbox, sandbox
from processes import at_step, ended, signal_self, start
from run_steps import config_of, contents, run

from autoformer import files
from autoformer.errors import AutoFormerError
from autoformer.files import replacing, write_text

__all__ = ["sandbox"]
STEP = "train_supernet"
ROOM = 3 * 4096  # enough for a lock, too little for a checkpoint or for weights


class Disk:
    def __init__(self, root: Path) -> None:
        self.root = root

    def fill(self, left: int = 0) -> None:
        with (self.root / "ballast").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"\0" * 4096)
                    file.flush()
            except OSError as error:
                assert error.errno == errno.ENOSPC
            file.truncate(file.tell() - left)

    def empty(self) -> None:
        (self.root / "ballast").unlink()

    def remount(self, option: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", str(self.root)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """4 MiB, which hold a few checkpoints of the tiny supernet."""
    root = tmp_path / "disk"
    root.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(root)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"A FULL DISK IS NOT TESTED HERE: {mounted.stderr.strip()}")
    try:
        yield Disk(root)
    finally:
        subprocess.run(["umount", "--lazy", str(root)], check=True)


@pytest.fixture
def begun(sandbox: Sandbox, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A training that was stopped at step 24, with its work on the small disk."""
    monkeypatch.setenv("AUTOFORMER_WORK", str(disk.root / "work"))
    given = sandbox.given(STEP, tmp_path.name)
    term = partial(signal_self, signal.SIGTERM)
    assert ended(start(STEP, given, tmp_path / "log", (at_step, 24, term))) == 143
    return given


def checkpoints(disk: Disk) -> dict[str, bytes]:
    return {name: content for name, content in contents(disk.root).items() if name != "ballast"}


def one_line(capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    message = capsys.readouterr().err
    assert message.startswith(f"{STEP}: ") and message.count("\n") == 1, message
    for part in parts:
        assert part in message


def test_a_full_disk_leaves_the_former_checkpoints(
    sandbox: Sandbox, disk: Disk, begun: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = checkpoints(disk)
    disk.fill()
    assert run(STEP, begun) == 2
    one_line(capsys, f"{disk.root}/work/{STEP}/", ": no space left on device; free some space there")
    assert checkpoints(disk) == before
    assert {name.rpartition("/")[2] for name in before} >= {"checkpoint.pt", "checkpoint-interrupted.pt"}
    disk.fill(left=ROOM)
    assert run(STEP, begun) == 2
    one_line(capsys, "/checkpoint.pt: no space left on device; free some space there")
    assert checkpoints(disk) == before
    disk.empty()
    assert run(STEP, begun) == 0
    assert sandbox.record(begun)["resumed_from_step"] == 24
    assert contents(Path(begun["--out"])) == sandbox.undisturbed(STEP)


def test_a_full_disk_leaves_the_former_output(
    sandbox: Sandbox, disk: Disk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = sandbox.given(STEP, "full") | {"--out": str(disk.root / "supernet")}
    assert run(STEP, given) == 0
    before = contents(disk.root / "supernet")
    disk.fill(left=ROOM)
    again = sandbox.given(STEP, "full", config_of(STEP, seed=1)) | {"--out": str(disk.root / "supernet")}
    capsys.readouterr()
    assert run(STEP, again) == 2
    one_line(capsys, f"{disk.root}/supernet", ": no space left on device; free some space there")
    assert contents(disk.root / "supernet") == before
    disk.empty()
    assert run(STEP, again) == 0  # from the checkpoint of its last step
    assert sandbox.record(again)["resumed_from_step"] == 60
    assert contents(disk.root / "supernet").keys() == before.keys()
    assert contents(disk.root / "supernet") != before
    assert [file.name for file in disk.root.iterdir()] == ["supernet"]


@pytest.mark.parametrize("name", ["--out", "--record", "work"])
def test_a_read_only_place_is_found_before_the_work_begins(
    sandbox: Sandbox, disk: Disk, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = sandbox.given(STEP, f"read-only-{name}")
    if name == "work":
        monkeypatch.setenv("AUTOFORMER_WORK", str(disk.root / "work"))
    else:
        given |= {name: str(disk.root / "folder" / "result")}
    disk.remount("ro")
    try:
        assert run(STEP, given) == 2
    finally:
        disk.remount("rw")
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "images" not in captured.out
    assert f"{disk.root}" in captured.err and ": read-only file system; choose a place" in captured.err
    assert not list(disk.root.iterdir()) and not Path(given["--out"]).exists()


def test_a_limit_on_file_sizes_is_a_full_disk_too(tmp_path: Path) -> None:
    """For who may not mount: the same way through `replacing`, and the file that was there stays."""
    file = tmp_path / "table.csv"
    write_text(file, "what was there")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(AutoFormerError, match=r"table.csv: file too large; free some space"):
            write_text(file, "x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("table.csv", "what was there")]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_takes_the_place_of_another_or_leaves_it(
    exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the system's exchange of names, and without it; and where the second rename of that fails."""
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    for text in ("first", "second"):
        with replacing(tmp_path / "folder") as folder:
            folder.mkdir()
            (folder / "file").write_text(text)
        assert contents(tmp_path) == {"folder/file": text.encode()}
    replace = Path.replace

    def refused(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError(errno.EIO, "Input/output error", str(self))
        return replace(self, target)

    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(AutoFormerError, match="input/output error; see to the disk"):
        with replacing(tmp_path / "folder") as folder:
            folder.mkdir()
    assert contents(tmp_path) == {"folder/file": b"second"}
