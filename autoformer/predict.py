"""From an image file to words: what a trained subnet says of one picture.

A picture must look like the training images: nothing here turns a photograph into one. Fashion-MNIST, for
example, shows a single garment in white on black, upright and filling the frame; a dark shirt on a white
wall has to be cut out and inverted first, or the answer means nothing.

Dimensions: B images, C channels, S pixels on a side, K classes.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from timm.data import create_transform
from torch import Tensor

from autoformer.batches import normalise
from autoformer.checkpoint import SubnetCard
from autoformer.errors import AutoFormerError
from autoformer.vit import AutoFormer

_MODES = {1: "L", 3: "RGB"}


def open_image(source: Path | bytes) -> Image.Image:
    """Decode an image file, or the bytes of one, turned upright as its camera noted.

    Raises:
        AutoFormerError: no such file, or not an image that Pillow can read.
    """
    where = str(source) if isinstance(source, Path) else f"image of {len(source)} bytes"
    try:
        image = Image.open(source if isinstance(source, Path) else io.BytesIO(source))
        image.load()
        return ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise AutoFormerError(f"{where}: no such file") from None
    except IsADirectoryError:
        raise AutoFormerError(f"{where}: a folder, not an image; name the image files") from None
    except (UnidentifiedImageError, Image.DecompressionBombError):
        raise AutoFormerError(f"{where}: not an image that can be read; give a PNG or JPEG file") from None
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises each of them for damaged files
        raise AutoFormerError(f"{where}: a damaged image ({' '.join(str(error).split())})") from None


def image_from_pixels(values: object) -> Image.Image:
    """An image from numbers 0 to 255, height x width or height x width x channels (1 or 3)."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise AutoFormerError("pixels: expected rows of equal length, all numbers from 0 to 255") from None
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        shape = " x ".join(map(str, array.shape))
        raise AutoFormerError(f"pixels: expected height x width, or height x width x 3, found {shape}")
    if not ((array >= 0) & (array <= 255) & (array == array.round())).all():
        raise AutoFormerError("pixels: expected whole numbers from 0 to 255")
    return Image.fromarray(array.astype(np.uint8))


def prepare(image: Image.Image, model: AutoFormer, card: SubnetCard) -> Tensor:
    """The model's input (1, C, S, S) for an image of any mode and size.

    To the model's channels, shorter side resized, centre crop, normalised. An image of the training size and
    mode goes in exactly as the training images did. Transparent parts become black.
    """
    size = (card.space.in_channels, card.space.image_size, card.space.image_size)
    config = model.pretrained_cfg
    transform = create_transform(
        size, interpolation=config["interpolation"], crop_pct=config["crop_pct"], normalize=False, is_training=False
    )
    pixels = transform(_to_channels(image, card.space.in_channels))
    return normalise(pixels[None], card.preprocessing.mean, card.preprocessing.std)


def _to_channels(image: Image.Image, channels: int) -> Image.Image:
    if channels not in _MODES:
        raise AutoFormerError(f"the model takes images of {channels} channels; image files have 1 or 3")
    if image.mode.startswith("I"):  # 16 bits, which Pillow's own conversion would clip to white
        array: npt.NDArray[np.int64] = np.asarray(image).astype(np.int64)
        image = Image.fromarray((array >> 8 if array.max() > 255 else array).astype(np.uint8))
    elif image.mode == "F":
        raise AutoFormerError("the image has floating-point pixels, of unknown range; save it with 8 bits a channel")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image.convert(_MODES[channels])


def probabilities(model: AutoFormer, card: SubnetCard, images: Sequence[Image.Image]) -> Tensor:
    """Probability of each class for each image (B, K). `model` in evaluation mode."""
    device = next(model.parameters()).device
    inputs = torch.cat([prepare(image, model, card) for image in images])
    with torch.inference_mode():
        logits: Tensor = model(inputs.to(device))
    return logits.softmax(dim=1).cpu()


def predict(model: AutoFormer, card: SubnetCard, image: Image.Image) -> list[tuple[str, float]]:
    """Every class name with its probability, the likeliest first."""
    return ranked(probabilities(model, card, [image])[0], card)


def ranked(row: Tensor, card: SubnetCard) -> list[tuple[str, float]]:
    """Class names and probabilities of one row (K,), the likeliest first; of equals, in the order of the labels."""
    order = row.argsort(descending=True, stable=True)
    return [(card.preprocessing.classes[index], row[index].item()) for index in order.tolist()]
