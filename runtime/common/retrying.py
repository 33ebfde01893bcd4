"""Retries with growing pauses.

The jitter comes from the system's generator: draws from Python's generator would change the augmentation, and so the
result of a training.
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
    """The result of `call`, which is repeated after the next pause if it raises a `failure`.

    Args:
        pauses: seconds; see `doubling` and `within`. When they are used up, the last failure is raised.
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
    """Pauses in seconds that double up to `longest`, each times a random factor from the range `jitter`."""
    pause = first
    while True:
        yield pause * _system.uniform(*jitter)
        pause = min(2 * pause, longest)


def within(seconds: float, pauses: Iterable[float]) -> Iterator[float]:
    """The pauses that end within `seconds` of this call; the last one is shortened."""
    end = time.monotonic() + seconds

    def cut() -> Iterator[float]:
        for pause in pauses:
            left = end - time.monotonic()
            if left <= 0:
                return
            yield min(pause, left)

    return cut()
