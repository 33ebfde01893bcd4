"""A function of files on all cores, in order. Pillow, zlib and hashlib release the GIL."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from autoformer.cores import cores

Item = TypeVar("Item")
Result = TypeVar("Result")

_AT_A_TIME = 4  # items per call: passing one to a thread costs a tenth of a millisecond
_AHEAD = 2  # queued calls of each thread; with few, results stay in the processor's caches


def in_order(function: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item]) -> Iterator[Result]:
    """Call the function with a few items at a time; yield its results. Only a few are in memory at once."""
    threads = min(16, cores())
    waiting: deque[Future[list[Result]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(items), _AT_A_TIME):
            waiting.append(pool.submit(function, items[start : start + _AT_A_TIME]))
            if len(waiting) > _AHEAD * threads:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
