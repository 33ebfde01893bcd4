"""Errors of S3, each as one line with the remedy and without secrets.

boto3 retries requests that the server refused for lack of capacity, or that reached no server (`client.ATTEMPTS`).
`with_retries` covers the rest: truncated response bodies and damaged bytes.
"""

import contextlib
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import urlsplit

from autoformer.errors import AutoFormerError, UnavailableError
from autoformer.reading import in_short
from runtime.common.redaction import hide
from runtime.common.retrying import doubling, retry

T = TypeVar("T")
TRIES = 5  # of an interrupted transfer
PAUSE_SECONDS = 1.0  # after the first try; doubles

_PERMISSIONS = {
    "HeadObject": "s3:GetObject", "CreateMultipartUpload": "s3:PutObject", "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject", "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "ListParts": "s3:ListMultipartUploadParts", "ListObjectsV2": "s3:ListBucket",
}  # fmt: skip  # of any other operation: `s3:` and its name
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
_NOT_ACCEPTED = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidClientTokenId"}
_REDIRECTED = {"PermanentRedirect", "AuthorizationHeaderMalformed", "301"}
_MISSING = {"NoSuchKey", "404", "NotFound"}
_CHANGED = {"PreconditionFailed", "412"}
_DENIED = {"AccessDenied", "AllAccessDisabled", "AccountProblem", "403", "Forbidden"}
_DAMAGED = {"BadDigest", "InvalidDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}


class StorageError(AutoFormerError):
    """A request to S3 failed."""


class MissingError(StorageError):
    """No such object or folder."""


class DeniedError(StorageError):
    """The credentials lack a permission."""


class ChangedError(StorageError):
    """The object was replaced while it was read, or its content is not the expected one."""


class UploadEndedError(StorageError):
    """Another process completed or aborted the multipart upload."""


class TransferError(StorageError, UnavailableError):
    """Bytes were lost or damaged; an immediate retry may help."""


class UnreachableError(StorageError, UnavailableError):
    """The server did not answer, or had no capacity."""


@contextlib.contextmanager
def storage_errors(uri: object) -> Iterator[None]:
    """Translate boto3's errors about an address to `StorageError`s."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        raise _from_response(error.response, error.operation_name, str(uri)) from None
    except BotoCoreError as error:
        raise _from_client(error, str(uri)) from None
    except OSError as error:
        if error.filename is None:
            raise
        raise StorageError(f"{uri}: a file of the AWS configuration cannot be read: {in_short(error)}") from None
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        if isinstance(error, AutoFormerError):
            raise
        raise StorageError(
            f"{uri}: the answer is not one of S3 ({in_short(error)}); check AWS_ENDPOINT_URL_S3"
        ) from None


def with_retries(request: Callable[[], T]) -> T:
    """Call `request` until it raises no `TransferError`, at most `TRIES` times; return its result."""
    return retry(request, TransferError, islice(doubling(PAUSE_SECONDS, jitter=(0.5, 1.0)), TRIES - 1))


def _from_client(error: Exception, uri: str) -> StorageError:
    """The `StorageError` for an error without a response."""
    import botocore.exceptions as aws

    name, text = type(error).__name__, " ".join(str(error).split())[:200]
    if isinstance(error, aws.NoCredentialsError | aws.PartialCredentialsError):
        return StorageError(
            f"{uri}: no AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    if isinstance(error, aws.CredentialRetrievalError | aws.TokenRetrievalError | aws.SSOError):
        return StorageError(f"{uri}: the AWS credentials cannot be had ({name}); sign in again")
    if isinstance(error, aws.ProfileNotFound | aws.ConfigParseError | aws.NoRegionError):
        return StorageError(f"{uri}: the AWS configuration cannot be used: {text}")
    if isinstance(error, aws.SSLError):
        return UnreachableError(
            f"{uri}: TLS fails; AWS_CA_BUNDLE names the file with the certificate of the server's authority, and "
            "AWS_ENDPOINT_URL_S3=http://… is for a server without TLS"
        )
    cause = getattr(error, "kwargs", {}).get("error")
    if isinstance(error, aws.ProxyConnectionError):
        return UnreachableError(f"{uri}: the proxy of HTTP_PROXY or HTTPS_PROXY cannot be reached; check them")
    if isinstance(cause, ValueError):  # its text may contain a token
        return StorageError(
            f"{uri}: the request cannot be sent ({type(cause).__name__}); check HTTP_PROXY and HTTPS_PROXY, and AWS_ "
            "variables for line breaks"
        )
    if isinstance(error, aws.HTTPClientError | aws.ConnectionError):
        url = urlsplit(getattr(error, "kwargs", {}).get("endpoint_url") or "")
        server = f" at {url.scheme}://{url.netloc.rpartition('@')[2]}" if url.netloc else ""  # without its password
        return UnreachableError(
            f"{uri}: S3{server} cannot be reached ({name}); check AWS_ENDPOINT_URL_S3 and the network, then run the "
            "same command again"
        )
    return StorageError(f"{uri}: {hide(text)}")


def _from_response(response: Any, operation: str, uri: str) -> StorageError:
    code, message = (str(response.get("Error", {}).get(name, "")) for name in ("Code", "Message"))
    metadata = response.get("ResponseMetadata", {})
    region = metadata.get("HTTPHeaders", {}).get("x-amz-bucket-region", "another one")
    bucket, permission = "/".join(uri.split("/")[:3]), _PERMISSIONS.get(operation, f"s3:{operation}")
    for codes, kind, line in (
        (_EXPIRED, StorageError, f"{uri}: the AWS credentials have expired; renew them, and run the same command "
                                 "again"),
        (_NOT_ACCEPTED, StorageError, f"{uri}: the AWS credentials are not accepted ({code}); check AWS_ACCESS_KEY_ID, "
                                      "AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"),
        ({"NoSuchBucket"}, StorageError, f"{bucket}: there is no such bucket; make it, or correct its name"),
        ({"NoSuchUpload"}, UploadEndedError, f"{uri}: another process has ended its upload, in every attempt; "
                                             "let one alone write there"),
        (_REDIRECTED, StorageError, f"{bucket}: not of this region; set AWS_DEFAULT_REGION to the bucket's, {region}"),
        (_MISSING, MissingError, f"{uri}: there is no such object"),
        (_CHANGED, ChangedError, f"{uri}: it changes while it is read, in every attempt; let only "
            "one process write there"),
        (_DENIED, DeniedError, f"{uri}: access denied; these credentials lack {permission} there"),
        (_DAMAGED, TransferError, f"{uri}: what is sent arrives damaged ({code}), in every attempt; try again later"),
    ):  # fmt: skip
        if code in codes:
            return kind(line)
    status = int(metadata.get("HTTPStatusCode", 0))
    if status >= 500 or status == 429 or code in ("SlowDown", "RequestTimeout"):
        return UnreachableError(
            f"{uri}: S3 has no capacity or is at fault ({code}), after all tries; run the same command again later"
        )
    return StorageError(f"{uri}: S3 refuses {operation} ({code}: {' '.join(message.split())[:200]})")
