"""RandAugment's slowest operations on arrays, with Pillow's arithmetic along one axis instead of two.

A shear or translation moves each row (or column) by one distance, so a pixel depends on 4 neighbours in it; Pillow
weighs 16. Sharpness needs sums of neighbours. Results equal timm's, except for 1 pixel in 10,000, which is so near an
integer that float32 rounds it differently (held by a test).

Dimensions: h, w pixels, C channels.
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
    return _transposed(shear_x(_transposed(pixels), factor, fill))


def translate_x(pixels: Pixels, share: float, fill: Fill) -> Pixels:
    """Translate to the left by `share` of the width."""
    return _moved(pixels, np.full(len(pixels), share * pixels.shape[1]), fill)


def translate_y(pixels: Pixels, share: float, fill: Fill) -> Pixels:
    """Translate upwards by `share` of the height."""
    return _transposed(translate_x(_transposed(pixels), share, fill))


def mirrored(pixels: Pixels) -> Pixels:
    return _transposed(pixels, Image.Transpose.FLIP_LEFT_RIGHT)


def _transposed(pixels: Pixels, way: Image.Transpose = Image.Transpose.TRANSPOSE) -> Pixels:
    """Transpose with Pillow, which takes a third of numpy's time for RGB."""
    grey = pixels.shape[2] == 1
    transposed = np.asarray(Image.fromarray(pixels[:, :, 0] if grey else pixels).transpose(way))
    return transposed[:, :, None] if grey else transposed


def _moved(pixels: Pixels, distances: npt.NDArray[np.floating], fill: Fill) -> Pixels:
    """Sample each row `distances` (h,) further right with Pillow's cubic; `fill` beyond the edges."""
    height, width, channels = pixels.shape
    whole = np.floor(distances).astype(np.int64)
    part = (distances - whole).astype(np.float32)[:, None]
    reach = int(np.abs(whole).max()) + 3
    # pixels beyond the neighbours of an edge stay uninitialised: `fill` overwrites their results
    wide = np.empty((height, width + 2 * reach, channels), dtype=np.uint8)
    wide[:, reach:-reach], wide[:, reach - 3 : reach], wide[:, -reach:][:, :3] = pixels, pixels[:, :1], pixels[:, -1:]
    wide = wide.reshape(height, -1)
    taps = np.empty((height, (width + 3) * channels), dtype=np.uint8)
    for row, start in enumerate(((reach - 1 + whole) * channels).tolist()):
        taps[row] = wide[row, start : start + taps.shape[1]]
    moved = _cubic(taps.astype(np.float32), part, channels)
    filling = np.tile(np.array(fill, dtype=np.uint8), width)
    # the first or last column whose centre moves out of the image
    edges = np.ceil(np.where(distances > 0, width, 0) - 0.5 - distances).astype(np.int64)
    for row, edge in enumerate((edges.clip(0, width) * channels).tolist()):
        part_of_row = slice(edge, None) if distances[row] > 0 else slice(edge)
        moved[row, part_of_row] = filling[part_of_row]
    return moved.reshape(pixels.shape)


def _cubic(taps: Floats, part: Floats, channels: int) -> Pixels:
    """Interpolate `part` (h, 1) of the way from the second to the third of 4 neighbours: (h, (w + 3) C) -> (h, w C).

    Pillow's cubic (Geometry.c) has slope -1 instead of -1/2 or -3/4, and truncates. In this order of operations
    rounding cannot change a value that all neighbours share.
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
    """Extrapolate from the smoothed image; the outermost pixels stay unchanged."""
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
