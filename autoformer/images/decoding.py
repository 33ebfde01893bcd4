"""From pictures by number to pixels: a whole picture, or a crop of it at the least scale that it needs.

Letters in shapes: C channels, S pixels on a side of what the model sees, h and w pixels of a crop.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import decode_jpeg

from autoformer.images.archives import EncodedImages
from autoformer.images.cache import SCALES, ImageInfo, PixelCache, Pixels
from autoformer.images.pixels import MODES, one_line, open_header, open_image, to_channels

GAP = 2.0  # pixels that a crop has to a side, decoded at a part of its size, for each that it is resized to
_ORIENTATION = 0x0112  # EXIF


class Box(NamedTuple):
    """A part of a picture, in pixels."""

    left: int
    top: int
    width: int
    height: int


class Pictures(Protocol):
    """Images that are decoded one at a time, as `autoformer.images.archives.EncodedImages` are."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image: ...


class Decoder:
    """Decodes pictures; what fits the budget is decoded once.

    Args:
        pictures: n of them. `EncodedImages` are kept, and JPEG files among them decoded at a part of their size;
            others are taken as they are.
        budget: bytes of memory in which decoded pictures are kept. No result depends on it.
    """

    def __init__(self, pictures: Pictures, budget: int = 0) -> None:
        self._pictures = pictures
        self._kept = None
        if budget and isinstance(pictures, EncodedImages):
            self._kept = PixelCache(len(pictures), pictures.channels, budget)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_kept": None}  # another machine, or a process that is not forked: none shared

    def prefetch(self, indices: Iterable[int]) -> None:
        """Say which pictures are wanted next: see `EncodedImages.prefetch`."""
        if isinstance(self._pictures, EncodedImages):
            self._pictures.prefetch(index for index in indices if not (self._kept and self._kept.has(index)))

    def image(self, index: int) -> Image.Image:
        """A whole picture, grey or RGB."""
        if self._kept is None:
            return self._pictures.image(index)
        pixels = self._whole(index)
        return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)

    def crop(self, index: int, draw: Callable[[int, int], Box], side: int) -> Tensor:
        """The part of a picture that `draw` names when it is told width and height: uint8 (C, h, w), a view.

        A JPEG file is decoded at a half, a quarter or an eighth of its size where the crop then still has `GAP`
        times `side` pixels both ways; then the edges of the crop are moved to whole pixels, by half of one at most.
        """
        if not isinstance(self._pictures, EncodedImages):
            pixels = _pixels(self._pictures.image(index))
            return _cut(pixels, draw(pixels.shape[1], pixels.shape[0]), 1)
        picture = _Encoded(self._pictures, index, self._kept)
        box = draw(picture.facts.width, picture.facts.height)
        scale = least_scale(box, side) if picture.facts.reducible else 1
        return _cut(picture.pixels(scale), box, scale)

    def _whole(self, index: int) -> Pixels:
        assert isinstance(self._pictures, EncodedImages)
        return _Encoded(self._pictures, index, self._kept).pixels(1)


def least_scale(box: Box, side: int) -> int:
    """The largest divisor of its picture's sides at which a crop has enough pixels to be resized to `side`."""
    return max(scale for scale in SCALES if scale == 1 or min(box.width, box.height) >= GAP * side * scale)


class _Encoded:
    """One picture out of an archive, of which no more is read and decoded than is asked for."""

    def __init__(self, pictures: EncodedImages, index: int, kept: PixelCache | None) -> None:
        self._pictures, self._index, self._kept = pictures, index, kept
        self._content: bytes | None = None
        self._header: Image.Image | None = None
        self._whole: Pixels | None = None
        facts = kept.facts(index) if kept else None
        self.facts = facts or self._read_facts()
        if kept and not facts:
            kept.note(index, self.facts)

    def pixels(self, scale: int) -> Pixels:
        """(h, w, C), not to be written to; `scale` is 1 where the picture is not reducible."""
        pixels = self._kept.get(self._index, scale) if self._kept else None
        if pixels is None:
            pixels = self._decode(scale)
            if self._kept:
                self._kept.put(self._index, scale, pixels)
        return pixels

    def _read_facts(self) -> ImageInfo:
        content = self._read()
        with one_line(f"image of {len(content)} bytes"):
            header = open_header(content)
            turned = self._pictures.upright and header.getexif().get(_ORIENTATION, 1) != 1
            plain = header.format == "JPEG" and header.mode == MODES[self._pictures.channels]
            if plain and not turned:
                self._header = header
                return ImageInfo(*header.size, reducible=True)
        self._whole = _pixels(to_channels(open_image(content, upright=self._pictures.upright), self._pictures.channels))
        return ImageInfo(self._whole.shape[1], self._whole.shape[0], reducible=False)

    def _read(self) -> bytes:
        if self._content is None:
            self._content = self._pictures.read(self._index)
        return self._content

    def _decode(self, scale: int) -> Pixels:
        if not self.facts.reducible:
            if self._whole is None:
                self._read_facts()
            assert self._whole is not None
            return self._whole
        content = self._read()
        if scale == 1:
            try:  # the same library as Pillow's, the same pixels, two thirds of the time
                return decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8)).permute(1, 2, 0).numpy()
            except RuntimeError:  # a damaged file: Pillow decodes more of them, and says what it does not
                return _pixels(open_image(content, upright=False))
        with one_line(f"image of {len(content)} bytes"):
            header = self._header or open_header(content)
            header.draft(None, (header.width // scale, header.height // scale))
            return _pixels(header)


def _pixels(image: Image.Image) -> Pixels:
    array = np.array(image)
    return array[:, :, None] if array.ndim == 2 else array


def _cut(pixels: Pixels, box: Box, scale: int) -> Tensor:
    """uint8 (C, h, w), a view of pixels (height, width, C) that were decoded at a part of the picture's size."""
    edges = box.left, box.top, box.left + box.width, box.top + box.height
    left, top, right, bottom = (math.floor(edge / scale + 0.5) for edge in edges)
    return torch.from_numpy(pixels[top:bottom, left:right]).permute(2, 0, 1)
