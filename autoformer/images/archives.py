"""Random access to image files inside uncompressed archives, at the offsets that an index gives. Torch-free."""

import os
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt
from PIL import Image

from autoformer.errors import AutoFormerError
from autoformer.images.pixels import open_image, to_channels
from autoformer.images.source import ByteRange, archive_folder
from autoformer.images.split_files import Split

PREFETCH_IMAGES = 512  # images that are fetched side by side, where they come from afar
OPEN_FILES = 128  # of a process at once: a tree of loose images is one archive an image

Reader = Callable[[str, int, int], bytes]  # archive name, offset and size in bytes -> what lies there


@runtime_checkable
class RemoteReader(Protocol):
    """A reader of archives that lie elsewhere, each reading of which takes its time.

    Picklable, and safe to share between threads and forked processes.
    """

    def __call__(self, archive: str, offset: int, size: int, /) -> bytes:
        """What lies there. Raises `AutoFormerError` where it cannot be had."""

    def size_of(self, archive: str) -> int:
        """Bytes of an archive. Raises `AutoFormerError` where there is none of that name."""

    def prefetch(self, places: Sequence[ByteRange]) -> None:
        """These are read before the next such call: begin to fetch them, side by side."""

    def reread(self, archive: str, offset: int, size: int) -> bytes:
        """As a call, but from where the archive really lies, whatever copies of it there are nearer by."""


class FileReader:
    """Reads from archives in a folder.

    Picklable, and safe to share between threads and forked processes: reads name their position (`pread`), and a
    file that another thread still reads is closed after that.
    """

    def __init__(self, folder: Path, open_files: int = OPEN_FILES) -> None:
        self._folder, self._open_files = folder, open_files
        self._file = lru_cache(open_files)(_File)

    def __call__(self, archive: str, offset: int, size: int) -> bytes:
        """Fewer bytes than `size` where the archive ends before them."""
        file = self._file(self._folder / archive)  # held until it has been read, whoever else opens what
        return os.pread(file.descriptor, size, offset)

    def __reduce__(self) -> tuple[type[Self], tuple[Path, int]]:
        return type(self), (self._folder, self._open_files)


class _File:
    """An open file, closed when nobody holds it any more."""

    def __init__(self, path: Path) -> None:
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise AutoFormerError(f"{path}: no such archive; `make data` fetches it") from None

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class EncodedImages:
    """The image files of some rows of a split; each is read and decoded when it is asked for.

    Picklable, and safe to share between threads and forked processes, as long as its reader is. What it knows of the
    images are a few flat arrays, which forked workers share: no object an image, whose count of references each
    worker would write to.

    Args:
        data: the folder of the archives, or of the card that says where they are.
        rows: which archive, offset and size each image has.
        channels: 1 for grey, 3 for RGB; other modes are converted.
        upright: whether an image is turned as its camera noted.
        verify: hold each file's bytes against its row's checksum, as is right where no archive's checksum vouches.
            Always so with a `RemoteReader`: an archive that lies elsewhere is not hashed as a whole.
        reader: of archives that lie elsewhere; by default files in that folder are read.
    """

    def __init__(
        self,
        data: Path,
        rows: Split,
        channels: int,
        upright: bool = True,
        verify: bool = False,
        reader: Reader | None = None,
    ) -> None:
        names, archive = np.unique(rows.archives, return_inverse=True)
        self._names = np.array([str(name).encode() for name in names])  # a quarter of what numpy's own text takes
        self._archive = archive.astype(np.int32)
        self._offsets, self._sizes = rows.offsets.astype(np.int64), rows.sizes.astype(np.int32)
        self.channels, self.upright = channels, upright
        self._reader = reader or FileReader(archive_folder(data))
        self._checksums = rows.checksums if verify or isinstance(reader, RemoteReader) else None

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def archives(self) -> list[str]:
        """The archives that hold them, by name, sorted."""
        return [name.decode() for name in self._names.tolist()]

    def read(self, index: int) -> bytes:
        """The bytes of one image file. Raises `AutoFormerError` where the archive ends before them."""
        place = self._place(index)
        content = self._reader(*place)
        if self._is_right(index, content):
            return content
        if isinstance(self._reader, RemoteReader):  # a copy nearer by may be what is damaged
            content = self._reader.reread(*place)
        if len(content) != place.size:
            raise AutoFormerError(
                f"{place.archive}: no {place.size} bytes at offset {place.offset}; the archive and the split do not "
                "belong together, run prepare_data again"
            )
        if not self._is_right(index, content):
            raise AutoFormerError(
                f"{place.archive}: another image than the one that was indexed; put that back, or run prepare_data "
                "again"
            )
        return content

    def prefetch(self, indices: Iterable[int]) -> None:
        """Say which images are read next, so that those from afar come side by side. It changes nothing else."""
        if isinstance(self._reader, RemoteReader):
            self._reader.prefetch([self._place(index) for index in indices])

    def _place(self, index: int) -> ByteRange:
        name = self._names[self._archive[index]].decode()
        return ByteRange(name, int(self._offsets[index]), int(self._sizes[index]))

    def _is_right(self, index: int, content: bytes) -> bool:
        if len(content) != self._sizes[index]:
            return False
        return self._checksums is None or sha256(content).hexdigest().encode() == self._checksums[index]

    def image(self, index: int) -> Image.Image:
        """One image, grey or RGB, as large as it is stored."""
        return to_channels(open_image(self.read(index), upright=self.upright), self.channels)


class EncodedSplit(NamedTuple):
    """Images of a split that are decoded when they are wanted."""

    pictures: EncodedImages
    labels: npt.NDArray[np.int64]  # (n,)
