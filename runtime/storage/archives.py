"""Archives in a folder of S3, read by ranges: at random by training, from beginning to end by an index.

Cached pieces (see `cache`) are read from the local disk. A separate process stages archives while a model trains:

    python -m runtime.storage.archives s3://bucket/folder train.tar …

It ends when all pieces are cached, the cache is full, another process writes, or its parent ends.

Each request names the ETag of the listing, so all reads get the same version of an archive.
"""

import contextlib
import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from multiprocessing.pool import AsyncResult
from typing import Any

from autoformer.errors import AutoFormerError
from autoformer.images.source import ByteRange
from runtime.storage.cache import PieceCache, pieces_of, staging_bytes
from runtime.storage.client import S3Uri, pipelined, read_object, request_threads
from runtime.storage.errors import ChangedError, MissingError
from runtime.storage.objects import Entry, list_objects

RUNNING: list[subprocess.Popen[bytes]] = []  # staging processes that this process started


class S3Archives:
    """The archives directly in a folder of S3: an `autoformer.images.archives.RemoteReader`.

    Picklable, and safe to share between threads and forked processes. The folder is listed at first use, and the
    listing travels with the pickle; each process has its own connections and threads.
    """

    _in_flight: tuple[int, dict[ByteRange, AsyncResult[bytes]]] = 0, {}  # process id, and its requests

    def __init__(self, folder: str) -> None:
        self.uri = S3Uri.parse(folder)

    def __getstate__(self) -> dict[str, Any]:
        return {"uri": self.uri, "entries": self.entries}

    def __str__(self) -> str:
        return str(self.uri)

    def __truediv__(self, name: str) -> "S3Archive":
        return S3Archive(self, name)

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """The folder's objects by name. Raises `StorageError` if it cannot be listed."""
        return {entry.name: entry for entry in list_objects(self.uri) if "/" not in entry.name}

    @cached_property
    def cache(self) -> PieceCache | None:
        """The local cache; None if there is no tar, or `AUTOFORMER_STAGING_GB` is 0."""
        tars = [entry for name, entry in self.entries.items() if name.endswith(".tar")]
        return PieceCache(str(self.uri), tars) if tars and staging_bytes() else None

    def entry(self, archive: str) -> Entry:
        entry = self.entries.get(archive)
        if entry is None:
            raise MissingError(f"{self.uri / archive}: no such archive; upload it, or correct the location")
        return entry

    def size_of(self, archive: str) -> int:
        return self.entry(archive).bytes

    def __call__(self, archive: str, offset: int, size: int, /) -> bytes:
        """The bytes of a range; fewer than `size` at the end of the archive."""
        place = ByteRange(archive, offset, size)
        process, requests = self._in_flight  # a forked process inherits these, but gets no answers
        result = requests.get(place) if process == os.getpid() else None
        return result.get() if result else self._read(place)

    def prefetch(self, places: Sequence[ByteRange]) -> None:
        submit = request_threads().apply_async
        wanted = [place for place in places if not (self.cache and self.cache.has(*place))]
        self._in_flight = os.getpid(), {place: submit(self._read, (place,)) for place in wanted}

    def reread(self, archive: str, offset: int, size: int) -> bytes:
        if self.cache:
            self.cache.invalidate(archive, offset, size)
        return self._fetch(ByteRange(archive, offset, size))

    def _read(self, place: ByteRange) -> bytes:
        content = self.cache.read(*place) if self.cache else None
        return self._fetch(place) if content is None else content

    def _fetch(self, place: ByteRange) -> bytes:
        entry, uri = self.entry(place.archive), self.uri / place.archive
        size = min(place.size, entry.bytes - place.offset)
        try:
            return read_object(uri, place.offset, size, entry.etag) if size > 0 else b""
        except ChangedError:
            raise ChangedError(
                f"{uri}: another object than when it was listed; run the same command again, or run prepare_data again"
            ) from None

    def pieces(self, archive: str) -> Iterator[bytes]:
        """The pieces of an archive in order, pipelined, and cached while there is space."""
        if self.cache:
            self.cache.acquire()
        return pipelined(self.piece, pieces_of(archive, self.size_of(archive)))

    def piece(self, piece: ByteRange) -> bytes:
        """A piece from the cache, else from S3, which is then cached."""
        is_cached, content = self.cache and self.cache.has(*piece), self._read(piece)
        if self.cache and not is_cached:
            self.cache.write(piece, content)
        return content


class S3Archive:
    """One archive, with the methods of `Path` that readers of archives use."""

    def __init__(self, archives: S3Archives, name: str) -> None:
        self._archives, self.name = archives, name

    def __str__(self) -> str:
        return str(self._archives.uri / self.name)

    def with_name(self, name: str) -> "S3Archive":
        return S3Archive(self._archives, name)

    def is_file(self) -> bool:
        return self.name in self._archives.entries

    @property
    def size(self) -> int:
        return self._archives.size_of(self.name)

    @property
    def state(self) -> Entry:
        return self._archives.entry(self.name)._replace(name=str(self))

    def open(self, mode: str = "rb", buffering: int = -1) -> io.BufferedReader:
        """Open the archive for one read from beginning to end. Raises `MissingError`."""
        assert mode == "rb", "archives are read"
        return io.BufferedReader(_PieceStream(self._archives.pieces(self.name)), max(buffering, 1 << 16))

    def read_bytes(self) -> bytes:
        return b"".join(self._archives.pieces(self.name))

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)


class _PieceStream(io.RawIOBase):
    """Pieces as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        super().__init__()
        self._pieces, self._piece = pieces, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._piece:
            self._piece = memoryview(next(self._pieces, b""))
        size = min(len(buffer), len(self._piece))
        buffer[:size] = self._piece[:size]
        self._piece = self._piece[size:]
        return size


def start_staging(archives: S3Archives, names: Sequence[str]) -> None:
    """Start a process that caches the pieces of some archives; reads use each cached piece."""
    if archives.cache and archives.cache.missing(names):
        command = [sys.executable, "-m", "runtime.storage.archives", str(archives.uri), *names]
        RUNNING.append(subprocess.Popen(command, stdin=subprocess.PIPE))  # the end of its stdin ends it


def stage(archives: S3Archives, names: Sequence[str]) -> None:
    """Cache the missing pieces of some archives while there is space, unless another process does."""
    cache = archives.cache
    if cache and cache.acquire():
        with contextlib.suppress(AutoFormerError), contextlib.closing(cache):  # readers of the images report errors
            for _ in pipelined(archives.piece, cache.missing(names)):
                if cache.is_full:
                    break


def main(argv: Sequence[str]) -> int:
    def end_with_parent() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=end_with_parent, daemon=True).start()
    stage(S3Archives(argv[0]), argv[1:])
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
