"""S3 addresses, and the boto3 client that the AWS environment configures."""

import os
import random
from functools import cache
from typing import Any, NamedTuple, Self

from autoformer.errors import AutoFormerError

SCHEME = "s3://"
CONNECT_SECONDS = 10
READ_SECONDS = 60
ATTEMPTS = 6  # per request, after pauses that double and have jitter
CONNECTIONS = 32


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
    `AWS_ENDPOINT_URL_S3`, web identities, …). With a custom endpoint the path style, `endpoint/bucket/key`, is the
    default, because few such servers answer for `bucket.endpoint`; the AWS setting `addressing_style` overrides it.

    Raises:
        AutoFormerError: the endpoint is no URL.
    """
    return _connect(os.getpid(), os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"))


@cache
def _connect(process: int, endpoint: str | None) -> Any:
    import boto3
    from botocore.config import Config

    session = boto3.session.Session()
    settings = session._session.get_scoped_config().get("s3") or {}
    style = settings.get("addressing_style") if isinstance(settings, dict) else None
    retries: Any = {"mode": "standard"}
    if "AWS_MAX_ATTEMPTS" not in os.environ:
        retries["total_max_attempts"] = ATTEMPTS
    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries=retries,
        max_pool_connections=CONNECTIONS,
        s3={"addressing_style": style or ("path" if endpoint else "auto")},
    )
    _separate_jitter()
    try:
        return session.client("s3", config=config)
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
