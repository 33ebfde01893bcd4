"""Objects of S3 into files, whole or not at all: several ranges at once, into a file beside that is renamed at the end.

What has come is noted in a side file, so that a download which was interrupted is gone on with. All ranges are of one
object: each names its ETag. At the end the content is held against the sha256 that the caller or the object names, or
against what S3 has computed.
"""

import base64
import hashlib
import json
import os
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runtime.common.locks import wait_for_lock
from runtime.storage.client import connect
from runtime.storage.errors import BrokenError, ChangedError, DamagedError, body_of, patiently, told
from runtime.storage.objects import Stored, look
from runtime.storage.uris import S3Uri

RANGE_BYTES = 16 * 2**20
PARALLEL = 8  # ranges under way at once
TRIES = 3  # of a whole object that changes, or comes damaged
_CHUNK_BYTES = 2**20


def download(
    uri: S3Uri | str, file: Path, sha256: str | None = None, tell: Callable[[int], None] = lambda done: None
) -> None:
    """Bring an object into a file, in place of what is there.

    Args:
        sha256: of the content that is wanted, hexadecimal; by default what the object says of itself.
        tell: hears how many bytes are there, from several threads.

    Raises:
        StorageError: one line; what stood in the place of `file` still stands there.
        OSError: the file cannot be written.
    """
    uri = S3Uri.of(uri)
    file.parent.mkdir(parents=True, exist_ok=True)
    with wait_for_lock(file):
        for attempt in range(1, TRIES + 1):
            partial = _Partial(uri, file, look(uri))
            try:
                partial.fetch(tell)
                partial.check(sha256)
            except (ChangedError, DamagedError):
                partial.forget()
                if attempt == TRIES:
                    raise
            else:
                partial.settle()
                return


class _Partial:
    """What has come of an object: a file of its size, and beside it the numbers of the ranges that it has."""

    def __init__(self, uri: S3Uri, file: Path, found: Stored) -> None:
        self.uri, self.file, self.found = uri, file, found
        self.content = file.with_name(f".{file.name}.part")
        self.notes = file.with_name(f".{file.name}.part.jsonl")
        self.head = {"uri": str(uri), "etag": found.etag, "bytes": found.bytes, "range_bytes": RANGE_BYTES}
        self.there = self._read()
        self._lock = threading.Lock()

    def fetch(self, tell: Callable[[int], None]) -> None:
        """Bring the ranges that are missing."""
        count = -(-self.found.bytes // RANGE_BYTES)
        missing = [number for number in range(count) if number not in self.there]
        if not self.there:
            self.forget()
        lines = [json.dumps(self.head), *map(str, sorted(self.there))]  # whole ones: the next is added to them
        self.notes.write_text("\n".join(lines) + "\n", encoding="utf-8")
        handle = os.open(self.content, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            os.truncate(handle, self.found.bytes)
            with ThreadPoolExecutor(PARALLEL) as pool:
                waiting = [pool.submit(self._bring, handle, number, tell) for number in missing]
                try:
                    for future in waiting:
                        future.result()
                finally:
                    pool.shutdown(wait=False, cancel_futures=True)
            os.fsync(handle)
        finally:
            os.close(handle)

    def check(self, sha256: str | None) -> None:
        """Raise `DamagedError` unless the content is what was wanted."""
        wanted, compute = self._wanted(sha256)
        computed = compute(self.content)
        if wanted is not None and computed != wanted:
            raise DamagedError(f"{self.uri}: its content has the checksum {computed}, not {wanted}, in {TRIES} tries; "
                          "put the right one there")  # fmt: skip

    def settle(self) -> None:
        self.content.replace(self.file)
        self.notes.unlink()

    def forget(self) -> None:
        for file in (self.content, self.notes):
            file.unlink(missing_ok=True)

    def _read(self) -> set[int]:
        """The ranges that an earlier try has brought of this very object."""
        if not (self.content.is_file() and self.notes.is_file()):
            return set()
        lines = self.notes.read_text(encoding="utf-8").split("\n")[:-1]  # a kill may have cut off the last
        if not lines or lines[0] != json.dumps(self.head):
            return set()
        return {int(line) for line in lines[1:] if line.isdecimal()}

    def _bring(self, handle: int, number: int, tell: Callable[[int], None]) -> None:
        patiently(lambda: self._bring_range(handle, number))
        with self._lock:
            with self.notes.open("a", encoding="utf-8") as notes:
                notes.write(f"{number}\n")
            self.there.add(number)
            done = min(len(self.there) * RANGE_BYTES, self.found.bytes)
        tell(done)

    def _bring_range(self, handle: int, number: int) -> None:
        start = number * RANGE_BYTES
        end = min(start + RANGE_BYTES, self.found.bytes)
        asked = {} if (start, end) == (0, self.found.bytes) else {"Range": f"bytes={start}-{end - 1}"}
        with told(self.uri):
            answer = connect().get_object(Bucket=self.uri.bucket, Key=self.uri.key, IfMatch=self.found.etag, **asked)
        if answer["ContentLength"] != end - start:
            raise BrokenError(
                f"{self.uri}: S3 sends {answer['ContentLength']} bytes where {end - start} were asked for"
            )
        place = start
        with answer["Body"] as body:
            while True:
                with body_of(self.uri):
                    chunk = body.read(_CHUNK_BYTES)
                if not chunk:
                    return
                try:
                    os.pwrite(handle, chunk, place)
                except OSError as error:  # which does not name the file
                    raise OSError(error.errno, error.strerror, str(self.file)) from None
                place += len(chunk)

    def _wanted(self, sha256: str | None) -> tuple[str | None, Callable[[Path], str]]:
        """The best checksum that is known of the content, and how it is computed."""
        found = self.found
        if sha256 or found.sha256:
            return sha256 or found.sha256, _sha256
        if found.whole_sha256:
            return base64.b64decode(found.whole_sha256).hex(), _sha256
        if found.whole_crc32:
            return found.whole_crc32, _crc32
        return None, lambda file: ""  # each range had the length that it should have, and that is all that is known


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _crc32(file: Path) -> str:
    total = 0
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            total = zlib.crc32(chunk, total)
    return base64.b64encode(total.to_bytes(4, "big")).decode()
