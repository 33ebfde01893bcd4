"""Lock a path for one process at a time: a lock file beside the path names the holder."""

import contextlib
import errno
import math
import os
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

from autoformer.errors import AutoFormerError
from autoformer.files import UnwritableError, make_folder
from autoformer.locks import lock

_held: set[IO[bytes]] = set()


@contextlib.contextmanager
def hold_lock(path: Path, what: str | None) -> Iterator[None]:
    """Hold the lock of `path`, which need not exist. The lock file is beside it, and deleted at the end.

    It works between processes of one machine, and of several if the file system shares locks, as NFS 4 does.

    Args:
        what: kind of the path, for the error message; None to wait while another process holds the lock.

    Raises:
        AutoFormerError: another process holds the lock; the message names that process.
        OSError: the folder cannot be written to.
    """
    make_folder(path.parent)
    name = path.parent / f".{path.name}.lock"
    file = _locked(name, path, what)
    _held.add(file)
    try:
        yield
    finally:
        _held.discard(file)
        name.unlink(missing_ok=True)  # before the release, so that no process waits for a deleted file
        file.close()


def wait_for_lock(path: Path) -> AbstractContextManager[None]:
    """`hold_lock`, but wait while another process holds the lock. For downloads that several processes use."""
    return hold_lock(path, None)


def _locked(name: Path, path: Path, what: str | None) -> IO[bytes]:
    """The locked file; waits for the lock if `what` is None."""
    while True:
        try:
            file = open(name, "a+b", buffering=0, opener=_open)  # noqa: SIM115 as long as the lock
        except FileNotFoundError:
            raise UnwritableError(str(path), errno.ENOENT) from None
        if not lock(file, wait_seconds=math.inf if what is None else 0):
            file.seek(0)
            holder = file.read().decode() or "its process is not known"
            file.close()
            raise AutoFormerError(f"{path}: another run is at work in this {what} ({holder}); wait for it, or end it")
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(name.stat(), os.fstat(file.fileno())):
                break
        file.close()  # the former holder has just removed it
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
    except OSError as error:  # lacks the file's name
        name.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None
    return file


def _open(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NOFOLLOW, 0o666)  # a link would let the lock empty another file


def _close_in_child() -> None:
    """Close inherited locks: a forked child, such as a loader's worker, must not outlive its parent's lock."""
    for file in _held:
        os.close(file.fileno())
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
