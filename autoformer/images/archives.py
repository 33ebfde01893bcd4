"""Random access to image files inside uncompressed archives. Torch-free."""

import os
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt
from PIL import Image

from autoformer.errors import AutoFormerError, quantity
from autoformer.files import check_regular
from autoformer.images.pixel_rule import PixelRule
from autoformer.images.pixels import DEFAULT, open_image, to_channels
from autoformer.images.source import ByteRange, archive_folder
from autoformer.images.split_files import Split

PREFETCH_IMAGES = 512  # images that are read concurrently from a remote archive
OPEN_FILES = 128  # per process; in a folder tree each image file is an archive

Reader = Callable[[str, int, int], bytes]  # archive name, offset, size in bytes -> content


@runtime_checkable
class RemoteReader(Protocol):
    """A reader of remote archives, with high latency.

    Picklable, and safe to share between threads and forked processes.
    """

    def __call__(self, archive: str, offset: int, size: int, /) -> bytes:
        """The bytes of a range. Raises `AutoFormerError` if they cannot be read."""

    def size_of(self, archive: str) -> int:
        """Bytes of an archive. Raises `AutoFormerError` if there is none of that name."""

    def prefetch(self, places: Sequence[ByteRange]) -> None:
        """Start to read these ranges concurrently. The caller reads them before it calls `prefetch` again."""

    def reread(self, archive: str, offset: int, size: int) -> bytes:
        """Read a range from the remote archive itself, not from a local copy."""


class FileReader:
    """Reads archives in a folder.

    Picklable, and safe to share between threads and forked processes: `pread` has no shared position, and a file that
    another thread still reads is closed afterwards.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = lru_cache(OPEN_FILES)(_File)

    def __call__(self, archive: str, offset: int, size: int) -> bytes:
        """The bytes of a range; fewer than `size` at the end of the archive."""
        file = self._file(self._folder / archive)  # this reference keeps it open
        return os.pread(file.descriptor, size, offset)

    def __reduce__(self) -> tuple[type[Self], tuple[Path]]:
        return type(self), (self._folder,)


class _File:
    """An open file, closed with its last reference."""

    def __init__(self, path: Path) -> None:
        try:
            check_regular(path)
            self.descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise AutoFormerError(f"{path}: no such archive; `make data` fetches it") from None

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class EncodedImages:
    """The image files of some rows of a split, read and decoded on demand.

    Picklable, and safe to share between threads and forked processes if its reader is. It holds a few flat arrays,
    which forked workers share. Python objects per image would have reference counts, and writing them would copy the
    memory into each worker.

    Args:
        data: the folder of the archives, or of the `source.yaml` that names it.
        rows: archive, offset and size of each image.
        channels: 1 for grey, 3 for RGB; other modes are converted.
        upright: apply the EXIF orientation.
        verify: check each file against the checksum of its row, for archives without a checksum. Always with a
            `RemoteReader`: a remote archive is not hashed as a whole.
        reader: by default `FileReader` of the folder.
        rule: conversion of transparent pixels, and of pixels with more than 8 bits.
    """

    def __init__(
        self,
        data: Path,
        rows: Split,
        channels: int,
        upright: bool = True,
        verify: bool = False,
        reader: Reader | None = None,
        rule: PixelRule = DEFAULT,
    ) -> None:
        names, archive = np.unique(rows.archives, return_inverse=True)
        self._names = np.array([str(name).encode() for name in names])  # a quarter of the size of numpy's str
        self._archive = archive.astype(np.int32)
        self._offsets, self._sizes = rows.offsets.astype(np.int64), rows.sizes.astype(np.int32)
        self.channels, self.upright, self.rule = channels, upright, rule
        self._reader = reader or FileReader(archive_folder(data))
        self._checksums = rows.checksums if verify or isinstance(reader, RemoteReader) else None

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def archives(self) -> list[str]:
        """Names of the archives, sorted."""
        return [name.decode() for name in self._names.tolist()]

    def read(self, index: int) -> bytes:
        """The bytes of one image file. Raises `AutoFormerError` if they are incomplete or have another checksum."""
        place = self._place(index)
        content = self._reader(*place)
        if self._is_valid(index, content):
            return content
        if isinstance(self._reader, RemoteReader):  # a local copy may be damaged
            content = self._reader.reread(*place)
        if len(content) != place.size:
            raise AutoFormerError(
                f"{place.archive}: no {quantity(place.size, 'byte')} at offset {place.offset}; the archive and the "
                "split do not belong together, run prepare_data again"
            )
        if not self._is_valid(index, content):
            raise AutoFormerError(
                f"{place.archive}: another image than the one that was indexed; put that back, or run prepare_data "
                "again"
            )
        return content

    def prefetch(self, indices: Iterable[int]) -> None:
        """Let a remote reader start to read the next images. Changes no result."""
        if isinstance(self._reader, RemoteReader):
            self._reader.prefetch([self._place(index) for index in indices])

    def image(self, index: int) -> Image.Image:
        """One image, grey or RGB, at its stored size."""
        return to_channels(open_image(self.read(index), upright=self.upright), self.channels, self.rule)

    def _place(self, index: int) -> ByteRange:
        name = self._names[self._archive[index]].decode()
        return ByteRange(name, int(self._offsets[index]), int(self._sizes[index]))

    def _is_valid(self, index: int, content: bytes) -> bool:
        if len(content) != self._sizes[index]:
            return False
        return self._checksums is None or sha256(content).hexdigest().encode() == self._checksums[index]


class EncodedSplit(NamedTuple):
    """A split whose images are decoded on demand."""

    pictures: EncodedImages
    labels: npt.NDArray[np.int64]  # (n,)
