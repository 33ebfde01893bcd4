"""Evaluate each set of weights on every test image, and collect the mistakes of the retrained subnet."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from autoformer.checkpoint import load_subnet
from autoformer.evaluation import PairedDifference, Scores, confusion_matrix, paired_difference, predict_batches, score
from autoformer.files import hash_file
from autoformer.images.archives import EncodedSplit
from autoformer.images.pixels import model_pixels
from autoformer.images.split_images import DecodedSplit
from autoformer.images.streaming import StreamedPixels
from components.evaluate_subnet.results import Model, Results
from runtime.steps.workers import worker_count


class Mistake(NamedTuple):
    """An image that the retrained subnet misclassifies."""

    pixels: npt.NDArray[np.uint8]  # C x S x S
    actual: int
    predicted: int
    probability: float  # of the predicted class
    actual_probability: float


class Evaluation(NamedTuple):
    scores: dict[Model, Scores]
    weights: dict[Model, str]  # sha256 of each file; the registered model may have the weights of another
    differences: dict[Model, PairedDifference]  # retrained minus each of the others that has other weights
    actual: npt.NDArray[np.int64]  # n
    predicted: npt.NDArray[np.int64]  # n, by the retrained subnet
    confusion: npt.NDArray[np.int64]  # K x K, actual classes in rows
    mistakes: list[Mistake]


class Measured(NamedTuple):
    """The subnet of one budget: its inputs, its evaluation, and its metrics.json."""

    results: Results
    evaluation: Evaluation
    figures: dict[str, float]


def measure(
    results: Results,
    images: DecodedSplit | EncodedSplit,
    batch_size: int,
    mistakes: int,
    device: torch.device | str = "cpu",
    watch: Callable[[int], None] = lambda images: None,
) -> Evaluation:
    """Evaluate every model of `results` on the test images, equal weights once; each image is decoded once for all.

    Args:
        mistakes: number of misclassified images to return, the most confident first.
        watch: called with the number of images so far.
    """
    card, labels = results.card, torch.from_numpy(images.labels)
    to_pixels = partial(model_pixels, channels=results.space.in_channels, image_size=results.space.image_size)
    batches: Iterable[Tensor]
    if isinstance(images, DecodedSplit):
        batches = torch.split(torch.from_numpy(images.pixels), batch_size)
    else:
        batches = StreamedPixels(images.pictures, to_pixels, batch_size, worker_count(torch.device(device)))
    weights = {name: hash_file(folder / "model.safetensors") for name, folder in results.models.items()}
    folders = {weights[name]: folder for name, folder in results.models.items()}
    models = [load_subnet(folder).model.to(device) for folder in folders.values()]
    predictions = predict_batches(models, batches, card.mean, card.std, device, watch)
    logits_of = dict(zip(folders, predictions, strict=True))
    logits = {name: logits_of[digest] for name, digest in weights.items()}
    correct = {name: values.argmax(dim=1).eq(labels).numpy() for name, values in logits.items()}
    predicted = logits["retrained"].argmax(dim=1).numpy()
    others = [name for name in logits if name not in ("retrained", results.mode)]

    def pixels_at(index: int) -> npt.NDArray[np.uint8]:
        if isinstance(images, DecodedSplit):
            return images.pixels[index]
        return to_pixels(images.pictures.image(index))

    return Evaluation(
        scores={name: score(values, labels) for name, values in logits.items()},
        weights=weights,
        differences={name: paired_difference(correct["retrained"], correct[name]) for name in others},
        actual=images.labels,
        predicted=predicted,
        confusion=confusion_matrix(images.labels, predicted, len(card.classes)),
        mistakes=worst_mistakes(logits["retrained"], images.labels, pixels_at, mistakes),
    )


def worst_mistakes(
    logits: Tensor,
    labels: npt.NDArray[np.int64],
    pixels_at: Callable[[int], npt.NDArray[np.uint8]],
    count: int,
) -> list[Mistake]:
    """The misclassified images, most confident first, ties in the order of the split.

    `pixels_at`: image index -> pixels (C, S, S).
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
