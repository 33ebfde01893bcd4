"""One process at a time at a path: a lock file beside it names its holder, for the one that comes second."""

import contextlib
import math
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from autoformer.errors import AutoFormerError
from autoformer.locks import lock

_held: set[IO[bytes]] = set()


@contextlib.contextmanager
def hold_lock(path: Path, what: str) -> Iterator[None]:
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
def wait_for_lock(path: Path) -> Iterator[None]:
    """The same, but wait for another process that holds it: for what one brings and all of a machine then use."""
    with _holding(path, None):
        yield


@contextlib.contextmanager
def _holding(path: Path, what: str | None) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.parent / f".{path.name}.lock"
    file = _locked(name, path, what)
    _held.add(file)
    try:
        yield
    finally:
        _held.discard(file)
        name.unlink(missing_ok=True)  # before it is released, so that nobody waits for a file without a name
        file.close()


def _locked(name: Path, path: Path, what: str | None) -> IO[bytes]:
    """The lock file, held; `what` is None for one to wait for."""
    while True:
        file = name.open("a+b", buffering=0)
        if not lock(file, wait_seconds=math.inf if what is None else 0):
            file.seek(0)
            holder = file.read().decode() or "its process is not known"
            file.close()
            raise AutoFormerError(f"{path}: another run is at work in this {what} ({holder}); wait for it, or end it")
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(name.stat(), os.fstat(file.fileno())):
                break
        file.close()  # its holder has just removed it
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
    except OSError as error:  # which does not name the file
        name.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None
    return file


def _close_in_child() -> None:
    """A forked child, as a loader's worker is, must not keep a lock that its parent held when it was killed."""
    for file in _held:
        os.close(file.fileno())
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
