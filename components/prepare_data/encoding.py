"""Convert a user's image files to PNGs of one size, upright, opaque, RGB or grey."""

import hashlib
from collections.abc import Iterator, Sequence
from operator import sub
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from autoformer.errors import AutoFormerError
from autoformer.images.pixel_rule import PixelRule
from autoformer.images.pixels import fit, is_transparent, open_whole
from components.prepare_data.near_copies import look_of
from components.prepare_data.png import encode_png

_ROUNDING = 2  # of 255: maximum difference of pixels of one colour after resizing
_DARK = 31  # of 255: the highest value of 5 bits in bytes


class Encoded(NamedTuple):
    content: bytes  # PNG
    sha256: str
    size: tuple[int, int]  # width and height of the original image
    plain: bool  # the image has one colour
    dark: int  # its brightest value if that is low, else 0
    transparent: bool
    unseen: bool  # no pixel of it is opaque in any degree
    frames: bool  # whether the file has further frames or pages
    look: int  # as `near_copies.look_of`


class _Fitted(NamedTuple):
    image: Image.Image
    size: tuple[int, int]
    transparent: bool
    unseen: bool
    frames: bool


def encode_files(paths: Sequence[Path], shorter_side: int, channels: int, rule: PixelRule) -> list[Encoded | str]:
    """Encode each image, or return why it is unreadable. Stage by stage over all files, for the processor's caches."""
    fitted = [_fitted(path, shorter_side, channels, rule) for path in paths]
    return [each if isinstance(each, str) else _encoded(each) for each in fitted]


def _fitted(path: Path, shorter_side: int, channels: int, rule: PixelRule) -> _Fitted | str:
    try:
        upright, size, frames = open_whole(path, shorter_side)
        transparent = is_transparent(upright)
        unseen = transparent and _is_unseen(upright)
        return _Fitted(fit(upright, channels, shorter_side, rule), size, transparent, unseen, frames)
    except AutoFormerError as error:
        return str(error).removeprefix(f"{path}: ")


def _encoded(fitted: _Fitted) -> Encoded:
    content = encode_png(fitted.image)
    sha256 = hashlib.sha256(content).hexdigest()
    corner, middle = _two_pixels(fitted.image)
    plain, dark = _is_plain(fitted.image, corner, middle), _darkness(fitted.image, corner, middle)
    look = 0 if plain else look_of(fitted.image)
    transparent, unseen = fitted.transparent, fitted.unseen
    return Encoded(content, sha256, fitted.size, plain, dark, transparent, unseen, fitted.frames, look)


def _two_pixels(image: Image.Image) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The first pixel and the one in the middle: they decide about most images, at a tenth of the cost."""
    pixels: Any = image.load()
    corner, middle = pixels[0, 0], pixels[image.width // 2, image.height // 2]
    return (corner, middle) if isinstance(corner, tuple) else ((corner,), (middle,))


def _darkness(image: Image.Image, *some: tuple[int, ...]) -> int:
    """The brightest value of an image if it is low, else 0. `some`: a few of its pixels."""
    if max(map(max, some)) > _DARK or any(highest > _DARK for _, highest in _extrema(image)):
        return 0
    return max(highest for _, highest in _extrema(image))


def _extrema(image: Image.Image) -> Iterator[tuple[int, int]]:
    """The lowest and the highest value of each channel."""
    return (image.getchannel(band).getextrema() for band in image.getbands())  # type: ignore[misc]


def _is_unseen(image: Image.Image) -> bool:
    return "A" in image.getbands() and image.getchannel("A").getextrema()[1] == 0


def _is_plain(image: Image.Image, corner: tuple[int, ...], middle: tuple[int, ...]) -> bool:
    """Whether the image has one colour. `corner` and `middle`: two of its pixels."""
    if max(map(abs, map(sub, corner, middle))) > _ROUNDING:
        return False
    return all(highest - lowest <= _ROUNDING for lowest, highest in _extrema(image))
