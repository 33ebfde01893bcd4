"""Class probabilities of a trained subnet for image files.

An image must look like the training images. Fashion-MNIST, for example, shows one garment in white on black, upright
and filling the frame. A photograph of a dark shirt on a white wall must be cropped and inverted first.

Dimensions: B images, C channels, S pixels on a side, K classes.
"""

from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from autoformer.cards import SubnetCard
from autoformer.errors import AutoFormerError
from autoformer.images.batches import normalise
from autoformer.images.pixels import model_pixels
from autoformer.vit import AutoFormer

_CHANNELS = (1, 3, 4)  # of an image's pixels


def image_from_pixels(values: object) -> Image.Image:
    """An image from numbers 0 to 255, height x width or height x width x channels (1 or 3).

    Raises `AutoFormerError` also for what would be read as another image than was meant: numbers from 0 to 1, and
    single rows of an image in colour.
    """
    try:
        given = np.asarray(values)
        array = given.astype(np.float64)
    except (TypeError, ValueError):
        raise AutoFormerError("pixels: expected rows of equal length, all numbers from 0 to 255") from None
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        shape = " x ".join(map(str, array.shape))
        raise AutoFormerError(f"pixels: expected height x width, or height x width x 3, found {shape}")
    if array.ndim == 2 and array.shape[1] in _CHANNELS and len(array) > max(_CHANNELS):
        raise AutoFormerError(
            f"pixels: found {len(array)} x {array.shape[1]}, as one row of an image in colour has; send a list of "
            "images"
        )
    if not ((array >= 0) & (array <= 255) & (array == array.round())).all():
        raise AutoFormerError("pixels: expected whole numbers from 0 to 255")
    if given.dtype.kind in "bf" and 0 < array.max() <= 1:
        raise AutoFormerError("pixels: found numbers from 0 to 1 alone; white is 255, so multiply them by 255")
    return Image.fromarray(array.astype(np.uint8))


def prepare(image: Image.Image, card: SubnetCard) -> Tensor:
    """The model's input (1, C, S, S) for an upright image of any mode and size, as in training and evaluation."""
    rule = card.preprocessing.pixels
    pixels = torch.from_numpy(model_pixels(image, card.space.in_channels, card.space.image_size, rule=rule))
    return normalise(pixels[None], card.preprocessing.mean, card.preprocessing.std)


def probabilities(model: AutoFormer, card: SubnetCard, images: Iterable[Image.Image]) -> Tensor:
    """Class probabilities (B, K), on the CPU. `model`: in evaluation mode."""
    device = next(model.parameters()).device
    inputs = torch.cat([prepare(image, card) for image in images])
    with torch.inference_mode():
        logits: Tensor = model(inputs.to(device))
    return logits.softmax(dim=1).cpu()


def predict(model: AutoFormer, card: SubnetCard, image: Image.Image) -> list[tuple[str, float]]:
    """All class names with their probabilities, most likely first."""
    return ranked(probabilities(model, card, [image])[0], card)


def ranked(row: Tensor, card: SubnetCard) -> list[tuple[str, float]]:
    """Class names and probabilities (K,), most likely first; ties in label order."""
    order = row.argsort(descending=True, stable=True)
    return [(card.preprocessing.classes[index], row[index].item()) for index in order.tolist()]
