"""Files into S3, whole or not at all: in parts, several at once, each checked by S3 against its sha256.

An upload that was interrupted is gone on with: S3 says which parts it has, and those are not sent again. One of other
content, left behind under the same name, is aborted.
"""

import base64
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from runtime.storage.client import connect
from runtime.storage.errors import (
    TRIES,
    BrokenError,
    DeniedError,
    GoneError,
    MissingError,
    StorageError,
    patiently,
    told,
)
from runtime.storage.objects import abort, delete, look, unfinished
from runtime.storage.uris import S3Uri

PART_BYTES = 16 * 2**20  # of a part; more where there would be too many
MOST_PARTS = 10_000
PARALLEL = 8  # parts under way at once; as many of them are held in memory


class Content(NamedTuple):
    """What is to be sent."""

    file: Path
    size: int  # bytes
    part_bytes: int
    sha256: str  # of the whole, hexadecimal
    parts: tuple[bytes, ...]  # sha256 of each part

    @classmethod
    def of(cls, file: Path, part_bytes: int | None = None) -> "Content":
        """Read a file once, for its hashes."""
        size = file.stat().st_size
        part_bytes = part_bytes or _part_bytes(size)
        whole, parts = hashlib.sha256(), []
        with file.open("rb") as opened:
            while part := opened.read(part_bytes):
                whole.update(part)
                parts.append(hashlib.sha256(part).digest())
        return cls(file, size, part_bytes, whole.hexdigest(), tuple(parts) or (whole.digest(),))

    def read(self, number: int) -> bytes:
        """The part of that number, from 1."""
        with self.file.open("rb") as opened:
            return os.pread(opened.fileno(), self.part_bytes, (number - 1) * self.part_bytes)

    @property
    def checksum(self) -> str:
        """What S3 computes of the whole: the sha256 of one part, or that of all their sha256 one after the other."""
        if len(self.parts) == 1:
            return _base64(self.parts[0])
        return _base64(hashlib.sha256(b"".join(self.parts)).digest())


def upload(file: Path, uri: S3Uri | str) -> str:
    """Send a file; its sha256. Nothing is sent where the same content is there already.

    Raises:
        StorageError: one line; an object of that name is then as it was before.
    """
    return send(Content.of(file), S3Uri.of(uri))


def put(value: bytes, uri: S3Uri) -> None:
    """Write a small object. Raises `StorageError`."""
    sha256 = hashlib.sha256(value)
    checksum = _base64(sha256.digest())

    def write() -> None:
        with told(uri):
            connect().put_object(
                Bucket=uri.bucket, Key=uri.key, Body=value, Metadata={"sha256": sha256.hexdigest()},
                ChecksumAlgorithm="SHA256", ChecksumSHA256=checksum,
            )  # fmt: skip

    patiently(write)


def send(content: Content, uri: S3Uri, wanted: Callable[[], bool] = lambda: True) -> str:
    """`upload`, of a file that has been read for its hashes. Once it is not `wanted` any more no part is begun."""
    if _is_there(content, uri, unseen=False):
        return content.sha256
    for _ in range(TRIES):
        try:
            if len(content.parts) > 1:
                _send_parts(content, uri, wanted)
            else:
                put(content.read(1), uri)
        except GoneError as error:
            last: StorageError = error
            continue
        if _is_there(content, uri, unseen=True):
            return content.sha256
        delete(uri)  # an earlier upload of other content, whose parts till then were the same, was gone on with
        last = BrokenError(f"{uri}: S3 has other content than was sent, in every try; let one alone write there")
    raise last


def _is_there(content: Content, uri: S3Uri, unseen: bool) -> bool:
    """Whether S3 has it; `unseen` where these credentials may write, but not look."""
    try:
        found = look(uri)
    except MissingError:
        return False
    except DeniedError:
        return unseen
    same = (found.sha256, found.bytes) == (content.sha256, content.size)
    return same and (found.checksum or content.checksum) == content.checksum


def _send_parts(content: Content, uri: S3Uri, wanted: Callable[[], bool]) -> None:
    upload_id, sent = _begun(content, uri)
    missing = [number for number in range(1, len(content.parts) + 1) if number not in sent]

    def send_part(number: int) -> str:
        if not wanted():  # a process does not end before all that its pools have been given is done
            raise StorageError(f"{uri}: its upload is given up")
        return _send_part(content, uri, upload_id, number)

    with ThreadPoolExecutor(PARALLEL) as pool:
        waiting = [pool.submit(send_part, number) for number in missing]
        try:
            etags = sent | {number: future.result() for number, future in zip(missing, waiting, strict=True)}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    parts = [
        {"PartNumber": number, "ETag": etags[number], "ChecksumSHA256": _base64(digest)}
        for number, digest in enumerate(content.parts, 1)
    ]
    with told(uri):
        connect().complete_multipart_upload(
            Bucket=uri.bucket, Key=uri.key, UploadId=upload_id, MultipartUpload={"Parts": parts}
        )


def _send_part(content: Content, uri: S3Uri, upload_id: str, number: int) -> str:
    """Send one part; its ETag."""
    digest = _base64(content.parts[number - 1])

    def send() -> str:
        with told(uri):
            answer = connect().upload_part(
                Bucket=uri.bucket, Key=uri.key, UploadId=upload_id, PartNumber=number, Body=content.read(number),
                ChecksumAlgorithm="SHA256", ChecksumSHA256=digest,
            )  # fmt: skip
        if answer.get("ChecksumSHA256", digest) != digest:
            raise BrokenError(f"{uri}: what is sent arrives damaged, in every try; try again later")
        return str(answer["ETag"])

    return patiently(send)


def _begun(content: Content, uri: S3Uri) -> tuple[str, dict[int, str]]:
    """The id of an upload of this content, and the ETags of the parts that it has, by number."""
    left = {upload_id: _sent_parts(content, uri, upload_id) for upload_id in _left_behind(uri)}
    best = max(left, key=lambda upload_id: len(left[upload_id]), default=None)
    if best is not None and not left[best]:
        best = None
    for upload_id in left.keys() - {best}:
        abort(uri, upload_id)
    if best is not None:
        return best, left[best]
    with told(uri):
        answer = connect().create_multipart_upload(
            Bucket=uri.bucket, Key=uri.key, Metadata={"sha256": content.sha256}, ChecksumAlgorithm="SHA256"
        )
    return str(answer["UploadId"]), {}


def _left_behind(uri: S3Uri) -> list[str]:
    try:
        return [upload_id for key, upload_id in unfinished(uri, uri.key) if key == uri.key]
    except DeniedError:  # who may write need not be allowed to ask
        return []


def _sent_parts(content: Content, uri: S3Uri, upload_id: str) -> dict[int, str]:
    """The ETags of the parts that S3 has, by number; none where any of them is of other content."""
    try:
        with told(uri):
            pages = connect().get_paginator("list_parts").paginate(Bucket=uri.bucket, Key=uri.key, UploadId=upload_id)
            parts = [part for page in pages for part in page.get("Parts", [])]
    except (DeniedError, GoneError):
        return {}
    same = all(_is_part(content, part) for part in parts)
    return {int(part["PartNumber"]): str(part["ETag"]) for part in parts} if same else {}


def _is_part(content: Content, part: Any) -> bool:
    number = int(part["PartNumber"])
    if number > len(content.parts):
        return False
    if "ChecksumSHA256" in part:
        return bool(part["ChecksumSHA256"] == _base64(content.parts[number - 1]))
    md5 = hashlib.md5(content.read(number), usedforsecurity=False).hexdigest()
    return bool(str(part["ETag"]).strip('"') == md5)  # of servers that keep no other checksum of a part


def _part_bytes(size: int) -> int:
    """Of each part of so many bytes: more than usual, a multiple of a MiB, where there would be too many parts."""
    if size <= PART_BYTES * MOST_PARTS:
        return PART_BYTES
    return -(-size // (MOST_PARTS * 2**20)) * 2**20


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
