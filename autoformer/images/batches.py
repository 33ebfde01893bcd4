"""Crops, flips and normalisation of whole batches in memory.

For small images, for which timm too uses pad-and-crop and flips. timm applies them image by image through PIL, which
takes a fifth of the demo's training step. All other augmentations are timm's (`autoformer.images.augmentation`).

Dimensions: B images, C channels, S pixels on a side.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from autoformer.randomness import sample_uniform
from autoformer.recipe import Augmentation

_BY_IMAGE_BYTES = 2**17  # from this size on, float32 images one by one stay in the CPU's cache


class Normalisation:
    """uint8 (B, C, S, S) -> float32 (B, C, S, S): (pixels / 255 - mean) / std by channel.

    The statistics are copied to the device once: each copy to a GPU synchronises.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self._scale = 1.0 / (255.0 * by_channel(std, device))
        self._shift = by_channel(mean, device) * 255.0

    def __call__(self, pixels: Tensor) -> Tensor:
        images = torch.empty(pixels.shape, device=pixels.device)
        if pixels.device.type == "cpu" and images[:1].nbytes >= _BY_IMAGE_BYTES:
            for image, source in zip(images, pixels, strict=True):
                image.copy_(source).sub_(self._shift).mul_(self._scale)
            return images
        return images.copy_(pixels).sub_(self._shift).mul_(self._scale)


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """`Normalisation` of one batch, on its device."""
    return Normalisation(mean, std, pixels.device)(pixels)


def by_channel(values: Sequence[float], device: torch.device) -> Tensor:
    """(C, 1, 1), which broadcasts to images (B, C, S, S)."""
    return torch.tensor(values, device=device).view(-1, 1, 1)


def augment(
    pixels: Tensor, samples: npt.NDArray[np.int64], augmentation: Augmentation, seed: int, epoch: int
) -> Tensor:
    """Crop and flip a batch, each image by its own draw from (seed, epoch, sample).

    Args:
        pixels: uint8 (B, C, S, S).
        samples: keys of the images' draws (B,).

    Returns:
        uint8 (B, C, S, S).
    """

    def draw(stream: str) -> Tensor:
        return torch.from_numpy(sample_uniform(seed, epoch, stream, samples))

    padding = augmentation.crop_padding
    if not padding and not augmentation.flip:
        return pixels
    steps = torch.arange(pixels.shape[-1])
    rows = steps + (draw("crop row") * (2 * padding + 1)).long()[:, None]  # (B, S)
    columns = steps + (draw("crop column") * (2 * padding + 1)).long()[:, None]
    if augmentation.flip:
        columns = torch.where(draw("flip")[:, None] < 0.5, columns.flip(1), columns)
    padded = F.pad(pixels, (padding,) * 4)
    image = torch.arange(len(pixels))[:, None, None]
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)  # from (B, S, S, C)
