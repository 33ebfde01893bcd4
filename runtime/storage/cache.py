"""Copies on a local disk of what lies in S3, within `AUTOFORMER_STAGING_GB`, shared by the processes of a machine.

    <AUTOFORMER_STAGING>/<key>/   one folder of S3 as it was, by names, sizes and ETags
      used                        locked by each process that reads the copy; the time of the last that began to
      content, have               archives one behind the other in a sparse file, and a byte for each piece of it: 1
                                  once the piece is on the disk
      files/…                     or the files of a data folder, each whole

One process of a machine writes pieces at a time. Room is made by removing the copies that were used longest ago, none
of which a process reads.
"""

import contextlib
import mmap
import os
import shutil
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple, Self

from autoformer.files import hash_value
from autoformer.images.source import ByteRange
from autoformer.locks import lock
from runtime.common.processes import gigabytes_in_environment
from runtime.common.workspace import work_root
from runtime.storage.objects import Entry

PIECE = 8 << 20  # bytes
STAGING_GB = 10.0  # where nobody says otherwise
_USED = "used"


def staging_root() -> Path:
    """The folder of all copies: `AUTOFORMER_STAGING`, else in the work folder."""
    return Path(os.environ.get("AUTOFORMER_STAGING") or work_root() / "staged")


def staging_bytes() -> int:
    """What all copies of a machine may take: `AUTOFORMER_STAGING_GB`. No result depends on it."""
    return gigabytes_in_environment("AUTOFORMER_STAGING_GB", STAGING_GB)


def taken_bytes() -> int:
    """What all copies take of the disk."""
    return sum(_taken(copy) for copy in _copies())


def _copies() -> list[Path]:
    root = staging_root()
    return [item for item in root.iterdir() if item.is_dir()] if root.is_dir() else []


def _taken(copy: Path) -> int:
    total = 0
    for file in copy.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += file.lstat().st_blocks * 512
    return total


class Hold:
    """A place for a copy, which stays as long as this lives; made where there is none.

    Args:
        key: of what is copied; another for other content.
    """

    def __init__(self, key: str) -> None:
        self.folder = staging_root() / key
        with _alone():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._used = (self.folder / _USED).open("ab")
            lock(self._used, shared=True)
        os.utime(self.folder / _USED)

    def filling(self) -> contextlib.AbstractContextManager[None]:
        """Alone among the processes that fill this copy."""
        return _locked(self.folder / "filling")


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("ab") as opened:
        lock(opened)
        yield


def _alone() -> contextlib.AbstractContextManager[None]:
    """Alone among the processes that add or remove copies."""
    staging_root().mkdir(parents=True, exist_ok=True)
    return _locked(staging_root() / "lock")


def make_room(wanted: int) -> int:
    """Remove copies that nobody reads, the one used longest ago first, until so many bytes are free or none is left.

    Returns:
        the bytes that may be written.
    """
    with _alone():
        free = staging_bytes() - taken_bytes()
        for copy in sorted(_copies(), key=_last_used):
            if free >= wanted:
                break
            with (copy / _USED).open("ab") as used:
                if lock(used, wait_seconds=0):
                    free += _taken(copy)
                    shutil.rmtree(copy, ignore_errors=True)
    return max(0, free)


def _last_used(copy: Path) -> float:
    try:
        return (copy / _USED).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def pieces_of(archive: str, size: int) -> Iterator[ByteRange]:
    """All pieces of an archive, in their order."""
    return (ByteRange(archive, start, min(PIECE, size - start)) for start in range(0, size, PIECE))


class _Span(NamedTuple):
    first: int  # piece
    size: int  # bytes


class LocalCopy:
    """What a local disk has of some archives, in pieces. Shared by threads, and by processes that are forked."""

    def __init__(self, hold: Hold, archives: Iterable[Entry]) -> None:
        self._hold, self._spans, pieces = hold, {}, 0
        for entry in archives:
            self._spans[entry.name] = _Span(pieces, entry.bytes)
            pieces += -(-entry.bytes // PIECE)
        self._content = _sized(hold.folder / "content", pieces * PIECE)
        have = _sized(hold.folder / "have", max(pieces, 1))
        self._have = mmap.mmap(have, max(pieces, 1))
        os.close(have)

    @classmethod
    def open(cls, folder: str, archives: Sequence[Entry]) -> Self:
        """The copy of some archives of a folder, as they are now."""
        return cls(Hold(hash_value(["archives", folder, archives])[:16]), archives)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            os.close(self._content)

    @property
    def archives(self) -> Collection[str]:
        return self._spans.keys()

    def missing(self, archives: Iterable[str]) -> list[ByteRange]:
        """The pieces of some archives that are not here."""
        pieces = (piece for name in archives for piece in pieces_of(name, self._spans[name].size))
        return [piece for piece in pieces if not self.has(*piece)]

    def has(self, archive: str, offset: int, size: int) -> bool:
        span = self._spans.get(archive)
        if span is None or size <= 0 or offset + size > span.size:
            return False
        first, last = span.first + offset // PIECE, span.first + (offset + size - 1) // PIECE
        return all(self._have[piece] for piece in range(first, last + 1))

    def read(self, archive: str, offset: int, size: int) -> bytes | None:
        """What lies there; None where it is not here."""
        if not self.has(archive, offset, size):
            return None
        return os.pread(self._content, size, self._spans[archive].first * PIECE + offset)

    def put(self, piece: ByteRange, content: bytes) -> None:
        """Have a piece from now on, also after a machine that loses its power."""
        number = self._spans[piece.archive].first + piece.offset // PIECE
        _write(self._content, content, number * PIECE)
        os.fdatasync(self._content)
        self._have[number] = 1

    def forget(self, archive: str, offset: int, size: int) -> None:
        """Have the pieces no more in which that lies."""
        if size > 0 and self.has(archive, offset, size):
            first = self._spans[archive].first
            for number in range(first + offset // PIECE, first + (offset + size - 1) // PIECE + 1):
                self._have[number] = 0


def _sized(file: Path, size: int) -> int:
    """A descriptor of a file that is at least so long; what was never written takes no room."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    if os.fstat(descriptor).st_size < size:
        os.ftruncate(descriptor, size)
    return descriptor


def _write(descriptor: int, content: bytes, offset: int) -> None:
    left = memoryview(content)
    while left:
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written


class Writer:
    """The one process of a machine that writes pieces, as long as this lives; its threads may share it."""

    def __init__(self, copy: LocalCopy, locked: IO[bytes], room: int) -> None:
        self._copy, self._locked, self._room = copy, locked, room
        self._counting, self._full = threading.Lock(), False

    @classmethod
    def take(cls, copy: LocalCopy) -> Self | None:
        """None where another process writes."""
        file = (staging_root() / "writer").open("ab")
        if not lock(file, wait_seconds=0):
            file.close()
            return None
        return cls(copy, file, make_room(sum(piece.size for piece in copy.missing(copy.archives))))

    def close(self) -> None:
        """Let another process write."""
        self._full = True
        self._locked.close()

    @staticmethod
    def busy() -> bool:
        """Whether there is one."""
        with (staging_root() / "writer").open("ab") as file:
            return not lock(file, wait_seconds=0)

    @property
    def full(self) -> bool:
        """Whether a piece has found no room."""
        return self._full

    def keep(self, piece: ByteRange, content: bytes) -> bool:
        """Put a piece into the copy; False where there is no room for it, or it is none of a tar."""
        if piece.archive not in self._copy.archives:
            return False
        with self._counting:
            if self._full or self._room < len(content):
                self._full = True
                return False
            self._room -= len(content)
        try:
            self._copy.put(piece, content)
        except OSError:  # the disk is full: the copy stays as it is
            self._full = True
            return False
        return True
