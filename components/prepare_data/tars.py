"""Read tars once from beginning to end: hashed on the way, and parsed by `tarfile` without seeking or unpacking."""

import hashlib
import tarfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Self

from autoformer.bounds import BOUNDS
from autoformer.errors import AutoFormerError, quantity
from autoformer.files import check_regular
from autoformer.reading import in_short
from runtime.storage.data import ArchiveFile, size_of

CHUNK_BYTES = 4 << 20  # read at once
_BAD_NUMBERS = (ArithmeticError, LookupError, RecursionError, TypeError, ValueError)  # raised for bad headers
_QUEUED_CHUNKS = 4  # maximum chunks waiting for a hash


class HashedStream:
    """A file read forwards; prefetching and hashing run in threads.

    Args:
        hashes: algorithms of `hashlib`.
        progress: called with the bytes read so far.
    """

    def __init__(
        self, path: ArchiveFile, hashes: Sequence[str] = ("sha256",), progress: Callable[[int], None] | None = None
    ) -> None:
        self.path, self.position = path, 0
        self._progress, self._loaded = progress, 0
        self._hashes = [hashlib.new(name, usedforsecurity=False) for name in hashes]
        self._reader, *self._hashers = [ThreadPoolExecutor(1) for _ in (None, *hashes)]
        self._pending: deque[Future[Any]] = deque()
        self._chunk, self._start = b"", 0  # the unread bytes are `_chunk[_start:]`

    def __enter__(self) -> Self:
        if isinstance(self.path, Path):
            check_regular(self.path)
        self._file = self.path.open("rb", buffering=0)
        self._next = self._reader.submit(self._file.read, CHUNK_BYTES)
        return self

    def __exit__(self, *_: object) -> None:
        for thread in (self._reader, *self._hashers):
            thread.shutdown()
        self._file.close()

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer at the end of the file."""
        parts = []
        while size > 0 and (self._start < len(self._chunk) or self._load()):
            parts.append(self._chunk[self._start : self._start + size])
            self._start += len(parts[-1])
            self.position += len(parts[-1])
            size -= len(parts[-1])
        return b"".join(parts)

    def blocks(self, end: int) -> Iterator[bytes]:
        """The bytes up to the position `end`, in blocks."""
        while block := self.read(min(end - self.position, CHUNK_BYTES)):
            yield block

    def finish(self) -> list[str]:
        """Read to the end; return the hexadecimal hashes of the whole file."""
        while self._load():
            pass
        for pending in self._pending:
            pending.result()
        return [digest.hexdigest() for digest in self._hashes]

    def _load(self) -> bool:
        self._chunk, self._start = self._next.result(), 0
        if not self._chunk:
            return False
        self._next = self._reader.submit(self._file.read, CHUNK_BYTES)
        for thread, digest in zip(self._hashers, self._hashes, strict=True):
            self._pending.append(thread.submit(digest.update, self._chunk))
        while len(self._pending) > _QUEUED_CHUNKS * len(self._hashes):
            self._pending.popleft().result()
        self._loaded += len(self._chunk)
        if self._progress:
            self._progress(self._loaded)
        return True


class _Part:
    """The part of a stream up to the byte `end`, as a file object for `tarfile`."""

    def __init__(self, stream: HashedStream, end: int) -> None:
        self._stream, self._end = stream, end
        self.last = b""  # the bytes of the last read

    def tell(self) -> int:
        return self._stream.position

    def seek(self, position: int) -> None:
        for _ in self._stream.blocks(min(position, self._end)):
            pass

    def read(self, size: int) -> bytes:
        if size > BOUNDS.tar_header_bytes:
            raise tarfile.ReadError(f"a header of {quantity(size, 'byte')} at byte {self._stream.position}")
        self.last = self._stream.read(min(size, self._end - self._stream.position))
        return self.last


def members(stream: HashedStream, end: int) -> Iterator[tarfile.TarInfo]:
    """The regular files of the tar that begins at the stream's position and ends at byte `end`.

    The caller may read a member's content, which may be a tar itself; unread content is skipped.

    Raises:
        tarfile.ReadError: not a tar, or damaged or truncated.
    """
    part = _Part(stream, end)
    damaged = "no tar, or a damaged one, at byte"
    try:
        tar: Any = tarfile.TarFile(fileobj=part)  # type: ignore[arg-type]
    except (tarfile.ReadError, *_BAD_NUMBERS):
        raise tarfile.ReadError(f"{damaged} {stream.position - len(part.last)}") from None
    for info in _headers(tar):
        tar.members.clear()  # otherwise tarfile keeps a million of them
        if info.size < 0:
            raise tarfile.ReadError(f"'{info.name}' has {quantity(info.size, 'byte')}")
        if info.issparse():
            raise tarfile.ReadError(f"'{info.name}' is stored sparse; write the tar without --sparse")
        if info.offset_data + info.size > end:
            raise tarfile.ReadError(f"ends within '{info.name}', which extends to byte {info.offset_data + info.size}")
        if info.isreg():
            yield info
    if part.last.strip(b"\0"):  # tarfile treats a damaged header as the end
        raise tarfile.ReadError(f"{damaged} {stream.position - len(part.last)}")


def _headers(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    try:
        yield from tar
    except tarfile.TarError:
        raise
    except _BAD_NUMBERS as error:
        raise tarfile.ReadError(f"a damaged header: {in_short(error)}") from None


def unpack(path: Path, folder: Path) -> None:
    """Unpack a small tar, compressed or not, of bounded size. Raises `tarfile.TarError` and others."""
    total = 0
    with tarfile.open(path) as tar:
        for info in _headers(tar):
            total += info.size
            if total > BOUNDS.archive_bytes:
                raise tarfile.ReadError(f"holds more than {BOUNDS.archive_bytes >> 20} MB")
            tar.extract(info, folder, filter="data")


class Member(NamedTuple):
    name: str
    offset: int  # first byte in the tar
    size: int
    checksum: str  # sha256
    content: bytes  # empty unless requested


def read_tar(path: ArchiveFile, keep: Callable[[str], bool] = lambda name: False) -> tuple[list[Member], str]:
    """The regular files of an uncompressed tar, in order, and the sha256 of the tar.

    Args:
        keep: whether to return the content of a file of that name.

    Raises:
        AutoFormerError: the tar is missing, compressed or damaged.
    """
    found: list[Member] = []
    try:
        with HashedStream(path) as stream:
            for info in members(stream, size_of(path)):
                digest, content, kept = hashlib.sha256(), bytearray(), keep(info.name)
                if len(found) >= BOUNDS.members or (kept and info.size > BOUNDS.label_bytes):
                    what = (
                        f"'{info.name}' has {quantity(info.size, 'byte')}"
                        if kept
                        else f"more than {BOUNDS.members} files"
                    )
                    raise AutoFormerError(f"{path}: {what}, too much for a label or a tar; repair the tar")
                for block in stream.blocks(info.offset_data + info.size):
                    digest.update(block)
                    if kept:
                        content += block
                found.append(Member(info.name, info.offset_data, info.size, digest.hexdigest(), bytes(content)))
            return found, stream.finish()[0]
    except FileNotFoundError:
        raise AutoFormerError(f"{path}: no such archive; `make data` fetches it") from None
    except tarfile.TarError as error:
        raise AutoFormerError(f"{path}: not readable as a plain tar ({error}); `make data` fetches it again") from None
