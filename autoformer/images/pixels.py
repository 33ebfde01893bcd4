"""From an image file to upright pixels of one size, for packing, training, evaluation and prediction. Torch-free.

Any mode that Pillow reads becomes grey or RGB, transparent parts black. The EXIF orientation is applied. The shorter
side becomes `resized_side` by one antialiased bicubic resize.
"""

import contextlib
import io
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from autoformer.errors import AutoFormerError

MODES = {1: "L", 3: "RGB"}
LONGEST_TO_SHORTEST = 30  # the centre crop of a longer strip shows nothing
_PIL_ERRORS = (
    OSError, SyntaxError, ValueError, LookupError, TypeError, AttributeError, EOFError, MemoryError, ArithmeticError,
    RuntimeError, struct.error, zlib.error,
)  # fmt: skip
_MOST_16_BIT = 65535
_SMALLEST_WITH_MARGIN = 48


def resized_side(image_size: int) -> int:
    """Pixels of the shorter side before the centre crop: int(256 / 224 * size), the evaluation protocol of ImageNet.

    Images below 48 pixels are not cropped.
    """
    return int(256 / 224 * image_size) if image_size >= _SMALLEST_WITH_MARGIN else image_size


def open_image(source: Path | bytes, shorter_side: int | None = None, upright: bool = True) -> Image.Image:
    """Decode an image file, or its bytes; the first frame of several.

    Args:
        shorter_side: of the final image, in pixels. A much larger JPEG is decoded at a half, a quarter or an eighth of
            its size, with at least twice this side.
        upright: apply the EXIF orientation.

    Raises:
        AutoFormerError: no such file, or not an image that Pillow can read.
    """
    where = str(source) if isinstance(source, Path) else f"image of {len(source)} bytes"
    with pillow_errors(where):
        image = open_header(source)
        if shorter_side is not None and min(image.size) > 2 * shorter_side:
            factor = 2 * shorter_side / min(image.size)
            image.draft(None, (math.ceil(image.width * factor), math.ceil(image.height * factor)))
        image.load()
        return ImageOps.exif_transpose(image) if upright else image


def open_header(source: Path | bytes) -> Image.Image:
    """Size, mode and metadata of an image file, not decoded. Call inside `pillow_errors`."""
    # Pillow warns of large images and odd metadata, but reads them. catch_warnings is not thread-safe.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    image = Image.open(source if isinstance(source, Path) else io.BytesIO(source))
    if max(image.size) > LONGEST_TO_SHORTEST * min(image.size):
        where = str(source) if isinstance(source, Path) else f"image of {len(source)} bytes"
        raise AutoFormerError(
            f"{where}: an image of {image.width} x {image.height} pixels is too narrow, its sides may differ by "
            f"{LONGEST_TO_SHORTEST} times at most; crop it"
        )
    return image


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
        array: npt.NDArray[np.int64] = np.asarray(image).astype(np.int64)
        if array.min() < 0 or array.max() > _MOST_16_BIT:
            raise AutoFormerError("the image has pixels beyond 16 bits, of unknown range; save it with 8 bits")
        image = Image.fromarray((array >> 8 if array.max() > 255 else array).astype(np.uint8))
    elif image.mode == "F":
        raise AutoFormerError("the image has floating-point pixels, of unknown range; save it with 8 bits a channel")
    if image.mode == "LAB":
        image = image.convert("RGB")  # Pillow has no direct conversion to grey
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image.convert(MODES[channels])


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
