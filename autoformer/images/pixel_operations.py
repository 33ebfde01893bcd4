"""RandAugment's slowest operations on arrays: Pillow's arithmetic, along one axis where Pillow goes along two.

A shear or a translation moves each row (or column) by one distance, so that four neighbours in it decide a pixel;
Pillow weighs sixteen. Sharpness needs sums of neighbours. Each equals timm's function to the last bit but for a pixel
in ten thousand, which lies so near a whole number that 32 bits round it otherwise: held by a test.
Letters in shapes: h, w pixels, C channels.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

from autoformer.images.cache import Pixels

Fill = int | tuple[int, ...]
Function = Callable[[Pixels, float, Fill], Pixels]
Floats = npt.NDArray[np.float32]


def shear_x(pixels: Pixels, factor: float, fill: Fill) -> Pixels:
    return _moved(pixels, factor * (np.arange(len(pixels)) + 0.5), fill)


def shear_y(pixels: Pixels, factor: float, fill: Fill) -> Pixels:
    return _turned(shear_x(_turned(pixels), factor, fill))


def translate_x(pixels: Pixels, share: float, fill: Fill) -> Pixels:
    """`share`: of the width."""
    return _moved(pixels, np.full(len(pixels), share * pixels.shape[1]), fill)


def translate_y(pixels: Pixels, share: float, fill: Fill) -> Pixels:
    """`share`: of the height."""
    return _turned(translate_x(_turned(pixels), share, fill))


def mirrored(pixels: Pixels) -> Pixels:
    """Left becomes right."""
    return _transposed(pixels, Image.Transpose.FLIP_LEFT_RIGHT)


def _turned(pixels: Pixels) -> Pixels:
    """Rows become columns."""
    return _transposed(pixels, Image.Transpose.TRANSPOSE)


def _transposed(pixels: Pixels, way: Image.Transpose) -> Pixels:
    """By Pillow, which takes a third of numpy's time where a pixel has three bytes."""
    grey = pixels.shape[2] == 1
    turned = np.asarray(Image.fromarray(pixels[:, :, 0] if grey else pixels).transpose(way))
    return turned[:, :, None] if grey else turned


def _moved(pixels: Pixels, distances: npt.NDArray[np.floating], fill: Fill) -> Pixels:
    """Each row read from `distances` (h,) further right, between pixels by Pillow's cubic; `fill` beyond the edges."""
    height, width, channels = pixels.shape
    whole = np.floor(distances).astype(np.int64)
    part = (distances - whole).astype(np.float32)[:, None]
    reach = int(np.abs(whole).max()) + 3
    # what lies further out than the neighbours of an edge is read, but its results are filled over: anything will do
    wide = np.empty((height, width + 2 * reach, channels), dtype=np.uint8)
    wide[:, reach:-reach], wide[:, reach - 3 : reach], wide[:, -reach:][:, :3] = pixels, pixels[:, :1], pixels[:, -1:]
    wide = wide.reshape(height, -1)
    taps = np.empty((height, (width + 3) * channels), dtype=np.uint8)
    for row, start in enumerate(((reach - 1 + whole) * channels).tolist()):
        taps[row] = wide[row, start : start + taps.shape[1]]
    moved = _cubic(taps.astype(np.float32), part, channels)
    filling = np.tile(np.array(fill, dtype=np.uint8), width)
    # from where on, or up to where, a pixel's centre is moved out of the picture
    edges = np.ceil(np.where(distances > 0, width, 0) - 0.5 - distances).astype(np.int64)
    for row, edge in enumerate((edges.clip(0, width) * channels).tolist()):
        part_of_row = slice(edge, None) if distances[row] > 0 else slice(edge)
        moved[row, part_of_row] = filling[part_of_row]
    return moved.reshape(pixels.shape)


def _cubic(taps: Floats, part: Floats, channels: int) -> Pixels:
    """Between the second and the third of four neighbours, `part` of the way: (h, w + 3 of C each) to (h, w of C each).

    Pillow's cubic (its Geometry.c) has slope -1 where the usual ones have -1/2 or -3/4, and what follows the point is
    cut off. In this order no rounding can move a value that all neighbours share.
    """
    size = taps.shape[1] - 3 * channels
    before, here, after, beyond = (taps[:, k * channels : k * channels + size] for k in range(4))
    falling = here - before
    cubic = beyond - after
    cubic += falling
    value = cubic * part
    value -= cubic
    value -= falling
    value *= part
    np.subtract(after, before, out=falling)
    value += falling
    value *= part
    value += here
    return value.clip(0, 255, out=value).astype(np.uint8)


def sharpness(pixels: Pixels, factor: float, fill: Fill) -> Pixels:
    """Blend a picture with its smoothed self; the outermost pixels stay as they are."""
    wide = pixels.astype(np.float32)
    inner = wide[1:-1, 1:-1]
    rows = wide[:, :-2] + wide[:, 1:-1]
    rows += wide[:, 2:]
    smooth = rows[:-2] + rows[1:-1]
    smooth += rows[2:]
    smooth += 4 * inner
    smooth /= 13
    smooth += np.float32(0.5)
    np.floor(smooth, out=smooth)
    value = inner - smooth
    value *= np.float32(factor)
    value += smooth
    sharp = pixels.copy()
    sharp[1:-1, 1:-1] = value.clip(0, 255, out=value)
    return sharp


ON_ARRAYS: dict[str, Function] = {
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateXRel": translate_x,
    "TranslateYRel": translate_y,
    "SharpnessIncreasing": sharpness,
    "Sharpness": sharpness,
}
