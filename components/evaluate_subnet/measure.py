"""The measurements: each set of weights on every test image, and what the retrained subnet gets wrong."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from autoformer.checkpoint import load_subnet
from autoformer.dataset import Images
from autoformer.evaluation import PairedDifference, Scores, confusion_matrix, paired_difference, predict_logits, score
from components.evaluate_subnet.results import Model, Results


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
    results: Results, images: Images, batch_size: int, mistakes: int, device: torch.device | str = "cpu"
) -> Evaluation:
    """Evaluate every model of `results` on the test images, one model in memory at a time.

    Args:
        mistakes: how many wrongly classified images to keep, those that the subnet is surest of first.
    """
    labels = torch.from_numpy(images.labels)
    logits = {
        name: _logits(folder, results, images, batch_size, torch.device(device))
        for name, folder in results.models.items()
    }
    correct = {name: values.argmax(dim=1).eq(labels).numpy() for name, values in logits.items()}
    predicted = logits["retrained"].argmax(dim=1).numpy()
    others = [name for name in logits if name != "retrained"]
    return Evaluation(
        scores={name: score(values, labels) for name, values in logits.items()},
        differences={name: paired_difference(correct["retrained"], correct[name]) for name in others},
        actual=images.labels,
        predicted=predicted,
        confusion=confusion_matrix(images.labels, predicted, len(results.card.classes)),
        mistakes=worst_mistakes(logits["retrained"], images, mistakes),
    )


def _logits(folder: Path, results: Results, images: Images, batch_size: int, device: torch.device) -> Tensor:
    model = load_subnet(folder).model
    card = results.card
    return predict_logits(model.to(device), images.pixels, card.mean, card.std, batch_size, device)


def worst_mistakes(logits: Tensor, images: Images, count: int) -> list[Mistake]:
    """The wrongly classified images, most confident first; equal confidence in the order of the split."""
    probabilities = logits.double().softmax(dim=1).numpy()  # n x K
    confidence, predicted = probabilities.max(axis=1), probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != images.labels)
    chosen = wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
    return [
        Mistake(
            pixels=images.pixels[index],
            actual=int(images.labels[index]),
            predicted=int(predicted[index]),
            probability=float(confidence[index]),
            actual_probability=float(probabilities[index, images.labels[index]]),
        )
        for index in chosen
    ]
