"""What SIGKILL leaves is tidied by the next writer, and counts in no hash."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from autoformer.errors import AutoFormerError
from autoformer.files import files_below, hash_path, is_leftover, replacing, write_text
from runtime.storage.data import hash_data


def killed_writer(path: str, kind: str) -> None:
    with replacing(Path(path)) as temporary:
        if kind == "folder":
            temporary.mkdir()
            (temporary / "half").write_text("x")
        else:
            temporary.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def killed_writer_in_a_writer(path: str, kind: str) -> None:
    """As a step that saves a model as its whole output."""
    with replacing(Path(path)) as temporary:
        killed_writer(str(temporary), kind)


def kill_a_writer(path: Path, kind: str, writer: Callable[[str, str], None] = killed_writer) -> None:
    process = multiprocessing.get_context("fork").Process(target=writer, args=(str(path), kind))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL


def test_a_pipe_or_a_device_is_never_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for name in ("pipe", "link"):
        with pytest.raises(AutoFormerError, match=f"{name}: a pipe or a device; name a file to write"):
            write_text(tmp_path / name, "x")
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()
    assert len(list(tmp_path.iterdir())) == 2


WRITERS = [killed_writer, killed_writer_in_a_writer]


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_writer_leaves_is_never_counted_and_is_removed_by_the_next(
    kind: str, writer: Callable[[str, str], None], tmp_path: Path
) -> None:
    write_text(tmp_path / "a", "1")
    before, data = hash_path(tmp_path), hash_data(tmp_path)
    kill_a_writer(tmp_path / "[x]*", kind, writer)
    assert [is_leftover(path.name) for path in tmp_path.iterdir()].count(True) == 1
    assert (hash_path(tmp_path), hash_data(tmp_path)) == (before, data)
    write_text(tmp_path / "[x]*", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["[x]*", "a"]


def test_a_writer_that_is_at_work_is_left_alone(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as first:
        first.write_text("1")
        write_text(tmp_path / "a", "2")
        assert first.exists()
    assert (tmp_path / "a").read_text() == "1"


@pytest.mark.parametrize("name", ["x.tmp", ".x.jpg", ".tmp.png", ".tmp"])
def test_files_of_a_user_always_count(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("x")
    assert [file.name for file in files_below(tmp_path)] == [name]
