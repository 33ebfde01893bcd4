"""Answers of servers, read with limits of size and time.

Libraries limit the time between two bytes only, and none the size: an answer may have no end, one byte a second, or
few bytes that unpack to gigabytes. Importing this module limits the time of the status line and headers of every
`http.client.HTTPResponse`, so of all libraries here; bodies are read by `pieces`. Neither holds for a proxy's answer to
CONNECT, or for botocore's wait for `100 Continue`.
"""

import http.client
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

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


_BEGIN = http.client.HTTPResponse.begin


def _begin_in_time(response: http.client.HTTPResponse) -> None:
    """Read status line and headers.

    Raises:
        TimeoutError: they take longer than `BOUNDS.answer_seconds` from the first byte, also of a `100 Continue`.
    """
    raw, since = getattr(response.fp, "raw", None), 0.0
    if not isinstance(raw, socket.SocketIO):
        return _BEGIN(response)

    def read_in_time(buffer: Any) -> int | None:
        nonlocal since
        count = socket.SocketIO.readinto(raw, buffer)
        since = since or time.monotonic()
        if time.monotonic() - since > BOUNDS.answer_seconds:
            raise TimeoutError("the headers of an answer do not end; see which server this is")
        return count

    raw.readinto = read_in_time  # type: ignore[assignment, method-assign]
    try:
        _BEGIN(response)
    finally:
        vars(raw).pop("readinto", None)


http.client.HTTPResponse.begin = _begin_in_time  # type: ignore[assignment, method-assign]


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
