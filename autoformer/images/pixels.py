"""From an image file to upright pixels of one size, for packing, training, evaluation and prediction. Torch-free.

Any mode that Pillow reads becomes grey or RGB, transparent parts black. The EXIF orientation is applied. The shorter
side becomes `resized_side` by one antialiased bicubic resize.
"""

import contextlib
import math
import struct
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from autoformer.errors import AutoFormerError
from autoformer.images.opening import MOST_BYTES, name_of, turned_upright, with_image

MODES = {1: "L", 3: "RGB"}
_PIL_ERRORS = (
    OSError, SyntaxError, ValueError, LookupError, TypeError, AttributeError, EOFError, MemoryError, ArithmeticError,
    RuntimeError, struct.error, zlib.error,
)  # fmt: skip
_MOST_16_BIT = 65535
_SMALLEST_WITH_MARGIN = 48
_STRIP_PIXELS = 2**20


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
        most_bytes: of memory; an image that takes more is refused by its header.

    Raises:
        AutoFormerError: no such file, not an image of the formats in `opening.FORMATS`, damaged, or too large.
    """
    with pillow_errors(name_of(source)):
        return with_image(source, partial(_decode, shorter_side=shorter_side, upright=upright), most_bytes)


def image_size(source: Path | bytes) -> tuple[int, int]:
    """Width and height of an image file in pixels, before it is turned upright. Raises `AutoFormerError`."""
    with pillow_errors(name_of(source)):
        return with_image(source, lambda image: image.size)


def _decode(image: Image.Image, shorter_side: int | None, upright: bool) -> Image.Image:
    if shorter_side is not None and min(image.size) > 2 * shorter_side:
        factor = 2 * shorter_side / min(image.size)
        image.draft(None, (math.ceil(image.width * factor), math.ceil(image.height * factor)))
    image.load()
    return turned_upright(image) if upright else image


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


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """Convert an image of any mode to grey (1 channel) or RGB (3); transparent parts become black.

    Raises `AutoFormerError` for pixels of unknown range (floating point, more than 16 bits) and other channel counts.
    """
    if channels not in MODES:
        raise AutoFormerError(f"the model takes images of {channels} channels; image files have 1 or 3")
    if image.mode.startswith("I"):  # 16 bits: Pillow's conversion would clip to white
        array = np.asarray(image)
        if array.min() < 0 or array.max() > _MOST_16_BIT:
            raise AutoFormerError("the image has pixels beyond 16 bits, of unknown range; save it with 8 bits")
        image = Image.fromarray((array >> 8 if array.max() > 255 else array).astype(np.uint8))
    elif image.mode == "F":
        raise AutoFormerError("the image has floating-point pixels, of unknown range; save it with 8 bits a channel")
    if image.mode == "LAB":
        image = image.convert("RGB")  # Pillow has no direct conversion to grey
    if image.has_transparency_data:
        return _over_black(image, MODES[channels])
    return image if image.mode == MODES[channels] else image.convert(MODES[channels])


def _over_black(image: Image.Image, mode: str) -> Image.Image:
    """Strip by strip, since a whole copy of each stage would take four times the image's memory."""
    composed = Image.new(mode, image.size)
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        composed.paste(Image.alpha_composite(Image.new("RGBA", strip.size, "black"), strip).convert(mode), (0, top))
    return composed


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
    image: Image.Image, channels: int, image_size: int, shorter_side: int | None = None
) -> npt.NDArray[np.uint8]:
    """The model's input in evaluation: channels converted, shorter side resized, centre crop; uint8 (C, S, S).

    Equal to torchvision's Resize (bicubic) and CenterCrop, with which the published accuracies were measured.
    `shorter_side`: pixels before the crop; by default `resized_side`.
    """
    resized = resize_shorter_side(to_channels(image, channels), shorter_side or resized_side(image_size))
    return to_pixels(center_crop(resized, image_size))
