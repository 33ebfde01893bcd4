"""The measurements: each set of weights on every test image, and what the retrained subnet gets wrong."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from autoformer.checkpoint import load_subnet
from autoformer.evaluation import PairedDifference, Scores, confusion_matrix, paired_difference, predict_batches, score
from autoformer.images.archives import EncodedSplit
from autoformer.images.pixels import model_pixels
from autoformer.images.split_images import DecodedSplit
from autoformer.images.streaming import StreamedPixels
from autoformer.space import SearchSpace
from components.evaluate_subnet.results import Model, Results
from runtime.steps.workers import worker_count


class Mistake(NamedTuple):
    """An image that the retrained subnet gets wrong."""

    pixels: npt.NDArray[np.uint8]  # C x S x S
    actual: int
    predicted: int
    probability: float  # of the predicted class
    actual_probability: float


class Evaluation(NamedTuple):
    scores: dict[Model, Scores]
    differences: dict[Model, PairedDifference]  # retrained against each of the others
    actual: npt.NDArray[np.int64]  # n
    predicted: npt.NDArray[np.int64]  # n, by the retrained subnet
    confusion: npt.NDArray[np.int64]  # K x K, actual classes in rows
    mistakes: list[Mistake]


def measure(
    results: Results,
    images: DecodedSplit | EncodedSplit,
    batch_size: int,
    mistakes: int,
    device: torch.device | str = "cpu",
    watch: Callable[[int], None] = lambda images: None,
) -> Evaluation:
    """Evaluate every model of `results` on the test images, each of which is decoded once for all of them.

    Args:
        mistakes: how many wrongly classified images to keep, those that the subnet is surest of first.
        watch: is told how many images are done.
    """
    labels = torch.from_numpy(images.labels)
    logits = _logits(results, images, batch_size, torch.device(device), watch)
    correct = {name: values.argmax(dim=1).eq(labels).numpy() for name, values in logits.items()}
    predicted = logits["retrained"].argmax(dim=1).numpy()
    others = [name for name in logits if name != "retrained"]

    def pixels_at(index: int) -> npt.NDArray[np.uint8]:
        if isinstance(images, DecodedSplit):
            return images.pixels[index]
        return _pixels_of(results.space)(images.pictures.image(index))

    return Evaluation(
        scores={name: score(values, labels) for name, values in logits.items()},
        differences={name: paired_difference(correct["retrained"], correct[name]) for name in others},
        actual=images.labels,
        predicted=predicted,
        confusion=confusion_matrix(images.labels, predicted, len(results.card.classes)),
        mistakes=worst_mistakes(logits["retrained"], images.labels, pixels_at, mistakes),
    )


def _logits(
    results: Results,
    images: DecodedSplit | EncodedSplit,
    batch_size: int,
    device: torch.device,
    watch: Callable[[int], None],
) -> dict[Model, Tensor]:
    models = [load_subnet(folder).model.to(device) for folder in results.models.values()]
    batches: Iterable[Tensor]
    if isinstance(images, DecodedSplit):
        batches = torch.split(torch.from_numpy(images.pixels), batch_size)
    else:
        batches = StreamedPixels(images.pictures, _pixels_of(results.space), batch_size, worker_count(device))
    card = results.card
    logits = predict_batches(models, batches, card.mean, card.std, device, watch)
    return dict(zip(results.models, logits, strict=True))


def _pixels_of(space: SearchSpace) -> Callable[[Image.Image], npt.NDArray[np.uint8]]:
    return partial(model_pixels, channels=space.in_channels, image_size=space.image_size)


def worst_mistakes(
    logits: Tensor,
    labels: npt.NDArray[np.int64],
    pixels_at: Callable[[int], npt.NDArray[np.uint8]],
    count: int,
) -> list[Mistake]:
    """The wrongly classified images, most confident first; equal confidence in the order of the split.

    `pixels_at`: the pixels of an image by its number, C x S x S.
    """
    probabilities = logits.double().softmax(dim=1).numpy()  # n x K
    confidence, predicted = probabilities.max(axis=1), probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    chosen = wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
    return [
        Mistake(
            pixels=pixels_at(index),
            actual=int(labels[index]),
            predicted=int(predicted[index]),
            probability=float(confidence[index]),
            actual_probability=float(probabilities[index, labels[index]]),
        )
        for index in chosen.tolist()
    ]
