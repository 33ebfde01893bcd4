"""Accuracy, confidence intervals and calibration from logits.

Dimensions: n images, B images of a batch, K classes, C channels, S pixels on a side.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from autoformer.devices import halve_on_oom
from autoformer.errors import AutoFormerError, quantity
from autoformer.images.batches import normalise

ECE_BINS = 15
Z95 = 1.959963984540054  # the 97.5 % point of the normal distribution: a two-sided 95 % interval


class Interval(NamedTuple):
    low: float
    high: float


class Scores(NamedTuple):
    """Metrics of one classifier on n images."""

    images: int
    correct: int
    top1_percent: float
    top1_interval: Interval  # 95 %, in percent
    top5_percent: float
    loss: float  # mean cross entropy, in nats
    ece: float  # expected calibration error, in [0, 1]


class PairedDifference(NamedTuple):
    """Two classifiers on the same images."""

    gained: int  # images that only the first has right
    lost: int  # images that only the second has right
    percent: float  # accuracy of the first minus that of the second, in percentage points
    interval: Interval  # 95 %, in percentage points; without width if both are right on the same images

    @property
    def alike(self) -> bool:
        """Whether both are right on the same images. An interval of the difference then states nothing."""
        return self.gained == self.lost == 0


def predict_logits(
    forward: Callable[[Tensor], Tensor],
    pixels: Tensor | npt.NDArray[np.uint8],
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
    device: torch.device | str | None = None,
) -> Tensor:
    """Logits of all images, batch by batch, without gradients.

    A batch that does not fit into memory is halved, down to single images, which changes logits by rounding.

    Args:
        forward: a model in evaluation mode, or a supernet with its subnet bound: (B, C, S, S) -> (B, K).
        pixels: uint8 (n, C, S, S).
        mean, std: statistics of pixels in [0, 1], one per channel.
        device: where `forward` runs; None for the device of the pixels.

    Returns:
        float32 (n, K), on the CPU.
    """
    if not len(pixels):
        raise AutoFormerError("no images to predict; the split is empty")
    return predict_batches([forward], torch.split(torch.as_tensor(pixels), batch_size), mean, std, device)[0]


def predict_batches(
    forwards: Sequence[Callable[[Tensor], Tensor]],
    batches: Iterable[Tensor],
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str | None = None,
    watch: Callable[[int], None] = lambda images: None,
) -> list[Tensor]:
    """Logits of several models, from one pass over the batches; see `predict_logits`.

    Args:
        batches: uint8 (B, C, S, S).
        watch: called after each batch with the number of images so far.

    Returns:
        float32 (n, K) for each model, on the CPU.
    """

    def predict(forward: Callable[[Tensor], Tensor], batch: Tensor) -> tuple[Tensor]:
        return (forward(normalise(batch.to(device or batch.device), mean, std)).float().cpu(),)

    logits: list[list[Tensor]] = [[] for _ in forwards]
    done = 0
    with torch.inference_mode():
        for batch in batches:
            for forward, of_model in zip(forwards, logits, strict=True):
                of_model.extend(halve_on_oom(partial(predict, forward), batch))
            done += len(batch)
            watch(done)
    if not done:
        raise AutoFormerError("no images to predict; the split is empty")
    return [torch.cat(of_model) for of_model in logits]


def score(logits: Tensor, labels: Tensor) -> Scores:
    """Metrics of logits (n, K) against labels (n,). Raises `AutoFormerError` if a logit is not finite."""
    if not torch.isfinite(logits).all():
        raise AutoFormerError("the model's outputs are not finite: its weights have diverged; train at a lower rate")
    n, classes = logits.shape
    ranked = logits.topk(min(5, classes), dim=1).indices.eq(labels[:, None])  # (n, 5)
    correct, in_top5 = int(ranked[:, 0].sum()), int(ranked.sum())
    probabilities = logits.double().softmax(dim=1)
    confidence = probabilities.max(dim=1).values.numpy()
    low, high = wilson_interval(correct, n)
    return Scores(
        images=n,
        correct=correct,
        top1_percent=100 * correct / n,
        top1_interval=Interval(100 * low, 100 * high),
        top5_percent=100 * in_top5 / n,
        loss=float(cross_entropy(logits.double(), labels)),
        ece=expected_calibration_error(confidence, ranked[:, 0].numpy()),
    )


def expected_calibration_error(confidence: npt.ArrayLike, correct: npt.ArrayLike, bins: int = ECE_BINS) -> float:
    """Sum over bins of (fraction of images) x |accuracy - mean confidence| (Guo et al., arXiv 1706.04599, section 2).

    Bins of equal width: (m - 1) / bins < confidence <= m / bins.
    """
    confidence = np.asarray(confidence, dtype=np.float64)
    of_bin = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = np.asarray(correct, dtype=np.float64) - confidence
    return float(np.abs(np.bincount(of_bin, weights=gap, minlength=bins)).sum() / len(confidence))


def wilson_interval(successes: int, trials: int) -> Interval:
    """Wilson's 95 % score interval of a proportion, in [0, 1] (Wilson 1927)."""
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{quantity(successes, 'success')} in {quantity(trials, 'trial')}")
    p, z2 = successes / trials, Z95 * Z95
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials * trials))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def paired_difference(correct: npt.ArrayLike, other: npt.ArrayLike) -> PairedDifference:
    """Compare two classifiers on the same images, with the Wald interval of a difference of paired proportions."""
    first, second = np.asarray(correct, dtype=bool), np.asarray(other, dtype=bool)
    gained, lost, n = int((first & ~second).sum()), int((second & ~first).sum()), len(first)
    percent = 100 * (gained - lost) / n
    half = 100 * Z95 * math.sqrt(gained + lost - (gained - lost) ** 2 / n) / n
    return PairedDifference(gained, lost, percent, Interval(percent - half, percent + half))


def confusion_matrix(actual: npt.ArrayLike, predicted: npt.ArrayLike, classes: int) -> npt.NDArray[np.int64]:
    """Number of images by actual class (rows) and predicted class (columns) (K, K)."""
    cells = np.asarray(actual, dtype=np.int64) * classes + np.asarray(predicted, dtype=np.int64)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)
