"""One process at a time in a folder: locks that the kernel releases when their holder ends, however it ends."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from autoformer.errors import AutoFormerError

_held: set[IO[bytes]] = set()


@contextlib.contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Hold the lock of `path`, a file or folder that need not exist; the lock is a file beside it, gone at the end.

    Holds among the processes of one machine, and of several where the file system shares its locks (NFS 4 does).

    Args:
        what: what the path is, for the message to the second one.

    Raises:
        AutoFormerError: another process holds it; the line names that process.
        OSError: the place cannot be written to.
    """
    with _holding(path, what):
        yield


@contextlib.contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """The same, but wait for another process that holds it: for what one brings and all of a machine then use."""
    with _holding(path, None):
        yield


@contextlib.contextmanager
def _holding(path: Path, what: str | None) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.parent / f".{path.name}.lock"
    lock = _locked(name, path, what)
    _held.add(lock)
    try:
        yield
    finally:
        _held.discard(lock)
        name.unlink(missing_ok=True)  # before it is released, so that nobody waits for a file without a name
        lock.close()


def _locked(name: Path, path: Path, what: str | None) -> IO[bytes]:
    """The lock file, held; `what` is None for one to wait for."""
    while True:
        lock = name.open("a+b", buffering=0)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if what is None else fcntl.LOCK_NB))
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().decode() or "its process is not known"
            lock.close()
            raise AutoFormerError(f"{path}: another run is at work in this {what} ({holder}); "
                                  "wait for it, or end it") from None  # fmt: skip
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(name.stat(), os.fstat(lock.fileno())):
                break
        lock.close()  # its holder has just removed it
    try:
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
    except OSError as error:  # which does not name the file
        name.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None
    return lock


def _close_in_child() -> None:
    """A forked child, as a loader's worker is, must not keep a lock that its parent held when it was killed."""
    for lock in _held:
        os.close(lock.fileno())
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
