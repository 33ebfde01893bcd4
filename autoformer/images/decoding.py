"""Decode images by number: a whole image, or a crop at the smallest scale with enough pixels.

Dimensions: C channels, S pixels on a side of the model's input, h and w pixels of a crop.
"""

import math
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import decode_jpeg

from autoformer.errors import quantity
from autoformer.images.archives import EncodedImages
from autoformer.images.cache import SCALES, ImageInfo, PixelCache, Pixels
from autoformer.images.opening import orientation, with_image
from autoformer.images.pixels import MODES, open_image, pillow_errors, to_channels

GAP = 2.0  # pixels per side of a crop decoded at a smaller scale, for each pixel of the resized crop


class Box(NamedTuple):
    """A crop, in pixels of the whole image."""

    left: int
    top: int
    width: int
    height: int


class Pictures(Protocol):
    """Images by number, decoded on demand, such as `autoformer.images.archives.EncodedImages`."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image: ...


class Decoder:
    """Decodes images, and caches them within a budget.

    Args:
        pictures: only `EncodedImages` are cached, and only their JPEG files decoded at a smaller scale.
        budget: bytes of the cache. No result depends on it.
    """

    def __init__(self, pictures: Pictures, budget: int = 0) -> None:
        self._pictures = pictures
        self._cache = None
        if budget and isinstance(pictures, EncodedImages):
            self._cache = PixelCache(len(pictures), pictures.channels, budget)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_cache": None}  # only forked processes share it

    def prefetch(self, indices: Iterable[int]) -> None:
        """Prefetch the next images; see `EncodedImages.prefetch`."""
        if isinstance(self._pictures, EncodedImages):
            self._pictures.prefetch(index for index in indices if not (self._cache and self._cache.has(index)))

    def image(self, index: int) -> Image.Image:
        """A whole image, grey or RGB."""
        if self._cache is None or not isinstance(self._pictures, EncodedImages):
            return self._pictures.image(index)
        pixels = _EncodedImage(self._pictures, index, self._cache).pixels(1)
        return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)

    def crop(self, index: int, draw: Callable[[int, int], Box], side: int) -> Tensor:
        """The crop that `draw(width, height)` returns: uint8 (C, h, w), a view.

        A JPEG file is decoded at a half, a quarter or an eighth of its size if the crop then still has `GAP` times
        `side` pixels in width and height. The edges of the crop then move by at most half a pixel, to whole pixels.
        """
        if not isinstance(self._pictures, EncodedImages):
            pixels = _to_array(self._pictures.image(index))
            return _cut(pixels, draw(pixels.shape[1], pixels.shape[0]), 1)
        image = _EncodedImage(self._pictures, index, self._cache)
        box = draw(image.info.width, image.info.height)
        scale = least_scale(box, side) if image.info.reducible else 1
        return _cut(image.pixels(scale), box, scale)


def least_scale(box: Box, side: int) -> int:
    """The largest divisor of the image's sides at which a crop has enough pixels to be resized to `side`."""
    return max(scale for scale in SCALES if scale == 1 or min(box.width, box.height) >= GAP * side * scale)


class _EncodedImage:
    """One image of an archive. It is read, parsed and decoded on demand, and each at most once."""

    def __init__(self, images: EncodedImages, index: int, cache: PixelCache | None) -> None:
        self._images, self._index, self._cache = images, index, cache

    @cached_property
    def info(self) -> ImageInfo:
        info = self._cache.info(self._index) if self._cache else None
        if info is None:
            info = self._read_info()
            if self._cache:
                self._cache.set_info(self._index, info)
        return info

    def pixels(self, scale: int) -> Pixels:
        """Pixels (h, w, C), read-only. `scale` must be 1 unless the image is reducible."""
        pixels = self._cache.get(self._index, scale) if self._cache else None
        if pixels is None:
            pixels = self._decode(scale) if self.info.reducible else self._whole
            if self._cache:
                self._cache.put(self._index, scale, pixels)
        return pixels

    @cached_property
    def _content(self) -> bytes:
        return self._images.read(self._index)

    @cached_property
    def _whole(self) -> Pixels:
        image = open_image(self._content, upright=self._images.upright)
        return _to_array(to_channels(image, self._images.channels, self._images.rule))

    def _read_info(self) -> ImageInfo:
        with pillow_errors(f"image of {quantity(len(self._content), 'byte')}"):
            if info := with_image(self._content, self._info_of_jpeg):
                return info
        return ImageInfo(self._whole.shape[1], self._whole.shape[0], reducible=False)

    def _info_of_jpeg(self, header: Image.Image) -> ImageInfo | None:
        turned = self._images.upright and orientation(header) != 1
        if header.format == "JPEG" and header.mode == MODES[self._images.channels] and not turned:
            return ImageInfo(*header.size, reducible=True)
        return None

    def _decode(self, scale: int) -> Pixels:
        if scale == 1:
            try:  # torchvision uses the same library as Pillow, for the same pixels, in two thirds of the time
                encoded = torch.frombuffer(bytearray(self._content), dtype=torch.uint8)
                return decode_jpeg(encoded).permute(1, 2, 0).numpy()
            except RuntimeError:  # damaged file: Pillow decodes more of these, and its errors are clearer
                return _to_array(open_image(self._content, upright=False))
        with pillow_errors(f"image of {quantity(len(self._content), 'byte')}"):
            return with_image(self._content, partial(_reduced, scale=scale))


def _reduced(image: Image.Image, scale: int) -> Pixels:
    image.draft(None, (image.width // scale, image.height // scale))
    return _to_array(image)


def _to_array(image: Image.Image) -> Pixels:
    array = np.array(image)
    return array[:, :, None] if array.ndim == 2 else array


def _cut(pixels: Pixels, box: Box, scale: int) -> Tensor:
    """uint8 (C, h, w), a view of the pixels (height, width, C) of an image decoded at 1 / scale of its size."""
    edges = box.left, box.top, box.left + box.width, box.top + box.height
    left, top, right, bottom = (math.floor(edge / scale + 0.5) for edge in edges)
    return torch.from_numpy(pixels[top:bottom, left:right]).permute(2, 0, 1)
