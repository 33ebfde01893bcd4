"""Plain tars, read once from beginning to end: where each file in them lies, and what it is."""

import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from autoformer.errors import AutoFormerError
from autoformer.images.split_files import CHECKSUM, Split
from runtime.storage.data import ArchiveFile

_BLOCK = 1 << 20  # bytes read at a time


class Member(NamedTuple):
    name: str
    offset: int  # of its first byte in the tar
    size: int
    checksum: str  # sha256
    content: bytes  # empty unless it was asked for


class Tar(NamedTuple):
    members: list[Member]
    checksum: str  # sha256 of the whole file


def read_tar(path: ArchiveFile, keep: Callable[[str], bool] = lambda name: False) -> Tar:
    """Every file in a tar, in its order; folders, links and special files are passed over.

    Args:
        keep: which files' content is wanted, by name.

    Raises:
        AutoFormerError: it is missing, compressed, damaged or no tar.
    """
    try:
        with path.open("rb") as file:
            reader = _Hashed(file)
            members = list(_members(reader, keep))
            while reader.read(_BLOCK):  # what lies behind the end of the tar is part of the file too
                pass
            return Tar(members, reader.hash.hexdigest())
    except FileNotFoundError:
        raise AutoFormerError(f"{path}: no such archive; `make data` fetches it") from None
    except tarfile.TarError as error:
        raise AutoFormerError(f"{path}: not readable as a plain tar ({error}); `make data` fetches it again") from None


def read_member(path: Path, name: str) -> bytes:
    """One small file out of a .tar.gz. Raises `AutoFormerError` where either is missing or damaged."""
    try:
        with tarfile.open(path, "r:gz") as tar:
            file = tar.extractfile(name)
            if file is None:
                raise KeyError(f"{name} is not a file")
            return file.read()
    except FileNotFoundError:
        raise AutoFormerError(f"{path}: no such archive; `make data` fetches it") from None
    except KeyError as error:
        raise AutoFormerError(f"{path}: {error.args[0]}; `make data` fetches it again") from None
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise AutoFormerError(f"{path}: not readable as a .tar.gz ({error}); `make data` fetches it again") from None


def _members(reader: "_Hashed", keep: Callable[[str], bool]) -> Iterator[Member]:
    with tarfile.open(fileobj=reader, mode="r|", bufsize=_BLOCK) as tar:  # type: ignore[call-overload]
        for info in tar:
            tar.members.clear()  # else it keeps each of a million
            if not info.isfile():
                continue
            stream, hashed, kept = tar.extractfile(info), sha256(), bytearray()
            size = 0
            while block := stream.read(_BLOCK):
                hashed.update(block)
                size += len(block)
                if keep(info.name):
                    kept += block
            if size != info.size:
                raise tarfile.ReadError(f"it ends within {info.name}")
            yield Member(info.name, info.offset_data, info.size, hashed.hexdigest(), bytes(kept))


class _Hashed:
    """A file that hashes what is read of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.hash = file, sha256()

    def read(self, size: int) -> bytes:
        block = self._file.read(size)
        self.hash.update(block)
        return block


def pick(path: Path, tar: Tar, names: Sequence[str]) -> list[Member]:
    """The files of these names in a tar, whatever folders they lie in. Raises `AutoFormerError` naming one it lacks."""
    found = {Path(member.name).name: member for member in tar.members}
    missing = next((name for name in names if name not in found), None)
    if missing is not None:
        raise AutoFormerError(f"{path}: holds no {missing}; `make data` brings it again")
    return [found[name] for name in names]


def as_split(archives: list[str], members: list[Member], labels: list[int]) -> Split:
    """Rows of one file each. All three of one length."""
    return Split(
        archives=np.array(archives, dtype=object),
        offsets=np.array([member.offset for member in members], dtype=np.int64),
        sizes=np.array([member.size for member in members], dtype=np.int32),
        labels=np.array(labels, dtype=np.int32),
        checksums=np.array([member.checksum for member in members], dtype=CHECKSUM),
    )
