"""File locks between processes. The kernel releases them when the holder ends, even by SIGKILL."""

import contextlib
import fcntl
import math
import time
from collections.abc import Iterator
from typing import IO, Any

_POLL_SECONDS = 0.05


def lock(file: IO[Any], shared: bool = False, wait_seconds: float = math.inf) -> bool:
    """Lock an open file until it is closed; return whether it worked.

    A forked child shares the lock, which lasts until both have closed the file.

    Args:
        shared: a shared lock; exclusive by default.
        wait_seconds: maximum wait for the holder; 0 to try once.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    if wait_seconds == math.inf:
        fcntl.flock(file, kind)
        return True
    give_up = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= give_up:
                return False
        time.sleep(_POLL_SECONDS)


@contextlib.contextmanager
def process_lock(file: IO[Any]) -> Iterator[None]:
    """Hold an exclusive lock among a parent and its forked children, which share the open file.

    Unlike `lock`, it belongs to the process. It does not exclude threads of one process.
    """
    fcntl.lockf(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.lockf(file, fcntl.LOCK_UN)
