"""Retries after pauses.

The jitter comes from the system's generator: a draw from Python's own would change what augmentation draws from it,
and with that the result of a training.
"""

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Answer = TypeVar("Answer")
Failure = TypeVar("Failure", bound=Exception)
_system = random.SystemRandom()


def retry(
    call: Callable[[], Answer],
    failure: type[Failure],
    pauses: Iterator[float],
    report: Callable[[Failure, int], None] = lambda error, failures: None,
) -> Answer:
    """The result of `call`; where it raises a `failure`, call it again after the next pause.

    Args:
        pauses: in seconds; see `doubling` and `within`. The last failure is raised where no pause is left.
        report: called before each pause, with the failure and the number of failures so far.
    """
    failures = 0
    while True:
        try:
            return call()
        except failure as error:
            pause = next(pauses, None)
            if pause is None:
                raise
            failures += 1
            report(error, failures)
        time.sleep(pause)


def doubling(first: float, jitter: tuple[float, float], longest: float = math.inf) -> Iterator[float]:
    """Pauses in seconds, each twice the one before up to `longest`, times a factor drawn from the range `jitter`."""
    pause = first
    while True:
        yield pause * _system.uniform(*jitter)
        pause = min(2 * pause, longest)


def within(seconds: float, pauses: Iterable[float]) -> Iterator[float]:
    """The pauses until so many seconds after this call; the last is cut to end there."""
    end = time.monotonic() + seconds

    def cut() -> Iterator[float]:
        for pause in pauses:
            left = end - time.monotonic()
            if left <= 0:
                return
            yield min(pause, left)

    return cut()
