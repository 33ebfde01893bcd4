"""The augmentation of `autoformer.images.augmentation.picture_transform`, with the same statistics, in less time.

Crop boxes, flips, and RandAugment's operations and magnitudes have timm's distributions, but come from one cheap
generator per image instead of three global ones. The crop is drawn before the image is decoded
(`autoformer.images.decoding`), and resized by torch's vectorised bicubic filter, which equals Pillow's. Operations
that are slow in Pillow run on arrays (`autoformer.images.pixel_operations`); the others are timm's functions.

Dimensions: C channels, S pixels on a side, h and w pixels of a crop.
"""

import math
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from PIL import Image
from timm.data.auto_augment import NAME_TO_OP, AugmentOp, RandAugment
from torch import Tensor

from autoformer.images.augmentation import rand_augment
from autoformer.images.cache import Pixels
from autoformer.images.decoding import Box, Decoder
from autoformer.images.pixel_operations import ON_ARRAYS, mirrored
from autoformer.recipe import Augmentation

LEVELS = 10.0  # timm's largest magnitude
_RATIO = (3 / 4, 4 / 3)  # of a crop's width to its height
_SIGNED = {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3, "TranslateXRel": 0.45, "TranslateYRel": 0.45}
_INTEGER = {  # operations whose argument is an integer
    "Posterize": lambda level: int(level * 4),
    "PosterizeIncreasing": lambda level: 4 - int(level * 4),
    "Solarize": lambda level: min(256, int(level * 256)),
    "SolarizeIncreasing": lambda level: 256 - min(256, int(level * 256)),
    "SolarizeAdd": lambda level: min(128, int(level * 110)),
}
_NO_ARGUMENT = ("AutoContrast", "Equalize", "Invert")


class Operation(NamedTuple):
    """A RandAugment operation: timm's name, and the argument, if any."""

    name: str
    strength: float | None


class Draw(NamedTuple):
    """All random choices for one image except its crop. It is mirrored first."""

    mirrored: bool
    operations: tuple[Operation, ...]


class FastAugmentation:
    """Crop, flip and RandAugment.

    Args:
        augmentation: with a random resized crop, without colour jitter.
        image_size: S.
        mean: of pixels in [0, 1], one per channel; RandAugment fills with it.
    """

    def __init__(self, augmentation: Augmentation, image_size: int, mean: Sequence[float]) -> None:
        assert augmentation.crop_scale is not None
        self._scale, self._flip, self._side = augmentation.crop_scale, augmentation.flip, image_size
        self._timm: RandAugment | None = None
        if augmentation.rand_augment is not None:
            self._timm = rand_augment(augmentation.rand_augment, image_size, mean)

    def __call__(self, decoder: Decoder, index: int, rng: Random, out: Pixels) -> None:
        """Write one augmented image to `out`, uint8 (C, S, S)."""
        crop = decoder.crop(index, lambda width, height: draw_crop(rng, width, height, self._scale), self._side)
        self.finish(self.resize(crop), self.draw(rng), out)

    def resize(self, crop: Tensor) -> Pixels:
        """uint8 (C, h, w) -> (S, S, C)."""
        resized = F.interpolate(crop[None], (self._side, self._side), mode="bicubic", antialias=True)[0]
        return np.ascontiguousarray(resized.permute(1, 2, 0).numpy())

    def draw(self, rng: Random) -> Draw:
        mirrored = self._flip and rng.random() < 0.5
        chosen = rng.choices(self._timm.ops, k=self._timm.num_layers) if self._timm else []
        drawn = (draw_operation(rng, operation) for operation in chosen)
        return Draw(mirrored, tuple(operation for operation in drawn if operation))

    def finish(self, pixels: Pixels, draw: Draw, out: Pixels) -> None:
        """Apply a draw to pixels (S, S, C), and write them to `out` (C, S, S)."""
        if draw.mirrored:
            pixels = mirrored(pixels)
        for operation in draw.operations:
            pixels = self._apply(operation, pixels)
        out[:] = pixels.transpose(2, 0, 1)

    def _apply(self, operation: Operation, pixels: Pixels) -> Pixels:
        assert self._timm is not None
        options = self._timm.ops[0].kwargs
        if operation.name in ON_ARRAYS and operation.strength is not None:
            return ON_ARRAYS[operation.name](pixels, operation.strength, options["fillcolor"])
        grey = pixels.shape[2] == 1
        image = Image.fromarray(pixels[:, :, 0] if grey else pixels)
        arguments = () if operation.strength is None else (operation.strength,)
        changed = np.asarray(NAME_TO_OP[operation.name](image, *arguments, **options))
        return changed[:, :, None] if grey else changed


def draw_crop(rng: Random, width: int, height: int, scale: tuple[float, float]) -> Box:
    """A random resized crop: area in `scale` as a fraction of the image, width to height between 3:4 and 4:3.

    Like timm's `RandomResizedCropAndInterpolation.get_params`: ten tries, then the largest legal box at the centre.
    """
    for _ in range(10):
        area = rng.uniform(*scale) * width * height
        ratio = math.exp(rng.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if box_width <= width and box_height <= height:
            top, left = rng.randint(0, height - box_height), rng.randint(0, width - box_width)
            return Box(left, top, box_width, box_height)
    box_width, box_height = width, height
    if width / height < _RATIO[0]:
        box_height = round(width / _RATIO[0])
    elif width / height > _RATIO[1]:
        box_width = round(height * _RATIO[1])
    return Box((width - box_width) // 2, (height - box_height) // 2, box_width, box_height)


def draw_operation(rng: Random, operation: AugmentOp) -> Operation | None:
    """Draw whether one of timm's operations is applied, and its argument."""
    if operation.prob < 1 and rng.random() > operation.prob:
        return None
    magnitude, deviation = operation.magnitude, operation.magnitude_std
    if deviation == math.inf:
        magnitude = rng.uniform(0, magnitude)
    elif deviation > 0:
        magnitude = rng.gauss(magnitude, deviation)
    level = max(0.0, min(magnitude, operation.magnitude_max or LEVELS)) / LEVELS
    return Operation(operation.name, _strength(rng, operation.name, level))


def _strength(rng: Random, name: str, level: float) -> float | None:
    """The argument of timm's function `name`, as `LEVEL_TO_ARG` computes it there with signs from global `random`."""
    if name in _NO_ARGUMENT:
        return None
    if name in _INTEGER:
        return _INTEGER[name](level)
    if name in _SIGNED:
        return _random_sign(rng, _SIGNED[name] * level)
    if name.endswith("Increasing"):  # colour, contrast, brightness, sharpness: 1 is no change
        return max(0.1, 1 + _random_sign(rng, 0.9 * level))
    return 1.8 * level + 0.1


def _random_sign(rng: Random, value: float) -> float:
    return -value if rng.random() > 0.5 else value
