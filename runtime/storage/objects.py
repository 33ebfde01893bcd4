"""Objects and folders of S3: what is there, what it is called, and how it is removed."""

import contextlib
from collections.abc import Iterable
from typing import NamedTuple

from autoformer.files import hash_value
from runtime.storage.client import connect
from runtime.storage.errors import DeniedError, GoneError, MissingError, StorageError, told
from runtime.storage.uris import S3Uri

MOST_DELETED = 1000  # objects in one request


class Stored(NamedTuple):
    """An object as it is now."""

    bytes: int
    etag: str
    sha256: str | None  # of the whole content; None where whoever wrote it did not say
    checksum: str | None  # base64: what S3 has computed, the sha256 of the content or of the sha256 of its parts
    whole_sha256: str | None  # base64, of the content, where S3 has computed it
    whole_crc32: str | None


class Entry(NamedTuple):
    """An object of a folder."""

    name: str  # below the folder
    bytes: int
    etag: str


def look(uri: S3Uri) -> Stored:
    """What is there. Raises `MissingError`, or another `StorageError`."""
    from botocore.exceptions import ClientError

    with told(uri):
        client = connect()
        try:
            found = client.head_object(Bucket=uri.bucket, Key=uri.key, ChecksumMode="ENABLED")
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] < 500:  # an answer to HEAD has no body to say why
                client.get_object(Bucket=uri.bucket, Key=uri.key, Range="bytes=0-0")["Body"].close()
            raise
    checksum, of_parts = found.get("ChecksumSHA256"), "-" in str(found["ETag"])
    whole = found.get("ChecksumType", "COMPOSITE" if of_parts else "FULL_OBJECT") == "FULL_OBJECT"
    return Stored(
        bytes=int(found["ContentLength"]),
        etag=str(found["ETag"]),
        sha256=found.get("Metadata", {}).get("sha256"),
        checksum=checksum and checksum.partition("-")[0],  # S3 writes the number of parts behind it
        whole_sha256=checksum if whole else None,
        whole_crc32=found.get("ChecksumCRC32") if whole else None,
    )


def exists(uri: S3Uri | str) -> bool:
    """Whether there is an object of that name. Raises `StorageError` where that cannot be told."""
    try:
        look(S3Uri.of(uri))
    except MissingError:
        return False
    return True


def listing(uri: S3Uri | str) -> list[Entry]:
    """The objects below a folder, sorted by name; none where there is no such folder."""
    uri = S3Uri.of(uri)
    prefix = f"{uri.key}/" if uri.key else ""
    with told(uri):
        pages = connect().get_paginator("list_objects_v2").paginate(Bucket=uri.bucket, Prefix=prefix)
        found = [
            Entry(item["Key"].removeprefix(prefix), int(item["Size"]), str(item["ETag"]))
            for page in pages
            for item in page.get("Contents", [])
        ]
    return sorted(entry for entry in found if entry.name)  # a console makes folders as empty objects


def without_markers(entries: Iterable[Entry]) -> list[Entry]:
    """Those that are files: a console, or a tool that copies folders, makes an empty object `train/` of each folder."""
    return [entry for entry in entries if not entry.name.endswith("/")]


def listing_hash(uri: S3Uri | str) -> str:
    """What stands for the content of a folder, or of one object: a hash of names, sizes and ETags.

    An object that is written anew with the same bytes keeps its ETag, unless it is sent in parts of another size.

    Raises:
        StorageError: there is nothing of that name, or it cannot be listed.
    """
    uri = S3Uri.of(uri)
    found = without_markers(listing(uri))
    if not found:
        there = look(uri)
        found = [Entry("", there.bytes, there.etag)]
    return hash_value([list(entry) for entry in found])


def delete_folder(uri: S3Uri | str) -> None:
    """Remove all objects below a folder, and what is left of uploads that were never finished."""
    uri = S3Uri.of(uri)
    if not uri.key:
        raise StorageError(f"{uri}: a whole bucket is never emptied; name a folder")
    keys = [f"{uri.key}/{entry.name}" for entry in listing(uri)]
    with told(uri):
        for start in range(0, len(keys), MOST_DELETED):
            batch = [{"Key": key} for key in keys[start : start + MOST_DELETED]]
            answer = connect().delete_objects(Bucket=uri.bucket, Delete={"Objects": batch, "Quiet": True})
            for error in answer.get("Errors", []):
                raise StorageError(f"s3://{uri.bucket}/{error['Key']}: not removed: {error.get('Code')}")
    with contextlib.suppress(DeniedError):  # who may delete need not be allowed to ask
        for key, upload in unfinished(uri, f"{uri.key}/"):
            abort(S3Uri(uri.bucket, key), upload)


def delete(uri: S3Uri) -> None:
    """Remove an object, if it is there."""
    with told(uri):
        connect().delete_object(Bucket=uri.bucket, Key=uri.key)


def unfinished(uri: S3Uri, prefix: str) -> list[tuple[str, str]]:
    """Keys and ids of multipart uploads of a bucket, under way or left behind, of keys with that prefix."""
    with told(uri):
        pages = connect().get_paginator("list_multipart_uploads").paginate(Bucket=uri.bucket, Prefix=prefix)
        return [(item["Key"], item["UploadId"]) for page in pages for item in page.get("Uploads", [])]


def abort(uri: S3Uri, upload: str) -> None:
    """End a multipart upload, and free what it has sent."""
    with contextlib.suppress(GoneError, DeniedError), told(uri):
        connect().abort_multipart_upload(Bucket=uri.bucket, Key=uri.key, UploadId=upload)
