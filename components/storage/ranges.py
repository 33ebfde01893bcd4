"""Requests to S3 that are given again where that can help, and say in one line what went wrong where it cannot."""

import random
import time
from typing import Any, NamedTuple

from autoformer.errors import AutoFormerError
from components.storage.client import connect
from components.storage.uris import S3Uri

_BODIES = 5  # readings of one answer's body, which the client does not repeat by itself
_PAUSE_SECONDS = 0.2  # before the second, at most; each later one is twice as long


class Facts(NamedTuple):
    """What S3 says of an object."""

    size: int  # bytes
    etag: str  # another for other content


def list_folder(folder: S3Uri, below: bool = False) -> dict[str, Facts]:
    """The objects directly in a folder, by name; those of the folders in it too where `below`.

    Raises `AutoFormerError` where the folder cannot be listed.
    """
    prefix = f"{folder.key}/" if folder.key else ""
    found: dict[str, Facts] = {}
    with saying(str(folder)):
        pages = connect().get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=folder.bucket, Prefix=prefix, **({} if below else {"Delimiter": "/"})):
            for item in page.get("Contents", ()):
                if not item["Key"].endswith("/"):  # a folder that a console has made
                    found[item["Key"].removeprefix(prefix)] = Facts(item["Size"], item["ETag"])
    return found


def get_range(uri: S3Uri, offset: int, size: int, etag: str) -> bytes:
    """So many bytes of an object, which is still the one of that ETag.

    Raises `AutoFormerError` where it is not there, has changed, or cannot be read.
    """
    from botocore.exceptions import HTTPClientError

    told = ""
    for attempt in range(_BODIES):
        if attempt:
            time.sleep(random.uniform(0, _PAUSE_SECONDS * 2**attempt))
        with saying(str(uri)):
            answer = connect().get_object(
                Bucket=uri.bucket, Key=uri.key, Range=f"bytes={offset}-{offset + size - 1}", IfMatch=etag
            )
        try:
            content: bytes = answer["Body"].read()
            if len(content) == size:
                return content
            told = f"{len(content)} bytes of {size} came"
        except (HTTPClientError, OSError) as error:
            told = type(error).__name__
    raise AutoFormerError(f"{uri}: broken off {_BODIES} times at byte {offset} ({told}); see to the connection")


class saying:  # noqa: N801 - it is used as a statement
    """Within it, what S3 refuses is one line that names `place`."""

    def __init__(self, place: str) -> None:
        self._place = place

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            return
        from botocore.exceptions import BotoCoreError, ClientError

        if isinstance(error, ClientError):
            code = str(error.response.get("Error", {}).get("Code", "unknown"))
            raise AutoFormerError(f"{self._place}: {_REFUSALS.get(code, f'S3 refuses with {code}')}") from None
        if isinstance(error, BotoCoreError):
            raise AutoFormerError(f"{self._place}: S3 cannot be asked ({error})") from None


_CHANGED = "another object than when it was listed; give the same command again, or run prepare_data again"
_FORBIDDEN = "S3 refuses with AccessDenied; see to the AWS credentials and what they permit"
_REFUSALS = {
    "PreconditionFailed": _CHANGED, "412": _CHANGED, "InvalidRange": _CHANGED, "416": _CHANGED,
    "NoSuchKey": "no such object", "404": "no such object", "NoSuchBucket": "no such bucket",
    "AccessDenied": _FORBIDDEN, "403": _FORBIDDEN,
}  # fmt: skip
