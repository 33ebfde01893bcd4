"""timm's augmentations, with every draw a function of (seed, epoch, sample, copy) or of (seed, step, micro-batch).

timm draws from the global generators of Python, numpy and torch, so the caller seeds them with
`autoformer.randomness.seeded`.

Dimensions: B images, C channels, S pixels on a side, K classes.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from PIL import Image
from timm.data.auto_augment import RandAugment, rand_augment_transform
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision import transforms

from autoformer.images.pixels import center_crop, resize_shorter_side, resized_side, to_pixels
from autoformer.randomness import seeded
from autoformer.recipe import Augmentation


def picture_transform(
    augmentation: Augmentation, image_size: int, mean: Sequence[float]
) -> Callable[[Image.Image], Tensor]:
    """Augmentation of one image: crop, flip, RandAugment, colour jitter, in the order of timm's own transforms.

    Args:
        mean: of pixels in [0, 1], one per channel; RandAugment fills with it.

    Returns:
        A picklable function from a grey or RGB image to uint8 (C, S, S), which draws from the global generators.
    """
    steps: list[Callable[[Image.Image], Image.Image]] = []
    if augmentation.crop_scale is None:
        steps.append(partial(_resize_and_crop, image_size))
        if augmentation.crop_padding:
            steps.append(transforms.RandomCrop(image_size, padding=augmentation.crop_padding))
    else:
        scale = tuple(augmentation.crop_scale)
        steps.append(RandomResizedCropAndInterpolation(image_size, scale=scale, interpolation="bicubic"))
    if augmentation.flip:
        steps.append(transforms.RandomHorizontalFlip())
    if augmentation.rand_augment is not None:
        steps.append(rand_augment(augmentation.rand_augment, image_size, mean))
    if augmentation.color_jitter:
        steps.append(transforms.ColorJitter(*[augmentation.color_jitter] * 3))
    transform: Callable[[Image.Image], Tensor] = transforms.Compose([*steps, _to_tensor])
    return transform


def _resize_and_crop(image_size: int, image: Image.Image) -> Image.Image:
    return center_crop(resize_shorter_side(image, resized_side(image_size)), image_size)


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(to_pixels(image))


def rand_augment(config: str, image_size: int, mean: Sequence[float]) -> RandAugment:
    """timm's RandAugment with the parameters of `transforms_imagenet_train`, for grey or RGB images."""
    fill = tuple(min(255, round(255 * value)) for value in mean)
    hparams = {
        "translate_const": int(image_size * 0.45),
        "img_mean": fill if len(fill) > 1 else fill[0],
        "interpolation": Image.Resampling.BICUBIC,
    }
    return rand_augment_transform(config, hparams)


class BatchAugmentation:
    """Random erasing, mixup and CutMix on normalised batches. `label_smoothing` applies to mixed targets."""

    def __init__(
        self, augmentation: Augmentation, num_classes: int, label_smoothing: float, device: torch.device
    ) -> None:
        self._erase = self._mix = None
        if augmentation.erase_probability:
            self._erase = RandomErasing(
                augmentation.erase_probability, mode=augmentation.erase_mode, device=str(device)
            )
        if augmentation.mixes:
            self._mix = Mixup(
                mixup_alpha=augmentation.mixup,
                cutmix_alpha=augmentation.cutmix,
                prob=augmentation.mixup_probability,
                switch_prob=augmentation.mixup_switch_probability,
                label_smoothing=label_smoothing,
                num_classes=num_classes,
            )

    def __call__(self, images: Tensor, labels: Tensor, *key: object) -> tuple[Tensor, Tensor]:
        """Images (B, C, S, S), changed in place, and labels (B,), or mixed targets (B, K)."""
        if self._erase is not None:
            with seeded("erasing", *key):
                images = self._erase(images)
        if self._mix is not None:
            with seeded("mixing", *key):
                images, labels = self._mix(images, labels)
        return images, labels
