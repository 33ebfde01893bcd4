"""Call again what failed, after pauses.

The jitter of pauses comes from the system's generator. Augmentation draws from Python's own, so a pause that drew from
it would change a training's result.
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
    ask: Callable[[], Answer],
    failure: type[Failure],
    pauses: Iterator[float],
    tell: Callable[[Failure, int], None] = lambda error, failures: None,
) -> Answer:
    """Return the answer of `ask`; where it raises a `failure`, call it again after the next of the pauses.

    Args:
        pauses: in seconds; see `doubling` and `within`.
        tell: is called before a pause, with the failure and the number of failures so far.

    Raises:
        Failure: the last one, where no pause is left.
    """
    failures = 0
    while True:
        try:
            return ask()
        except failure as error:
            pause = next(pauses, None)
            if pause is None:
                raise
            failures += 1
            tell(error, failures)
        time.sleep(pause)


def doubling(first: float, jitter: tuple[float, float], longest: float = math.inf) -> Iterator[float]:
    """Pauses in seconds, each twice the one before up to `longest`, times a factor drawn from the range `jitter`."""
    pause = first
    while True:
        yield pause * _system.uniform(*jitter)
        pause = min(2 * pause, longest)


def within(seconds: float, pauses: Iterable[float]) -> Iterator[float]:
    """The pauses that begin before so many seconds from this call are over; none lasts beyond that."""
    end = time.monotonic() + seconds

    def fitting() -> Iterator[float]:
        for pause in pauses:
            left = end - time.monotonic()
            if left <= 0:
                return
            yield min(pause, left)

    return fitting()
