"""Download objects: ranges in parallel, into a partial file that replaces the target at the end.

An interrupted download resumes at the end of its partial file. All ranges are of one version of the object, whose ETag
is part of the partial file's name. At the end the checksum is compared with that of the caller, of the object's
writer, or of S3.
"""

import glob
import os
import zlib
from pathlib import Path

from autoformer.files import hash_file, hash_value
from runtime.common.locks import wait_for_lock
from runtime.storage.client import PREFETCH, S3Uri, pipelined, read_object
from runtime.storage.errors import ChangedError
from runtime.storage.objects import ObjectInfo, base64_of, head

RANGE_BYTES = 16 * 2**20
TRIES = 3  # for an object that changes or arrives damaged


def download(uri: S3Uri | str, path: Path, sha256: str | None = None) -> None:
    """Download an object to a file, whole or not at all.

    Args:
        sha256: hexadecimal hash of the expected content; by default from the object's writer or S3.

    Raises:
        StorageError: `path` is unchanged.
        OSError: the file cannot be written.
    """
    uri = S3Uri.parse(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    with wait_for_lock(path):
        for attempt in range(1, TRIES + 1):
            info = head(uri)
            partial = path.with_name(f".{path.name}.{hash_value([str(uri), info.etag, info.bytes])[:8]}.part")
            for other in set(path.parent.glob(f".{glob.escape(path.name)}.*.part")) - {partial}:
                other.unlink()
            try:
                _fetch_missing(uri, info, partial)
                _verify(uri, info, partial, sha256)
            except ChangedError:
                partial.unlink()
                if attempt == TRIES:
                    raise
            except OSError as error:  # the error of a write lacks the file name
                raise OSError(error.errno, error.strerror, str(path)) from None
            else:
                partial.replace(path)
                return


def _fetch_missing(uri: S3Uri, info: ObjectInfo, partial: Path) -> None:
    def read(start: int) -> bytes:
        return read_object(uri, start, min(RANGE_BYTES, info.bytes - start), info.etag)

    with partial.open("ab") as file:
        done = file.tell() // RANGE_BYTES * RANGE_BYTES
        file.truncate(done)
        for content in pipelined(read, range(done, info.bytes, RANGE_BYTES), window=PREFETCH):
            file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _verify(uri: S3Uri, info: ObjectInfo, partial: Path, sha256: str | None) -> None:
    expected = sha256 or info.sha256 or info.crc32
    if expected is None:  # no checksum is known; each range had the requested length
        return
    actual = hash_file(partial) if sha256 or info.sha256 else _crc32(partial)
    if actual != expected:
        raise ChangedError(
            f"{uri}: its content has the checksum {actual}, not {expected}, in {TRIES} tries; put the right one there"
        )


def _crc32(path: Path) -> str:
    total = 0
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            total = zlib.crc32(chunk, total)
    return base64_of(total.to_bytes(4))
