"""Cache of S3 data on the local disk, limited by `AUTOFORMER_STAGING_GB`, shared by the processes of a machine.

    <AUTOFORMER_STAGING>/<key>/   one S3 folder in one state: its names, sizes and ETags
      used                        locked by each reading process; modified when a process begins to read
      content, have               archives one after another in a sparse file, and one byte per piece: 1 if cached
      files/…                     or the files of a data folder

One process of a machine writes pieces at a time. Folders that no process reads are evicted, the least recently used
first.
"""

import contextlib
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from autoformer.files import hash_value
from autoformer.images.source import ByteRange
from autoformer.locks import lock
from runtime.common.locks import wait_for_lock
from runtime.common.processes import gigabytes_in_environment
from runtime.common.workspace import work_root
from runtime.storage.objects import Entry

PIECE = 8 << 20  # bytes
STAGING_GB = 10.0  # by default
_USED = "used"


def staging_root() -> Path:
    """The folder of the cache: `AUTOFORMER_STAGING`, by default in the work folder."""
    return Path(os.environ.get("AUTOFORMER_STAGING") or work_root() / "staged")


def staging_bytes() -> int:
    """The size limit of the cache: `AUTOFORMER_STAGING_GB`. No result depends on it."""
    return gigabytes_in_environment("AUTOFORMER_STAGING_GB", STAGING_GB)


def _disk_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.lstat().st_blocks * 512
    return total


class CacheFolder:
    """A folder of the cache, created if missing, and not evicted while this object exists."""

    def __init__(self, key: str) -> None:
        self.path = staging_root() / key
        with _eviction_lock():
            self.path.mkdir(parents=True, exist_ok=True)
            self._used = (self.path / _USED).open("ab")
            lock(self._used, shared=True)
        os.utime(self.path / _USED)


def _eviction_lock() -> contextlib.AbstractContextManager[None]:
    return wait_for_lock(staging_root() / "cache")


def free_space(wanted: int) -> int:
    """Evict unused folders until `wanted` bytes are free; return the number of free bytes."""

    def last_used(folder: Path) -> float:
        used = folder / _USED
        return used.stat().st_mtime if used.exists() else 0.0

    with _eviction_lock():
        sizes = {path: _disk_bytes(path) for path in staging_root().iterdir() if path.is_dir()}
        free = staging_bytes() - sum(sizes.values())
        for folder in sorted(sizes, key=last_used):
            if free >= wanted:
                break
            with (folder / _USED).open("ab") as used:
                if lock(used, wait_seconds=0):
                    free += sizes[folder]
                    shutil.rmtree(folder, ignore_errors=True)
    return max(0, free)


def pieces_of(archive: str, size: int) -> Iterator[ByteRange]:
    """All pieces of an archive, in order."""
    return (ByteRange(archive, start, min(PIECE, size - start)) for start in range(0, size, PIECE))


class PieceCache(CacheFolder):
    """Cached pieces of the archives of an S3 folder. Threads may share it, and so may forked processes."""

    def __init__(self, uri: str, archives: Sequence[Entry]) -> None:
        super().__init__(hash_value(["archives", uri, archives])[:16])
        self._spans: dict[str, tuple[int, int]] = {}  # archive -> first piece, bytes
        first = 0
        for entry in archives:
            self._spans[entry.name] = first, entry.bytes
            first += -(-entry.bytes // PIECE)
        self._writer: IO[bytes] | None = None
        self._lock, self._space, self.is_full = threading.Lock(), 0, False
        self._content, self._have = (
            os.open(self.path / name, os.O_RDWR | os.O_CREAT, 0o644) for name in ("content", "have")
        )

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # after a failed `__init__`
            os.close(self._content)
            os.close(self._have)

    def missing(self, archives: Iterable[str] | None = None) -> list[ByteRange]:
        """The pieces of some archives, by default of all, that are not cached."""
        names = self._spans if archives is None else archives
        return [piece for name in names for piece in pieces_of(name, self._spans[name][1]) if not self.has(*piece)]

    def _numbers(self, archive: str, offset: int, size: int) -> range:
        """The pieces that contain a range; none if it is not inside an archive of this cache."""
        first, end = self._spans.get(archive, (0, 0))
        if size <= 0 or offset + size > end:
            return range(0)
        return range(first + offset // PIECE, first + (offset + size - 1) // PIECE + 1)

    def has(self, archive: str, offset: int, size: int) -> bool:
        numbers = self._numbers(archive, offset, size)
        return bool(numbers) and os.pread(self._have, len(numbers), numbers.start) == b"\1" * len(numbers)

    def read(self, archive: str, offset: int, size: int) -> bytes | None:
        """The bytes of a range; None if it is not cached."""
        if not self.has(archive, offset, size):
            return None
        return os.pread(self._content, size, self._spans[archive][0] * PIECE + offset)

    def acquire(self) -> bool:
        """Become this machine's only writer of pieces, until `close`; False if there is another one."""
        file = (staging_root() / "writer").open("ab")
        if not lock(file, wait_seconds=0):
            file.close()
            return False
        self._writer, self._space = file, free_space(sum(piece.size for piece in self.missing()))
        self.is_full = False
        return True

    def close(self) -> None:
        self._space = 0
        if self._writer:
            self._writer.close()

    def write(self, piece: ByteRange, content: bytes) -> None:
        """Store a piece durably, if this process is the writer and there is space."""
        numbers = self._numbers(*piece)
        with self._lock:
            self.is_full |= len(content) > self._space
            if not numbers or self.is_full:
                return
            self._space -= len(content)
        try:
            is_whole = os.pwrite(self._content, content, numbers.start * PIECE) == len(content)
            os.fdatasync(self._content)
        except OSError:
            is_whole = False
        if is_whole:
            os.pwrite(self._have, b"\1", numbers.start)
        else:  # the disk is full
            self.is_full = True

    def invalidate(self, archive: str, offset: int, size: int) -> None:
        """Remove the pieces that contain a range."""
        numbers = self._numbers(archive, offset, size)
        os.pwrite(self._have, bytes(len(numbers)), numbers.start)
