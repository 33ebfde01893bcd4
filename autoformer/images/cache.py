"""A cache of decoded images within a memory budget, shared by the processes that decode. Torch-free.

Dimensions: n images, h and w pixels of an image, C channels.
"""

import mmap
import tempfile
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autoformer.errors import AutoFormerError
from autoformer.locks import process_lock

Pixels = npt.NDArray[np.uint8]  # (h, w, C)

SCALES = (1, 2, 4, 8)  # divisors of an image's sides at which it can be decoded
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Linux's number; Python 3.13 names it


class ImageInfo(NamedTuple):
    width: int
    height: int
    reducible: bool  # can be decoded at a smaller scale


class PixelCache:
    """Decoded images by number and scale, first come first stored, until the budget is used up.

    One anonymous memory map, whose pages are allocated when they are written. Forked workers share it, so an image is
    decoded once for all workers. Each worker uses it from one thread. The lock guards the tables, not the pixels. The
    kernel releases it when its process ends, so a killed worker blocks no other.

    Args:
        images: n.
        channels: C.
        budget: bytes, including the tables.

    Raises:
        AutoFormerError: not enough memory on the machine, or in the budget for the tables.
    """

    def __init__(self, images: int, channels: int, budget: int) -> None:
        self._table_bytes = 8 + 8 * len(SCALES) * images + 4 * 3 * images
        self._table_bytes += -self._table_bytes % 64
        if budget < self._table_bytes:
            raise AutoFormerError(
                f"{budget / 2**30:.3g} GiB to keep images in do not hold the table of {images} of them; "
                f"give {self._table_bytes / 2**30:.2g} GiB and what the images take, or nothing"
            )
        try:
            self._memory = mmap.mmap(-1, budget, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _NO_RESERVE)
        except (OSError, ValueError, OverflowError) as error:
            raise AutoFormerError(f"no {budget / 2**30:.3g} GiB to keep images in: {error}; give less") from None
        self._channels, self.budget = channels, budget
        self._used = np.frombuffer(self._memory, np.int64, 1)  # bytes, without the tables
        offsets = np.frombuffer(self._memory, np.int64, len(SCALES) * images, 8)
        self._offsets = offsets.reshape(images, -1)  # 0 for an image that is not stored
        self._info = np.frombuffer(self._memory, np.int32, 3 * images, 8 + offsets.nbytes).reshape(images, 3)
        self._bytes = np.frombuffer(self._memory, np.uint8)
        self._lock = tempfile.TemporaryFile()  # noqa: SIM115 as long as this lives

    @property
    def used(self) -> int:
        """Bytes of the budget in use."""
        return self._table_bytes + int(self._used[0])

    def info(self, index: int) -> ImageInfo | None:
        with process_lock(self._lock):
            width, height, reducible = self._info[index].tolist()
        return ImageInfo(width, height, bool(reducible)) if width else None

    def set_info(self, index: int, info: ImageInfo) -> None:
        with process_lock(self._lock):
            self._info[index] = info

    def get(self, index: int, scale: int) -> Pixels | None:
        """The pixels of an image whose info is set, if stored; read-only."""
        with process_lock(self._lock):
            offset = int(self._offsets[index, SCALES.index(scale)])
            width, height, _ = self._info[index].tolist()
        return self._at(offset, -(-height // scale), -(-width // scale), self._channels) if offset else None

    def has(self, index: int) -> bool:
        """Whether an image is stored at any scale."""
        with process_lock(self._lock):
            return bool(self._offsets[index].any())

    def put(self, index: int, scale: int, pixels: Pixels) -> None:
        """Store the pixels of an image whose info is set, if there is room."""
        size = pixels.size + -pixels.size % 64
        with process_lock(self._lock):
            offset = self.used
            if self._offsets[index, SCALES.index(scale)] or offset + size > self.budget:
                return
            self._used += size
        self._at(offset, *pixels.shape)[:] = pixels
        with process_lock(self._lock):  # after the pixels are complete: other processes read at any time
            self._offsets[index, SCALES.index(scale)] = offset

    def _at(self, offset: int, *shape: int) -> Pixels:
        return self._bytes[offset : offset + int(np.prod(shape))].reshape(shape)
