"""Write a tar fast, and hash it: the same bytes as tarfile's."""

import hashlib
import struct
import tarfile
from typing import BinaryIO

_HEADER = struct.Struct("100s 24s 12s 12s 8s 356s")  # name, mode and owner, size, time, checksum, the rest
_, _OWNER, _, _TIME, _, _REST = _HEADER.unpack(tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT))
_SUM = sum(_OWNER + _TIME + _REST) + sum(b" " * 8)  # a checksum counts itself as blanks


class Tar:
    """Appends members to a tar, as tarfile does, and hashes it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash, self._written = file, hashlib.sha256(), 0
        self._padding = b""  # zeros behind the last member

    def add(self, name: str, content: bytes) -> int:
        """Append a member with time 0; return the offset of its content."""
        self._write(self._padding + _header(name, len(content)))
        offset = self._written
        self._write(content)
        self._padding = bytes(-len(content) % tarfile.BLOCKSIZE)
        return offset

    def end(self) -> str:
        """Append two empty blocks, and zeros up to a whole record; return the sha256 of the tar."""
        empty = self._padding + bytes(2 * tarfile.BLOCKSIZE)
        self._write(empty + bytes(-(self._written + len(empty)) % tarfile.RECORDSIZE))
        return self._hash.hexdigest()

    def _write(self, content: bytes) -> None:
        self._hash.update(content)
        self._file.write(content)
        self._written += len(content)


def _header(name: str, size: int) -> bytes:
    """The same header as tarfile's, in a tenth of the time."""
    title, digits = name.encode(), b"%011o\0" % size
    checksum = b"%06o\0 " % (_SUM + sum(title) + sum(digits))
    return _HEADER.pack(title, _OWNER, digits, _TIME, checksum, _REST)
