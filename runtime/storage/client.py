"""S3 addresses, the boto3 client configured by the AWS environment, and requests."""

import os
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial, partialmethod
from multiprocessing.pool import AsyncResult, ThreadPool
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import urlsplit

from autoformer.bounds import BOUNDS
from autoformer.errors import AutoFormerError, quantity
from autoformer.reading import in_short
from runtime.common.answers import EndlessAnswerError, SlowAnswerError, whole
from runtime.common.console import print_line
from runtime.common.redaction import hide
from runtime.storage.errors import ChangedError, StorageError, TransferError, storage_errors, with_retries

Item = TypeVar("Item")
Result = TypeVar("Result")
SCHEME = "s3://"
ATTEMPTS = 6  # per request, with doubling pauses and jitter
MOST_ATTEMPTS = 100
THREADS = 16  # concurrent requests of a process
_NOTICE_SECONDS = 15.0  # between two lines about a long listing
PREFETCH = 8  # concurrent parts or ranges of one object, each in memory


class S3Uri(NamedTuple):
    """`s3://bucket/key`; a folder's key has no trailing slash."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, uri: "S3Uri | str") -> "S3Uri":
        """Parse an address. Raises `AutoFormerError` if it has no bucket."""
        if isinstance(uri, S3Uri):
            return uri
        bucket, _, key = uri.removeprefix(SCHEME).partition("/")
        if not is_uri(uri) or not bucket:
            raise AutoFormerError(f"{uri}: expected s3://bucket/folder")
        return cls(bucket, key.strip("/"))

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}".rstrip("/")

    def __truediv__(self, name: str) -> Self:
        return type(self)(self.bucket, f"{self.key}/{name}".strip("/"))


def is_uri(text: object) -> bool:
    """Whether a text is an S3 address, not a path."""
    return str(text).startswith(SCHEME)


def connect() -> Any:
    """The boto3 client of this process and endpoint. Threads may share it, processes may not.

    Credentials, region and endpoint come from the AWS environment (`AWS_ACCESS_KEY_ID`, `AWS_PROFILE`,
    `AWS_ENDPOINT_URL_S3`, web identities, …). boto3 addresses a custom endpoint by path, `endpoint/bucket/key`, unless
    the AWS setting `addressing_style` is `virtual`.

    Raises:
        AutoFormerError: the endpoint is not a URL.
    """
    return _connect(os.getpid(), os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"))


@cache
def _connect(process: int, endpoint: str | None) -> Any:
    import boto3
    from botocore.config import Config
    from botocore.retries import standard

    retries: Any = {"mode": "standard", "total_max_attempts": _attempts()}
    config = Config(connect_timeout=10, read_timeout=60, retries=retries, max_pool_connections=32)  # seconds
    # The jitter comes from the system's generator. boto3 would use Python's, as timm's augmentations do, so a retry of
    # a background upload would change the next image.
    backoff = standard.ExponentialBackoff
    backoff.__init__ = partialmethod(backoff.__init__, random=random.SystemRandom().random)
    try:
        client = boto3.session.Session().client("s3", config=config)
    except ValueError as error:
        raise AutoFormerError(_odd_setting(str(error), endpoint)) from None
    client.meta.events.register("before-send.s3", partial(_send, client._endpoint.http_session.send))
    return client


def _attempts() -> int:
    text = os.environ.get("AWS_MAX_ATTEMPTS") or str(ATTEMPTS)
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MOST_ATTEMPTS):
        raise AutoFormerError(f"AWS_MAX_ATTEMPTS={text[:40]}: expected a number of tries from 1 to {MOST_ATTEMPTS}")
    return int(text)


def _odd_setting(error: str, endpoint: str | None) -> str:
    """The variable that boto3 refuses; its text may contain the endpoint, with a password."""
    from botocore.utils import is_valid_endpoint_url

    named = [name for name, value in os.environ.items() if name.startswith("AWS_") and repr(value) in error]
    if named and "ENDPOINT" not in named[0]:
        return f"{named[0]}: boto3 cannot use its value"
    if endpoint is None or (urlsplit(endpoint).scheme in ("http", "https") and is_valid_endpoint_url(endpoint)):
        return f"the AWS configuration cannot be used: {hide(in_short(ValueError(error)))}"
    return "AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL: expected http://host:port"


def _send(send: Callable[[Any], Any], request: Any, **_: Any) -> Any:
    """The answer to a request. All but an object is read here: boto3 would read it to its end, whatever the size."""
    from botocore.exceptions import HTTPClientError
    from urllib3.exceptions import HTTPError

    is_object, request.stream_output = request.stream_output, True
    answer, url = send(request), urlsplit(request.url)
    if is_object and answer.status_code < 300:
        read, read1 = answer.raw.read, answer.raw.read1
        # What has arrived, so that `read_object` sees how slow it is.
        answer.raw.read = lambda size=None: read() if size is None else read1(size)
        return answer
    try:
        answer._content = whole(answer.raw.read1, f"S3 at {url.scheme}://{url.netloc}")
    except HTTPError as error:
        raise HTTPClientError(error=error, endpoint_url=request.url) from None
    return answer


def request(uri: S3Uri, operation: str, **arguments: Any) -> Any:
    """The response to an operation of boto3's client on an object. Raises `StorageError`."""

    def send() -> Any:
        with storage_errors(uri):
            return getattr(connect(), operation)(Bucket=uri.bucket, Key=uri.key, **arguments)

    return with_retries(send)


def read_object(uri: S3Uri, offset: int = 0, size: int | None = None, etag: str = "") -> bytes:
    """The content of an object, or `size` bytes from `offset`, if the object has this ETag.

    Raises:
        ChangedError: it has another ETag.
        MissingError: it does not exist.
        StorageError: it cannot be read.
    """
    import botocore.exceptions
    import urllib3.exceptions

    broken = (
        botocore.exceptions.BotoCoreError, urllib3.exceptions.HTTPError, ConnectionError, TimeoutError, SlowAnswerError
    )  # fmt: skip
    most = BOUNDS.json_bytes if size is None else size
    condition = {"Range": f"bytes={offset}-{offset + size - 1}", "IfMatch": etag} if size else {}

    def read() -> bytes:
        try:
            with request(uri, "get_object", **condition)["Body"] as body:
                content = whole(body.read, str(uri), most)
        except broken as error:
            raise TransferError(
                f"{uri}: what S3 sends breaks off ({type(error).__name__}) in every attempt; try again later"
            ) from None
        except EndlessAnswerError:
            raise StorageError(f"{uri}: larger than {most} bytes, the most for an object of this kind") from None
        except ChangedError:
            request(uri, "head_object")  # SeaweedFS answers 412 instead of 404, too
            raise
        if size is not None and len(content) != size:
            raise TransferError(
                f"{uri}: {quantity(len(content), 'byte')} arrived where {size} were requested, in every attempt"
            )
        return content

    return with_retries(read)


def request_pages(uri: S3Uri, operation: str, field: str, **arguments: Any) -> Iterator[Any]:
    """The items of all pages of a listing in the bucket of `uri`, page by page. Raises `StorageError`."""
    count, before, reported = 0, None, time.monotonic()
    with storage_errors(uri):
        for number, page in enumerate(connect().get_paginator(operation).paginate(Bucket=uri.bucket, **arguments)):
            items = page.get(field, [])
            if number == BOUNDS.listed_pages or (items and items[:1] == before):
                raise StorageError(
                    f"{uri}: S3 lists without an end, or more than {BOUNDS.listed_pages} pages; name a smaller folder, "
                    "and check AWS_ENDPOINT_URL_S3"
                )
            count, before = count + len(items), items[:1]
            if time.monotonic() - reported > _NOTICE_SECONDS:
                reported = time.monotonic()
                print_line(f"{uri}: {count} objects listed so far", sys.stderr)
            yield from items


def request_threads() -> ThreadPool:
    """The thread pool of this process for requests. Daemon threads: exit does not wait for a silent server."""
    return _request_threads(os.getpid())


@cache
def _request_threads(process: int) -> ThreadPool:
    return ThreadPool(THREADS)


def pipelined(call: Callable[[Item], Result], items: Iterable[Item], window: int = 1) -> Iterator[Result]:
    """`call` of each item, in order, the next ones in flight: `window` at first, twice as many after each result."""
    in_flight: deque[AsyncResult[Result]] = deque()
    try:
        for item in items:
            in_flight.append(request_threads().apply_async(call, (item,)))
            if len(in_flight) >= window:
                yield in_flight.popleft().get()
                window = min(2 * window, PREFETCH)
        while in_flight:
            yield in_flight.popleft().get()
    except Exception:
        for result in in_flight:  # finish all before the caller tries again
            result.wait()
        raise
