"""How S3 is reached: the standard AWS environment says where it is and who asks."""

import os
import random
from functools import cache
from typing import Any

from autoformer.errors import AutoFormerError

CONNECT_SECONDS = 10
READ_SECONDS = 60
ATTEMPTS = 6  # of one request: the first and its repetitions, each after a longer pause with jitter


def connect() -> Any:
    """A boto3 client, one a process and server; safe to share between threads, never between processes.

    Credentials, region and endpoint are those of the AWS environment (`AWS_ACCESS_KEY_ID`, `AWS_PROFILE`,
    `AWS_ENDPOINT_URL_S3`, web identities, …). A server of its own address is asked by path, `endpoint/bucket/key`,
    unless the AWS configuration has another `addressing_style`: few answer for `bucket.endpoint`.

    Raises:
        AutoFormerError: the endpoint is no URL.
    """
    return _connect(os.getpid(), os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"))


@cache
def _connect(process: int, endpoint: str | None) -> Any:
    import boto3
    from botocore.config import Config

    session = boto3.session.Session()
    scoped = session._session.get_scoped_config().get("s3") or {}
    style = scoped.get("addressing_style") if isinstance(scoped, dict) else None
    retries: Any = {"mode": "standard"}
    if "AWS_MAX_ATTEMPTS" not in os.environ:
        retries["total_max_attempts"] = ATTEMPTS
    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries=retries,
        max_pool_connections=32,
        s3={"addressing_style": style or ("path" if endpoint else "auto")},
    )
    _draw_pauses_apart()
    try:
        return session.client("s3", config=config)
    except ValueError:  # whose text has the endpoint, and so what may be secret in it
        raise AutoFormerError("AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL: expected http://host:port") from None


def _draw_pauses_apart() -> None:
    """Let boto3 draw the jitter of its pauses from the system.

    By default it draws from Python's global generator, from which timm's augmentations draw too: a checkpoint that is
    sent again in the background would change the next image.
    """
    from botocore.retries import standard

    class Backoff(standard.ExponentialBackoff):
        def __init__(self) -> None:
            super().__init__(random=random.SystemRandom().random)

    if standard.ExponentialBackoff.__name__ != Backoff.__name__:
        standard.ExponentialBackoff = Backoff
