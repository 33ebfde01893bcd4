"""Memory in which decoded images are kept, within a budget, shared by the processes that decode. Torch-free.

Letters in shapes: n images, h and w pixels of one, C channels.
"""

import mmap
import tempfile
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autoformer.errors import AutoFormerError
from autoformer.locks import among_forks

Pixels = npt.NDArray[np.uint8]  # (h, w, C)

SCALES = (1, 2, 4, 8)  # an image is decoded at its size, or at one of these parts of it
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Linux's number; Python names it from 3.13 on


class ImageInfo(NamedTuple):
    """What has to be known of an image before it is decoded."""

    width: int
    height: int
    reducible: bool  # whether it can be decoded at a part of its size


class PixelCache:
    """Images that were decoded once, by number and scale: the first that come, until the budget is used up.

    One anonymous memory, whose pages are taken from the machine when they are filled. Workers that are forked later
    share it, so an image is decoded once for all of them; each uses it from one thread. A lock that dies with its
    process guards what is said of the images, not their pixels: a worker that is killed stops nobody.

    Args:
        images: n.
        channels: C.
        budget: bytes, of which the table of what lies where is a part.

    Raises:
        AutoFormerError: the machine does not give so much memory, or the budget does not hold the table.
    """

    def __init__(self, images: int, channels: int, budget: int) -> None:
        counts = {"facts": 3 * images, "places": len(SCALES) * images}
        self._first = 8 + 4 * counts["facts"] + 8 * counts["places"]
        self._first += -self._first % 64
        if budget < self._first:
            raise AutoFormerError(
                f"{budget / 2**30:.3g} GiB to keep images in do not hold the table of {images} of them; "
                f"give {self._first / 2**30:.2g} GiB and what the images take, or nothing"
            )
        try:
            self._memory = mmap.mmap(-1, budget, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _NO_RESERVE)
        except (OSError, ValueError, OverflowError) as error:
            raise AutoFormerError(f"no {budget / 2**30:.3g} GiB to keep images in: {error}; give less") from None
        self._channels, self.budget = channels, budget
        self._used = np.frombuffer(self._memory, np.int64, 1)  # bytes after the table
        places = 8 + 8 * counts["places"]
        self._places = np.frombuffer(self._memory, np.int64, counts["places"], 8).reshape(images, -1)  # 0 for none
        self._facts = np.frombuffer(self._memory, np.int32, counts["facts"], places).reshape(images, 3)
        self._bytes = np.frombuffer(self._memory, np.uint8)
        self._lock = tempfile.TemporaryFile()  # noqa: SIM115 as long as this lives

    @property
    def used(self) -> int:
        """Bytes of the budget that are taken."""
        return self._first + int(self._used[0])

    def facts(self, index: int) -> ImageInfo | None:
        with among_forks(self._lock):
            width, height, reducible = self._facts[index].tolist()
        return ImageInfo(width, height, bool(reducible)) if width else None

    def note(self, index: int, facts: ImageInfo) -> None:
        with among_forks(self._lock):
            self._facts[index] = facts

    def get(self, index: int, scale: int) -> Pixels | None:
        """The pixels of an image whose facts are noted; not to be written to."""
        with among_forks(self._lock):
            place = int(self._places[index, SCALES.index(scale)])
        return self._at(place, *self._shape(index, scale)) if place else None

    def has(self, index: int) -> bool:
        """Whether an image is kept, at one scale or several."""
        with among_forks(self._lock):
            return bool(self._places[index].any())

    def put(self, index: int, scale: int, pixels: Pixels) -> None:
        """Keep the pixels of an image whose facts are noted, where there is room."""
        size = pixels.size + -pixels.size % 64
        with among_forks(self._lock):
            place = self.used
            if self._places[index, SCALES.index(scale)] or place + size > self.budget:
                return
            self._used += size
        self._at(place, *pixels.shape)[:] = pixels
        with among_forks(self._lock):  # and not before: another process may look at any moment
            self._places[index, SCALES.index(scale)] = place

    def _shape(self, index: int, scale: int) -> tuple[int, int, int]:
        width, height, _ = self._facts[index].tolist()
        return -(-height // scale), -(-width // scale), self._channels

    def _at(self, place: int, *shape: int) -> Pixels:
        return self._bytes[place : place + int(np.prod(shape))].reshape(shape)
