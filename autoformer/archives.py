"""Random access to image files inside uncompressed archives, at the offsets that an index gives. Torch-free."""

import os
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from autoformer.dataset import Split, archive_folder
from autoformer.errors import AutoFormerError
from autoformer.images import open_image, to_channels


class EncodedImages:
    """The image files of some rows of a split; each is read and decoded when it is asked for.

    Picklable, and safe to share between threads and forked processes: reads name their position (`pread`).

    Args:
        data: the folder of the archives, or of the card that says where they are.
        rows: which archive, offset and size each image has.
        channels: 1 for grey, 3 for RGB; other modes are converted.
        upright: whether an image is turned as its camera noted.
        verify: hold each file's bytes against its row's checksum, as is right where no archive's checksum vouches.
    """

    def __init__(self, data: Path, rows: Split, channels: int, upright: bool = True, verify: bool = False) -> None:
        names, self._archive = np.unique(rows.archives, return_inverse=True)
        folder = archive_folder(data)
        self._paths = [folder / str(name) for name in names]
        self._offsets, self._sizes, self._channels = rows.offsets, rows.sizes, channels
        self._upright = upright
        self._checksums = rows.checksums if verify else None
        self._files: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._sizes)

    def read(self, index: int) -> bytes:
        """The bytes of one image file. Raises `AutoFormerError` where the archive ends before them."""
        archive, offset, size = int(self._archive[index]), int(self._offsets[index]), int(self._sizes[index])
        if archive not in self._files:
            self._files[archive] = os.open(self._paths[archive], os.O_RDONLY)
        content = os.pread(self._files[archive], size, offset)
        if len(content) != size:
            raise AutoFormerError(
                f"{self._paths[archive]}: no {size} bytes at offset {offset}; the archive and the split do not "
                "belong together, run prepare_data again"
            )
        if self._checksums is not None and sha256(content).hexdigest().encode() != self._checksums[index]:
            raise AutoFormerError(
                f"{self._paths[archive]}: another image than the one that was indexed; put that back, or run "
                "prepare_data again"
            )
        return content

    def image(self, index: int) -> Image.Image:
        """One image, grey or RGB, as large as it is stored."""
        return to_channels(open_image(self.read(index), upright=self._upright), self._channels)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_files": {}}

    def __del__(self) -> None:
        for file in getattr(self, "_files", {}).values():
            os.close(file)


class EncodedSplit(NamedTuple):
    """Images of a split that are decoded when they are wanted."""

    pictures: EncodedImages
    labels: npt.NDArray[np.int64]  # (n,)
