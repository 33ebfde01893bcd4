"""What S3 can do wrong, each in one line that a person can act on and that holds no secret.

boto3 itself repeats a request that was refused for want of capacity, or that found no server (`client.ATTEMPTS`).
`patiently` repeats what it does not: a body that breaks off, and bytes that did not arrive as they were sent.
"""

import contextlib
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import urlsplit

from autoformer.errors import AutoFormerError, UnavailableError
from runtime.common.retrying import doubling, retry
from runtime.storage.uris import S3Uri

T = TypeVar("T")
TRIES = 5  # of a transfer that breaks off
PAUSE_SECONDS = 1.0  # after the first of them; each pause is up to twice the one before

_PERMISSIONS = {
    "HeadObject": "s3:GetObject", "GetObject": "s3:GetObject", "PutObject": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject", "UploadPart": "s3:PutObject", "CompleteMultipartUpload": "s3:PutObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload", "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "ListParts": "s3:ListMultipartUploadParts", "ListObjectsV2": "s3:ListBucket",
    "DeleteObject": "s3:DeleteObject", "DeleteObjects": "s3:DeleteObject",
}  # fmt: skip
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
_NOT_ACCEPTED = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidClientTokenId"}
_DENIED = {"AccessDenied", "AllAccessDisabled", "AccountProblem", "403", "Forbidden"}
_MISSING = {"NoSuchKey", "404", "NotFound"}
_ELSEWHERE = {"PermanentRedirect", "AuthorizationHeaderMalformed", "301"}
_DAMAGED = {"BadDigest", "InvalidDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}


class StorageError(AutoFormerError):
    """S3 did not do what it was asked."""


class MissingError(StorageError):
    """There is no such object, or no such folder."""


class DeniedError(StorageError):
    """These credentials may not do it."""


class ChangedError(StorageError):
    """An object is another one than a moment ago."""


class GoneError(StorageError):
    """A multipart upload that has been completed or aborted by somebody else."""


class BrokenError(StorageError, UnavailableError):
    """Bytes that did not arrive, or not as they were sent. Worth another try at once."""


class DamagedError(StorageError):
    """An object whose content is not what it should be."""


class AwayError(StorageError, UnavailableError):
    """No answer, or one that says to come back later."""


@contextlib.contextmanager
def told(uri: S3Uri) -> Iterator[None]:
    """Say in one line what boto3 raises about `uri`. Raises `StorageError`."""
    try:
        yield
    except Exception as error:
        found = explained(error, uri)
        if found is None:
            raise
        raise found from None


@contextlib.contextmanager
def body_of(uri: S3Uri) -> Iterator[None]:
    """The same, while the body of an answer is read: whatever goes wrong there is `BrokenError`."""
    import botocore.exceptions
    import urllib3.exceptions

    try:
        yield
    except (botocore.exceptions.BotoCoreError, urllib3.exceptions.HTTPError, ConnectionError, TimeoutError) as error:
        raise BrokenError(
            f"{uri}: what S3 sends breaks off ({type(error).__name__}) in every try; try again later"
        ) from None


def patiently(do: Callable[[], T]) -> T:
    """What `do` returns, tried again where a transfer is `BrokenError`."""
    return retry(do, BrokenError, islice(doubling(PAUSE_SECONDS, jitter=(0.5, 1.0)), TRIES - 1))


def explained(error: Exception, uri: S3Uri) -> StorageError | None:
    """One line for an error of boto3; None for one that is not of S3."""
    import botocore.exceptions as raised

    if isinstance(error, raised.ClientError):
        return _answered(error.response, error.operation_name, uri)
    if isinstance(error, raised.NoCredentialsError | raised.PartialCredentialsError):
        return StorageError(
            f"{uri}: no AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    if isinstance(error, raised.CredentialRetrievalError | raised.TokenRetrievalError | raised.SSOError):
        return StorageError(f"{uri}: the AWS credentials cannot be had ({type(error).__name__}); sign in again")
    if isinstance(error, raised.ProfileNotFound | raised.ConfigParseError | raised.NoRegionError):
        return StorageError(f"{uri}: the AWS configuration cannot be used: {_line(error)}")
    if isinstance(error, raised.HTTPClientError | raised.ConnectionError):
        where = _server(getattr(error, "kwargs", {}).get("endpoint_url"))
        return AwayError(f"{uri}: S3{where} cannot be reached ({type(error).__name__}); check AWS_ENDPOINT_URL_S3 and "
                    "the network, then give the same command again")  # fmt: skip
    if isinstance(error, raised.FlexibleChecksumError):
        return BrokenError(f"{uri}: what S3 sends has another checksum than it says, in every try; try again later")
    if isinstance(error, raised.BotoCoreError):
        return StorageError(f"{uri}: {_line(error)}")
    return None


def _answered(response: Any, operation: str, uri: S3Uri) -> StorageError:
    """One line for an answer that is an error."""
    code = str(response.get("Error", {}).get("Code", ""))
    answer = response.get("ResponseMetadata", {})
    status = int(answer.get("HTTPStatusCode", 0))
    region = answer.get("HTTPHeaders", {}).get("x-amz-bucket-region", "another one")
    bucket, lacks = f"s3://{uri.bucket}", _PERMISSIONS.get(operation, operation)
    for codes, kind, line in (
        (_EXPIRED, StorageError, f"{uri}: the AWS credentials have expired; renew them, and give the same command "
                                 "again"),
        (_NOT_ACCEPTED, StorageError, f"{uri}: the AWS credentials are not accepted ({code}); check AWS_ACCESS_KEY_ID, "
                                      "AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"),
        ({"NoSuchBucket"}, StorageError, f"{bucket}: there is no such bucket; make it, or correct its name"),
        ({"NoSuchUpload"}, GoneError, f"{uri}: another process has ended its upload, in every try; "
                                      "let one alone write there"),
        (_ELSEWHERE, StorageError, f"{bucket}: not of this region; set AWS_DEFAULT_REGION to the bucket's, {region}"),
        (_MISSING, MissingError, f"{uri}: there is no such object"),
        ({"PreconditionFailed", "412"}, ChangedError, f"{uri}: it changes while it is read, in every try; "
                                                      "let one alone write there"),
        (_DENIED, DeniedError, f"{uri}: access denied; these credentials lack {lacks} there"),
        (_DAMAGED, BrokenError, f"{uri}: what is sent arrives damaged ({code}), in every try; try again later"),
    ):  # fmt: skip
        if code in codes:
            return kind(line)
    if status >= 500 or status == 429 or code in ("SlowDown", "RequestTimeout"):
        return AwayError(f"{uri}: S3 has no capacity or is at fault ({code}), after all tries; give the same command "
                         "again later")  # fmt: skip
    message = _line(response.get("Error", {}).get("Message", ""))
    return StorageError(f"{uri}: S3 refuses {operation} ({code}: {message})")


def _line(error: object) -> str:
    return " ".join(str(error).split())[:200]


def _server(url: str | None) -> str:
    """` at <host>`, without what a URL may say beside: a user and a password."""
    parts = urlsplit(url or "")
    return f" at {parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else ""
