"""S3 addresses, the boto3 client that the AWS environment configures, and threads for its requests."""

import os
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from multiprocessing.pool import AsyncResult, ThreadPool
from typing import Any, NamedTuple, Self, TypeVar

from autoformer.errors import AutoFormerError

Item = TypeVar("Item")
Result = TypeVar("Result")
SCHEME = "s3://"
ATTEMPTS = 6  # per request, after pauses that double and have jitter
THREADS = 16  # requests of a process in flight
PREFETCH = 8  # parts or ranges of one object in flight, each held in memory


class S3Uri(NamedTuple):
    """`s3://bucket/key`; a folder's key has no trailing slash."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, uri: "S3Uri | str") -> "S3Uri":
        """Raises `AutoFormerError` where a text names no bucket."""
        if isinstance(uri, S3Uri):
            return uri
        bucket, _, key = uri.removeprefix(SCHEME).partition("/")
        if not is_uri(uri) or not bucket:
            raise AutoFormerError(f"{uri}: expected s3://bucket/folder")
        return cls(bucket, key.strip("/"))

    @property
    def arguments(self) -> dict[str, str]:
        """Of boto3's methods."""
        return {"Bucket": self.bucket, "Key": self.key}

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}".rstrip("/")

    def __truediv__(self, name: str) -> Self:
        return type(self)(self.bucket, f"{self.key}/{name}".strip("/"))


def is_uri(text: object) -> bool:
    """Whether a text is an S3 address and not a path."""
    return str(text).startswith(SCHEME)


def connect() -> Any:
    """The boto3 client of this process and endpoint; threads may share it, processes may not.

    Credentials, region and endpoint come from the AWS environment (`AWS_ACCESS_KEY_ID`, `AWS_PROFILE`,
    `AWS_ENDPOINT_URL_S3`, web identities, …). boto3 addresses a custom endpoint by path, `endpoint/bucket/key`, unless
    the AWS setting `addressing_style` is `virtual`.

    Raises:
        AutoFormerError: the endpoint is no URL.
    """
    return _connect(os.getpid(), os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"))


@cache
def _connect(process: int, endpoint: str | None) -> Any:
    import boto3
    from botocore.config import Config

    retries: Any = {"mode": "standard"}
    if "AWS_MAX_ATTEMPTS" not in os.environ:
        retries["total_max_attempts"] = ATTEMPTS
    config = Config(connect_timeout=10, read_timeout=60, retries=retries, max_pool_connections=32)  # seconds
    _separate_jitter()
    try:
        return boto3.session.Session().client("s3", config=config)
    except ValueError:  # its text holds the endpoint, which may contain a password
        raise AutoFormerError("AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL: expected http://host:port") from None


def _separate_jitter() -> None:
    """Make boto3 draw the jitter of its pauses from the system's generator.

    By default it draws from Python's global generator, which timm's augmentations use too: a retry of a background
    upload would change the next image.
    """
    from botocore.retries import standard

    class Backoff(standard.ExponentialBackoff):
        def __init__(self) -> None:
            super().__init__(random=random.SystemRandom().random)

    if standard.ExponentialBackoff.__name__ != Backoff.__name__:
        standard.ExponentialBackoff = Backoff


def request_threads() -> ThreadPool:
    """Threads of this process for requests. They are daemons: its end does not wait for a silent server."""
    return _request_threads(os.getpid())


@cache
def _request_threads(process: int) -> ThreadPool:
    return ThreadPool(THREADS)


def prefetched(call: Callable[[Item], Result], items: Iterable[Item], window: int = 1) -> Iterator[Result]:
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
        for result in in_flight:  # none is in flight when the caller tries again
            result.wait()
        raise
