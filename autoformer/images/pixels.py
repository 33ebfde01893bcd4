"""Decode an image file to upright pixels of one size, for packing, training, evaluation and prediction. Torch-free.

Any mode that Pillow reads becomes grey or RGB by one `PixelRule` for all images of a data set and its model. The EXIF
orientation is applied. The shorter side becomes `resized_side` by one antialiased bicubic resize.
"""

import contextlib
import math
import struct
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from autoformer.errors import AutoFormerError
from autoformer.images.image_files import name_of
from autoformer.images.opening import MOST_BYTES, PHOTOMETRIC, turned_upright, with_image
from autoformer.images.pixel_rule import PixelRule

MODES = {1: "L", 3: "RGB"}
_PIL_ERRORS = (
    OSError, SyntaxError, ValueError, LookupError, TypeError, AttributeError, EOFError, MemoryError, ArithmeticError,
    RuntimeError, struct.error, zlib.error,
)  # fmt: skip
WHITE_16_BIT = 65535
OPAQUE = 255
_BITS = "bits"  # in `Image.info`: bits of a colour channel in the file; Pillow keeps the upper 8 of 16
_SAMPLE_FORMAT, _SIGNED = 339, 2  # a TIFF's tag, and its value
_WHITE_IS_ZERO = 0  # of `PHOTOMETRIC`
_COLOUR_MAP, _EXTRA_SAMPLES = 320, 338
_SMALLEST_WITH_MARGIN = 48
_STRIP_PIXELS = 2**20
_MOST_WHOLE = 2**24  # pixels of a transparent image that is reduced before it is made opaque
DEFAULT = PixelRule()


def resized_side(image_size: int) -> int:
    """Pixels of the shorter side before the centre crop: int(256 / 224 * size), the evaluation protocol of ImageNet.

    Images below 48 pixels are not cropped.
    """
    return int(256 / 224 * image_size) if image_size >= _SMALLEST_WITH_MARGIN else image_size


def open_image(
    source: Path | bytes, shorter_side: int | None = None, upright: bool = True, most_bytes: int = MOST_BYTES
) -> Image.Image:
    """Decode an image file, or its bytes; the first frame of several.

    Args:
        shorter_side: of the final image, in pixels. A much larger JPEG is decoded at a half, a quarter or an eighth of
            its size, with at least twice this side.
        upright: apply the EXIF orientation.
        most_bytes: memory limit; a larger image is refused by its header.

    Raises:
        AutoFormerError: no such file, not an image of the formats in `opening.FORMATS`, damaged, or too large.
    """
    with pillow_errors(name_of(source)):
        return with_image(source, partial(_decode, shorter_side=shorter_side, upright=upright), most_bytes)


class Decoded(NamedTuple):
    image: Image.Image
    size: tuple[int, int]  # as `image_size` has it
    frames: bool  # whether the file has further frames or pages; an MPO file's are previews


def open_whole(source: Path | bytes, shorter_side: int) -> Decoded:
    """As `open_image`, with what the file's header states."""

    def decode(image: Image.Image) -> Decoded:
        size, frames = image.size, image.format != "MPO" and bool(getattr(image, "is_animated", False))
        return Decoded(_decode(image, shorter_side, True), size, frames)

    with pillow_errors(name_of(source)):
        return with_image(source, decode)


def image_size(source: Path | bytes) -> tuple[int, int]:
    """Width and height of an image file in pixels, before it is turned upright. Raises `AutoFormerError`."""
    with pillow_errors(name_of(source)):
        return with_image(source, lambda image: image.size)


def _decode(image: Image.Image, shorter_side: int | None, upright: bool) -> Image.Image:
    if shorter_side is not None and min(image.size) > 2 * shorter_side:
        factor = 2 * shorter_side / min(image.size)
        image.draft(None, (math.ceil(image.width * factor), math.ceil(image.height * factor)))
    raw = {_rawmode(tile) for tile in getattr(image, "tile", ())}
    tags = getattr(image, "tag_v2", {})  # of TIFF
    if tags and image.mode in MODES.values() and _SIGNED in np.atleast_1d(tags.get(_SAMPLE_FORMAT, 1)):
        raise AutoFormerError("the image has signed pixels, of unknown range; save it with 8 bits a channel")
    deep = any(";16" in mode for mode in raw) and not image.mode.startswith("I")
    image.load()
    if image.mode == "P" and max(tags.get(_COLOUR_MAP, [WHITE_16_BIT])) <= OPAQUE:  # of 8 bits, as old tools write
        image.putpalette(np.reshape(tags[_COLOUR_MAP], (3, -1)).T.ravel().tolist())
    if deep:
        image.info[_BITS] = 16
    if "transparency" in image.info and image.format == "PNG":
        image.info["transparency"] = _scaled_key(image.info["transparency"], raw)
    if image.mode == "I" and image.format == "PPM":  # Pillow scales it from the file's range to 16 bits
        image = Image.fromarray(np.asarray(image).astype(np.uint16))
    turned = turned_upright(image) if upright else image
    if image.mode == "RGBA" and (image.format == "BMP" or (tags and _EXTRA_SAMPLES not in tags)):
        _, most = turned.getchannel("A").getextrema()
        if most == 0:  # padding: many tools leave it unset
            return turned.convert("RGB")
    if turned.mode.startswith("I;16") and tags.get(PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow inverts 8 bits alone
        return Image.fromarray(WHITE_16_BIT - np.asarray(turned).astype(np.uint16))
    return turned


def _rawmode(tile: Any) -> str:
    return str(tile[3])


def _scaled_key(key: Any, rawmodes: set[str]) -> Any:
    """The transparent colour of a PNG, on the scale of the decoded pixels. Pillow passes it on as the file has it."""
    if isinstance(key, tuple):
        return tuple(value >> 8 for value in key) if "RGB;16B" in rawmodes else key
    for depth in (2, 4):
        if isinstance(key, int) and f"L;{depth}" in rawmodes:
            return key % 2**depth * (OPAQUE // (2**depth - 1))
    return key


@contextlib.contextmanager
def pillow_errors(where: str) -> Iterator[None]:
    """Turn Pillow's errors into an `AutoFormerError` of one line that begins with `where`."""
    try:
        yield
    except AutoFormerError:
        raise
    except FileNotFoundError:
        raise AutoFormerError(f"{where}: no such file") from None
    except IsADirectoryError:
        raise AutoFormerError(f"{where}: a folder, not an image; name the image files") from None
    except PermissionError:
        raise AutoFormerError(f"{where}: may not be read; change its permissions") from None
    except Image.DecompressionBombError:
        raise AutoFormerError(f"{where}: an image of more pixels than Pillow will decode; make it smaller") from None
    except UnidentifiedImageError:
        raise AutoFormerError(f"{where}: not an image that can be read; give a PNG or JPEG file") from None
    except _PIL_ERRORS as error:  # Pillow raises each of them for damaged files
        raise AutoFormerError(f"{where}: a damaged image ({' '.join(str(error).split())})") from None


def is_deep(image: Image.Image) -> bool:
    """Whether a decoded image had 16 bits in a channel."""
    return image.mode.startswith("I;16") or _BITS in image.info


def brightest(image: Image.Image) -> int:
    """The highest value in an image that `is_deep`, on the scale of 16 bits, without alpha and a transparent grey."""
    array, key = np.asarray(image), image.info.get("transparency")
    if "A" in image.getbands():
        array = array[..., :-1]
    elif image.mode.startswith("I;16") and key is not None:
        array = array[array != key]
    return int(array.max(initial=0)) * (257 if _BITS in image.info else 1)


def is_transparent(image: Image.Image) -> bool:
    """Whether a pixel of a decoded image is not opaque."""
    if not image.has_transparency_data:
        return False
    if "A" not in image.getbands():
        return True
    least, _ = image.getchannel("A").getextrema()
    return bool(least < OPAQUE)  # type: ignore[operator]


def to_channels(image: Image.Image, channels: int, rule: PixelRule = DEFAULT) -> Image.Image:
    """Convert an image of any mode to opaque grey (1 channel) or RGB (3) of 8 bits.

    Raises `AutoFormerError` for pixels of unknown range (floating point, more than 16 bits) and other channel counts.
    """
    if channels not in MODES:
        raise AutoFormerError(f"the model takes images of {channels} channels; image files have 1 or 3")
    image = _to_8_bits(image, rule)
    if image.mode == "LAB":
        image = image.convert("RGB")  # Pillow has no direct conversion to grey
    if image.has_transparency_data:
        return _opaque(image, MODES[channels], rule.background)
    return image if image.mode == MODES[channels] else image.convert(MODES[channels])


def _opaque(image: Image.Image, mode: str, background: int) -> Image.Image:
    """Composite an image over the background, in strips: whole copies would take four times the image's memory."""
    composed = Image.new(mode, image.size)
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        ground = Image.new("RGBA", strip.size, (background,) * 3)
        composed.paste(Image.alpha_composite(ground, strip).convert(mode), (0, top))
    return composed


def fit(image: Image.Image, channels: int, shorter_side: int, rule: PixelRule = DEFAULT) -> Image.Image:
    """Convert to `channels`, and resize the shorter side.

    A much larger transparent image is averaged over squares first, premultiplied by alpha: to at least twice this side,
    as `open_image` does with a JPEG.
    """
    image = _to_8_bits(image, rule)
    factor = min(image.size) // (2 * shorter_side)
    if factor > 1 and image.has_transparency_data and image.width * image.height <= _MOST_WHOLE:
        image = (image if image.mode in ("RGBA", "LA") else image.convert("RGBA")).reduce(factor)
    return resize_shorter_side(to_channels(image, channels, rule), shorter_side)


def _to_8_bits(image: Image.Image, rule: PixelRule) -> Image.Image:
    """The image, with 8 bits in a channel. Pillow's own conversion of more would clip to white."""
    if _BITS in image.info and rule.white_level not in (None, WHITE_16_BIT):
        raise AutoFormerError(
            f"a picture of 16 bits in colour, of which the upper 8 can be read, but white is {rule.white_level:g}; "
            "save it with 8 bits a channel"
        )
    if not image.mode.startswith(("I", "F")):
        return image
    white = rule.white_level or (WHITE_16_BIT if image.mode.startswith("I;16") else None)
    kind = "floating-point pixels" if image.mode == "F" else "pixels beyond 16 bits"
    array = np.asarray(image)
    if white is None:
        raise AutoFormerError(
            f"the image has {kind}, of unknown range; save it with 8 bits a channel, or set "
            "prepare_data.white_level to the value that is white"
        )
    if not np.isfinite(array).all() or array.min() < 0:
        raise AutoFormerError(f"the image has {kind} below 0 or not finite; save it with 8 bits a channel")
    scaled = np.empty(array.shape, np.uint8)
    rows = max(1, _STRIP_PIXELS // image.width)  # a whole copy would take four times the image's memory
    for top in range(0, image.height, rows):
        strip = array[top : top + rows]
        if image.mode == "F":
            scaled[top : top + rows] = np.minimum(strip / white, 1) * 255 + 0.5
        else:
            scaled[top : top + rows] = np.minimum(strip.astype(np.int64) * 256 // int(white + 1), 255)  # the upper 8
    grey, key = Image.fromarray(scaled), image.info.get("transparency")
    if isinstance(key, int):
        grey.putalpha(Image.fromarray((array != key).view(np.uint8) * np.uint8(OPAQUE)))
    return grey


def resize_shorter_side(image: Image.Image, pixels: int) -> Image.Image:
    """Resize so that the shorter side has `pixels`; the longer side is rounded down, as in torchvision's Resize."""
    if min(image.size) == pixels:
        return image
    longer = int(pixels * max(image.size) / min(image.size))
    upright = image.width < image.height
    return image.resize((pixels, longer) if upright else (longer, pixels), Image.Resampling.BICUBIC)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The central square of `size` pixels of an image that is at least as large, as in torchvision."""
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def to_pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
    """uint8 (C, height, width)."""
    array = np.array(image)
    return np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def model_pixels(
    image: Image.Image,
    channels: int,
    image_size: int,
    shorter_side: int | None = None,
    rule: PixelRule = DEFAULT,
) -> npt.NDArray[np.uint8]:
    """The model's input in evaluation: channels converted, shorter side resized, centre crop; uint8 (C, S, S).

    Equal to torchvision's Resize (bicubic) and CenterCrop, with which the published accuracies were measured.
    `shorter_side`: pixels before the crop; by default `resized_side`.
    """
    resized = fit(image, channels, shorter_side or resized_side(image_size), rule)
    return to_pixels(center_crop(resized, image_size))
