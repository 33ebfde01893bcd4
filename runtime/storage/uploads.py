"""Upload files: parts in parallel, each verified by S3 against its sha256.

An interrupted upload resumes: S3 lists its parts, and only the missing ones are sent. An incomplete upload of other
content under the same name is aborted.
"""

import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple, Self

from runtime.storage.client import PREFETCH, S3Uri, pipelined, request, request_pages
from runtime.storage.errors import DeniedError, MissingError, StorageError, TransferError, UploadEndedError
from runtime.storage.objects import abort_upload, base64_of, delete, head, list_uploads, sha256_arguments, write_object

TRIES = 5  # if another process ends the upload
PART_BYTES = 16 * 2**20  # larger if a file would have too many parts
MAX_PARTS = 10_000


class HashedFile(NamedTuple):
    """A file and the checksums of its content."""

    path: Path
    size: int  # bytes
    part_bytes: int
    sha256: str  # hexadecimal
    part_checksums: list[str]  # base64 sha256 of each part
    checksum: str  # base64, as in S3: sha256 of a single part, else of the sha256 of all parts

    @classmethod
    def read(cls, path: Path) -> Self:
        size = path.stat().st_size
        part_bytes = part_size(size)
        whole, digests = hashlib.sha256(), []
        with path.open("rb") as file:
            while part := file.read(part_bytes):
                whole.update(part)
                digests.append(hashlib.sha256(part).digest())
        of_parts = hashlib.sha256(b"".join(digests)) if len(digests) > 1 else whole
        checksums = [base64_of(digest) for digest in digests]
        return cls(path, size, part_bytes, whole.hexdigest(), checksums, base64_of(of_parts.digest()))

    def part(self, number: int) -> bytes:
        """The content of a part, numbered from 1."""
        with self.path.open("rb") as file:
            return os.pread(file.fileno(), self.part_bytes, (number - 1) * self.part_bytes)


def upload(file: Path | HashedFile, uri: S3Uri | str) -> str:
    """Upload a file, unless S3 already has the same content; return its sha256.

    Raises:
        StorageError: the object of that name is unchanged.
    """
    uri = S3Uri.parse(uri)
    file = HashedFile.read(file) if isinstance(file, Path) else file
    if _is_stored(file, uri, if_denied=False):
        return file.sha256
    for _ in range(TRIES):
        try:
            if len(file.part_checksums) > 1:
                _upload_parts(file, uri)
            else:
                write_object(file.part(1), uri)
        except UploadEndedError as error:
            failure: StorageError = error
            continue
        if _is_stored(file, uri, if_denied=True):
            return file.sha256
        delete(uri)  # the resumed upload had other content with equal first parts
        failure = TransferError(
            f"{uri}: S3 has other content than was sent, in every attempt; let only one process write there"
        )
    raise failure


def _is_stored(file: HashedFile, uri: S3Uri, if_denied: bool) -> bool:
    """Whether S3 has the file's content; `if_denied` if the credentials cannot read."""
    try:
        info = head(uri)
    except MissingError:
        return False
    except DeniedError:
        return if_denied
    return (info.bytes, info.sha256, info.checksum or file.checksum) == (file.size, file.sha256, file.checksum)


def _upload_parts(file: HashedFile, uri: S3Uri) -> None:
    upload_id, etags = _begin_or_resume(file, uri)

    def send(number: int) -> str:
        part = {"UploadId": upload_id, "PartNumber": number, **sha256_arguments(file.part_checksums[number - 1])}
        return str(request(uri, "upload_part", Body=file.part(number), **part)["ETag"])

    numbers = range(1, len(file.part_checksums) + 1)
    missing = [number for number in numbers if number not in etags]
    etags |= zip(missing, pipelined(send, missing, window=PREFETCH), strict=True)
    parts = [
        {"PartNumber": number, "ETag": etags[number], "ChecksumSHA256": checksum}
        for number, checksum in zip(numbers, file.part_checksums, strict=True)
    ]
    request(uri, "complete_multipart_upload", UploadId=upload_id, MultipartUpload={"Parts": parts})


def _begin_or_resume(file: HashedFile, uri: S3Uri) -> tuple[str, dict[int, str]]:
    """The id of an upload of this file, and the ETags of its parts by number."""
    try:
        incomplete = [upload_id for key, upload_id in list_uploads(uri, uri.key) if key == uri.key]
    except DeniedError:  # permission to write does not include permission to list
        incomplete = []
    stored = {upload_id: _stored_parts(file, uri, upload_id) for upload_id in incomplete}
    best = max(stored, key=lambda upload_id: len(stored[upload_id]), default="")
    for upload_id in stored:
        if upload_id != best or not stored[best]:
            abort_upload(uri, upload_id)
    if stored.get(best):
        return best, stored[best]
    metadata = {"sha256": file.sha256}
    response = request(uri, "create_multipart_upload", Metadata=metadata, ChecksumAlgorithm="SHA256")
    return str(response["UploadId"]), {}


def _stored_parts(file: HashedFile, uri: S3Uri, upload_id: str) -> dict[int, str]:
    """Part number -> ETag in S3; empty if one of the parts has other content."""
    try:
        parts = list(request_pages(uri, "list_parts", "Parts", Key=uri.key, UploadId=upload_id))
    except (DeniedError, UploadEndedError):
        return {}
    return {part["PartNumber"]: part["ETag"] for part in parts} if all(_is_same(file, part) for part in parts) else {}


def _is_same(file: HashedFile, part: Any) -> bool:
    number = part["PartNumber"]
    if number > len(file.part_checksums):
        return False
    if "ChecksumSHA256" in part:
        return bool(part["ChecksumSHA256"] == file.part_checksums[number - 1])
    md5 = hashlib.md5(file.part(number), usedforsecurity=False).hexdigest()  # for servers that list no sha256
    return bool(part["ETag"].strip('"') == md5)


def part_size(size: int) -> int:
    """Bytes per part for a file of `size` bytes."""
    return max(PART_BYTES, -(-size // MAX_PARTS))
