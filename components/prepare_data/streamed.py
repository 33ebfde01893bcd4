"""A large tar, read once from beginning to end: hashed as its bytes go by, and its members found on the way.

Python's own `tarfile` takes a hundred microseconds for a member, which for a million of them is minutes; here a member
is a header of 512 bytes, of which four fields count. A member may be a tar itself: `members` of that part of the
stream are then its own. Nothing is sought, and nothing is unpacked.
"""

import hashlib
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Self

from autoformer.errors import AutoFormerError
from runtime.storage.data import ArchiveFile

BLOCK = 512  # bytes of a header, and what a member's content is filled up to
CHUNK_BYTES = 4 << 20  # that are read at once
_CHUNKS = 4  # that may wait to be hashed
_REGULAR = b"0\0"
_SIGN = slice(148, 156)


class Member(NamedTuple):
    name: str
    offset: int  # of its content, in the file
    size: int

    @property
    def end(self) -> int:
        return self.offset + self.size


class HashedStream:
    """The bytes of a file in their order. Reading ahead and hashing go on beside what is done with them.

    Args:
        watch: told how many bytes have gone by.
    """

    def __init__(self, path: ArchiveFile, watch: Callable[[int], None] = lambda done: None) -> None:
        self.path, self.position = path, 0
        self._watch = watch
        self._md5, self._sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
        self._threads = [ThreadPoolExecutor(1) for _ in range(3)]
        self._waiting: deque[Future[Any]] = deque()
        self._chunk, self._at = memoryview(b""), 0

    def __enter__(self) -> Self:
        self._file = self.path.open("rb", buffering=0)
        self._next = self._threads[0].submit(self._file.read, CHUNK_BYTES)
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.shutdown()
        self._file.close()

    def read(self, size: int) -> bytes | memoryview:
        """The next bytes. Raises `AutoFormerError` where the file ends before."""
        at = self._at
        if at + size <= len(self._chunk):
            self._at += size
            self.position += size
            return self._chunk[at : at + size]
        parts = [self._chunk[at:]]
        missing = size - len(parts[0])
        while missing:
            if not self._load():
                raise AutoFormerError(
                    f"{self.path}: ends after {self.position + size - missing} bytes, within a file that it holds; "
                    "copy the archive again"
                )
            parts.append(self._chunk[:missing])
            self._at = len(parts[-1])
            missing -= self._at
        self.position += size
        return b"".join(parts)

    def skip_to(self, position: int) -> None:
        while self.position < position:
            self.read(min(position - self.position, CHUNK_BYTES))

    def finish(self) -> tuple[str, str]:
        """Read to the end; md5 and sha256 of the whole file, hexadecimal."""
        self.position += len(self._chunk) - self._at
        while self._load():
            self.position += len(self._chunk)
        while self._waiting:
            self._waiting.popleft().result()
        return self._md5.hexdigest(), self._sha256.hexdigest()

    def _load(self) -> bool:
        """Take the next chunk, and have it hashed; False at the end of the file."""
        content = self._next.result()
        self._chunk, self._at = memoryview(content), 0
        if not content:
            return False
        self._next = self._threads[0].submit(self._file.read, CHUNK_BYTES)
        for thread, found in zip(self._threads[1:], (self._md5, self._sha256), strict=True):
            self._waiting.append(thread.submit(found.update, content))
        while len(self._waiting) > 2 * _CHUNKS:
            self._waiting.popleft().result()
        self._watch(self.position)
        return True


def members(stream: HashedStream, end: int) -> Iterator[Member]:
    """The files of the tar that begins where the stream stands and ends at byte `end` of it.

    What the caller leaves unread of a member, which may be a tar itself, is passed over.

    Raises `AutoFormerError` where that is no tar, or is cut off.
    """
    while stream.position < end:
        header = bytes(stream.read(BLOCK))
        if header[:1] == b"\0":  # blocks of zeros end a tar
            break
        size = _size(header, stream)
        member = Member(header[:100].partition(b"\0")[0].decode(errors="replace"), stream.position, size)
        if member.end > end:
            raise AutoFormerError(
                f"{stream.path}: ends within '{member.name}', which goes on to byte {member.end}; "
                "copy the archive again"
            )
        if header[156] in _REGULAR:
            yield member
        stream.skip_to(min(end, member.end + -size % BLOCK))


def _size(header: bytes, stream: HashedStream) -> int:
    """Bytes of a member's content, once its header is known to be one by the sum of its bytes.

    The low half of an Adler checksum is that sum but for multiples of 65521, a hundred times as fast as `sum`.
    """
    try:
        stated = int(header[_SIGN].strip(b" \0"), 8) + sum(header[_SIGN]) - 8 * ord(" ")
        if stated % 65521 == zlib.adler32(header, 0) & 0xFFFF:
            field = header[124:136]
            return int.from_bytes(field[1:]) if field[0] == 0x80 else int(field.strip(b" \0"), 8)
    except ValueError:
        pass
    raise AutoFormerError(
        f"{stream.path}: no tar, or a damaged one, at byte {stream.position - BLOCK}; copy the archive again"
    )
