"""Batches of images that stay in memory as bytes: order, augmentation, normalisation.

The augmentations are those of small images (timm uses pad-and-crop and flips up to 32 pixels too), as vector
operations on a batch: through PIL, image by image, they cost a fifth of the time of a demo's training step.
Dimensions: B images, C channels, S pixels on a side.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from autoformer.randomness import sample_uniform
from autoformer.recipe import Augmentation


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 (B, C, S, S) -> float32 (B, C, S, S): (pixels / 255 - mean) / std by channel."""
    scale = 1.0 / (255.0 * torch.tensor(std, device=pixels.device).view(-1, 1, 1))
    shift = torch.tensor(mean, device=pixels.device).view(-1, 1, 1) * 255.0
    return (pixels.float() - shift) * scale


def augment(
    pixels: Tensor, samples: npt.NDArray[np.int64], augmentation: Augmentation, seed: int, epoch: int
) -> Tensor:
    """Crop, flip and erase a batch; each image by its own draw from (seed, epoch, sample).

    Args:
        pixels: uint8 (B, C, S, S).
        samples: the index of each image in its split (B,).

    Returns:
        uint8 (B, C, S, S).
    """

    def draw(stream: str) -> Tensor:
        return torch.from_numpy(sample_uniform(seed, epoch, stream, samples))

    side = pixels.shape[-1]
    if augmentation.crop_padding or augmentation.flip:
        padding = augmentation.crop_padding
        steps = torch.arange(side)
        rows = steps + (draw("crop row") * (2 * padding + 1)).long()[:, None]  # B S
        columns = steps + (draw("crop column") * (2 * padding + 1)).long()[:, None]
        if augmentation.flip:
            columns = torch.where(draw("flip")[:, None] < 0.5, columns.flip(1), columns)
        padded = F.pad(pixels, (padding,) * 4)
        image = torch.arange(len(pixels))[:, None, None]
        pixels = padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if augmentation.erase_probability:
        pixels = pixels.masked_fill(_rectangles(draw, side, augmentation.erase_probability)[:, None], 0)
    return pixels


def _rectangles(draw: Callable[[str], Tensor], side: int, probability: float) -> Tensor:
    """A random rectangle for each image, empty for all but `probability` of them (B, S, S).

    Its sides are a seventh to a half of the image's.
    """
    height, width = (side * (1 / 7 + draw(f"erase {name}") * (1 / 2 - 1 / 7)) for name in ("height", "width"))
    top, left = draw("erase row") * (side - height), draw("erase column") * (side - width)
    steps = torch.arange(side)
    inside_rows = (steps >= top[:, None]) & (steps < (top + height)[:, None])
    inside_columns = (steps >= left[:, None]) & (steps < (left + width)[:, None])
    chosen = draw("erase") < probability
    return inside_rows[:, :, None] & inside_columns[:, None, :] & chosen[:, None, None]
