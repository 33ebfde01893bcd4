"""Objects and folders of S3: read, write, list and delete."""

import base64
import contextlib
import hashlib
from typing import NamedTuple

from autoformer.errors import UnavailableError
from autoformer.files import hash_value
from runtime.storage.client import PREFETCH, S3Uri, pipelined, request, request_pages
from runtime.storage.errors import DeniedError, MissingError, StorageError, UploadEndedError, storage_errors


class ObjectInfo(NamedTuple):
    """Size and checksums of an object."""

    bytes: int
    etag: str
    sha256: str | None  # of the content, hexadecimal: from the writer, else from S3; None if unknown
    checksum: str | None  # S3's, base64: sha256 of the content or, after a multipart upload, of the parts' sha256
    crc32: str | None  # S3's, base64, of the content


class Entry(NamedTuple):
    """An object of a folder."""

    name: str  # below the folder
    bytes: int
    etag: str


def head(uri: S3Uri) -> ObjectInfo:
    """Size and checksums of an object. Raises `MissingError`, or another `StorageError`."""
    if not uri.key:
        raise MissingError(f"{uri}: the bucket is empty, or the name of an object is missing after it")
    try:
        response = request(uri, "head_object", ChecksumMode="ENABLED")
    except StorageError as error:
        if not isinstance(error, UnavailableError):  # HEAD's response has no body with a reason
            request(uri, "get_object", Range="bytes=0-0")["Body"].close()
        raise
    with storage_errors(uri):
        checksum = response.get("ChecksumSHA256")
        is_multipart = "-" in str(response["ETag"])
        is_of_content = response.get("ChecksumType", "COMPOSITE" if is_multipart else "FULL_OBJECT") == "FULL_OBJECT"
        computed = base64.b64decode(checksum).hex() if checksum and is_of_content else None
        return ObjectInfo(
            bytes=int(response["ContentLength"]),
            etag=str(response["ETag"]),
            sha256=response.get("Metadata", {}).get("sha256", computed),
            checksum=checksum and checksum.partition("-")[0],  # the number of parts follows
            crc32=response.get("ChecksumCRC32") if is_of_content else None,
        )


def exists(uri: S3Uri | str) -> bool:
    """Whether an object exists. Raises `StorageError` if S3 does not answer."""
    try:
        head(S3Uri.parse(uri))
    except MissingError:
        return False
    return True


def base64_of(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def sha256_arguments(checksum: str) -> dict[str, str]:
    """Request arguments with the body's base64 sha256, which S3 verifies."""
    return {"ChecksumAlgorithm": "SHA256", "ChecksumSHA256": checksum}


def write_object(content: bytes, uri: S3Uri) -> None:
    """Write an object in one request, with its sha256 for S3 to verify. Raises `StorageError`."""
    sha256 = hashlib.sha256(content)
    arguments = {"Metadata": {"sha256": sha256.hexdigest()}, **sha256_arguments(base64_of(sha256.digest()))}
    request(uri, "put_object", Body=content, **arguments)


def list_objects(uri: S3Uri | str) -> list[Entry]:
    """The objects below a folder, sorted by name; empty if there is no such folder."""
    uri = S3Uri.parse(uri)
    prefix = f"{uri.key}/" if uri.key else ""
    items = request_pages(uri, "list_objects_v2", "Contents", Prefix=prefix)
    with storage_errors(uri):
        entries = (Entry(item["Key"].removeprefix(prefix), item["Size"], item["ETag"]) for item in items)
        return sorted(entry for entry in entries if entry.name)  # consoles mark a folder by an object with its name


def list_files(uri: S3Uri | str) -> list[Entry]:
    """The objects below a folder, without those such as `train/` by which some tools mark subfolders."""
    return [entry for entry in list_objects(uri) if not entry.name.endswith("/")]


def hash_listing(uri: S3Uri | str) -> str:
    """Hash of the names, sizes and ETags of a folder's files, or of one object's size and ETag.

    An object rewritten with the same content keeps its ETag, unless its parts have another size.

    Raises:
        StorageError: it does not exist, or cannot be listed.
    """
    uri = S3Uri.parse(uri)
    entries = list_files(uri)
    if not entries:
        info = head(uri)
        entries = [Entry("", info.bytes, info.etag)]
    return hash_value([list(entry) for entry in entries])


def delete(uri: S3Uri) -> None:
    """Delete an object, if it exists."""
    request(uri, "delete_object")


def delete_folder(uri: S3Uri | str) -> None:
    """Delete all objects below a folder, and its incomplete uploads."""
    uri = S3Uri.parse(uri)
    if not uri.key:
        raise StorageError(f"{uri}: a whole bucket is never emptied; name a folder")
    objects = [S3Uri(uri.bucket, f"{uri.key}/{entry.name}") for entry in list_objects(uri)]
    for _ in pipelined(delete, objects, window=PREFETCH):
        pass
    abort_uploads(uri)


def list_uploads(uri: S3Uri, prefix: str) -> list[tuple[str, str]]:
    """Key and id of each incomplete multipart upload whose key begins with `prefix`."""
    items = request_pages(uri, "list_multipart_uploads", "Uploads", Prefix=prefix)
    with storage_errors(uri):
        return [(item["Key"], item["UploadId"]) for item in items]


def abort_upload(uri: S3Uri, upload_id: str) -> None:
    """Abort a multipart upload and free its parts."""
    with contextlib.suppress(UploadEndedError, DeniedError):
        request(uri, "abort_multipart_upload", UploadId=upload_id)


def abort_uploads(uri: S3Uri) -> None:
    """Abort all uploads below a folder, as far as the credentials permit."""
    with contextlib.suppress(DeniedError):  # permission to write does not include permission to list uploads
        for key, upload_id in list_uploads(uri, f"{uri.key}/"):
            abort_upload(S3Uri(uri.bucket, key), upload_id)
