"""Answers of servers, read with limits of size and time.

Libraries limit the time between two bytes only, and none the size: an answer may have no end, one byte a second, or
few bytes that unpack to gigabytes.
"""

import time
from collections.abc import Callable, Iterator

from autoformer.bounds import BOUNDS, KB
from autoformer.errors import AutoFormerError, UnavailableError, quantity

PIECE_BYTES = 64 * KB


def close_unread() -> None:
    """Let urllib3 close a connection whose answer it does not need, instead of reading that answer to its end.

    It does so before a retry and before it follows a redirect; the only limit is the time between two bytes.
    """
    import urllib3

    def close(response: urllib3.HTTPResponse) -> None:
        response.close()
        response.release_conn()

    urllib3.HTTPResponse.drain_conn = close  # type: ignore[assignment, method-assign]


class EndlessAnswerError(AutoFormerError):
    """An answer is larger than any honest one."""


class SlowAnswerError(UnavailableError):
    """An answer began, and does not end in time."""


def pieces(read: Callable[[int], bytes], server: str, most: int = BOUNDS.answer_bytes) -> Iterator[bytes]:
    """The body of an answer, as it arrives.

    Args:
        read: `read1` of the response: at least one byte and at most so many, unpacked; none at the end.
        server: for the messages, without a password.

    Raises:
        EndlessAnswerError: the body has more than `most` bytes.
        SlowAnswerError: it is slower than `BOUNDS.answer_rate`, beyond the first `BOUNDS.answer_seconds`.
    """
    start, size = time.monotonic(), 0
    while piece := read(PIECE_BYTES):
        size += len(piece)
        if size > most:
            raise EndlessAnswerError(f"{server}: an answer of more than {most} bytes; see which server this is")
        if time.monotonic() - start > BOUNDS.answer_seconds + size / BOUNDS.answer_rate:
            raise SlowAnswerError(
                f"{server}: an answer that does not end, {quantity(size, 'byte')} so far; see which server this is"
            )
        yield piece


def whole(read: Callable[[int], bytes], server: str, most: int = BOUNDS.answer_bytes) -> bytes:
    """The whole body of an answer. Raises like `pieces`."""
    return b"".join(pieces(read, server, most))
