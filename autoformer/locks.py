"""Locks of open files between processes. The kernel releases them when their holder ends, however it ends."""

import contextlib
import fcntl
import math
import time
from collections.abc import Iterator
from typing import IO, Any

_POLL_SECONDS = 0.05


def lock(file: IO[Any], shared: bool = False, wait_seconds: float = math.inf) -> bool:
    """Lock an open file until it is closed; return whether that worked.

    The lock belongs to the open file: a forked child holds it too, until both have closed it.

    Args:
        shared: beside others who lock it so; alone by default.
        wait_seconds: for others to release it; 0 to try once.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    if wait_seconds == math.inf:
        fcntl.flock(file, kind)
        return True
    give_up = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= give_up:
                return False
        else:
            return True
        time.sleep(_POLL_SECONDS)


@contextlib.contextmanager
def among_forks(file: IO[Any]) -> Iterator[None]:
    """Hold the lock of a file that was opened before this process was forked: alone among parent and children.

    It belongs to the process, unlike that of `lock`, and does not keep the threads of one process apart.
    """
    fcntl.lockf(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.lockf(file, fcntl.LOCK_UN)
