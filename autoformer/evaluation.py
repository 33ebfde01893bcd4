"""How good a classifier is, from its logits. Symbols: n images, K classes, C channels, S pixels on a side."""

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
from autoformer.distributed import World
from autoformer.errors import AutoFormerError
from autoformer.images.batches import normalise

ECE_BINS = 15
Z95 = 1.959963984540054  # the 97.5 % point of the normal distribution: a two-sided 95 % interval


class Interval(NamedTuple):
    low: float
    high: float


class Scores(NamedTuple):
    """Figures of one classifier on one set of images."""

    images: int
    correct: int
    top1_percent: float
    top1_interval: Interval  # 95 %, in percent
    top5_percent: float
    loss: float  # mean cross entropy, in nats
    ece: float  # expected calibration error, in [0, 1]


class PairedDifference(NamedTuple):
    """Two classifiers on the same images: what the first has right and the second wrong, and the reverse."""

    gained: int
    lost: int
    percent: float  # accuracy of the first minus accuracy of the second, in percentage points
    interval: Interval  # 95 %, in percentage points


def predict_logits(
    forward: Callable[[Tensor], Tensor],
    pixels: Tensor | npt.NDArray[np.uint8],
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
    device: torch.device | str | None = None,
) -> Tensor:
    """Logits of all images, batch by batch, without gradients.

    Args:
        forward: a model in evaluation mode, or a supernet with its subnet bound: (B, C, S, S) -> (B, K).
        pixels: uint8 (n, C, S, S).
        mean, std: of pixels in [0, 1], one a channel.
        device: where each batch is moved before `forward`; None leaves it where the pixels are.

    A batch that does not fit into memory is halved, down to single images: that moves a logit by its rounding.

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
    """As `predict_logits`, for several models and for batches that come one by one: each is read once for all models.

    Args:
        batches: uint8 (B, C, S, S).
        watch: is told after each batch how many images are done.

    Returns:
        float32 (n, K) of each model, on the CPU.
    """

    def logits(forward: Callable[[Tensor], Tensor], part: Tensor) -> tuple[Tensor]:
        return (forward(normalise(part.to(device or part.device), mean, std)).float().cpu(),)

    found: list[list[Tensor]] = [[] for _ in forwards]
    done = 0
    with torch.inference_mode():
        for batch in batches:
            for forward, of_model in zip(forwards, found, strict=True):
                of_model.extend(halve_on_oom(partial(logits, forward), batch))
            done += len(batch)
            watch(done)
    if not done:
        raise AutoFormerError("no images to predict; the split is empty")
    return [torch.cat(of_model) for of_model in found]


def gather_logits(logits: Tensor, world: World) -> Tensor:
    """All images' logits (n, K) in their order, from each rank's share of them. Every rank calls it, and has them."""
    shares = world.all_gather(logits)
    whole = torch.empty(sum(map(len, shares)), logits.shape[1])
    for rank, share in enumerate(shares):
        whole[rank :: world.size] = share
    return whole


def score(logits: Tensor, labels: Tensor) -> Scores:
    """Score logits (n, K) against labels (n,).

    Raises `AutoFormerError` where a logit is not finite: every figure would be meaningless.
    """
    if not torch.isfinite(logits).all():
        raise AutoFormerError("the model's outputs are not finite: its weights have diverged; train at a lower rate")
    n, classes = logits.shape
    ranked = logits.topk(min(5, classes), dim=1).indices.eq(labels[:, None])  # n x 5
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
    """How far confidence is from accuracy: sum over bins of (share of images) x |accuracy - mean confidence|.

    Bins of equal width, (m - 1) / bins < confidence <= m / bins (Guo et al., arXiv 1706.04599, section 2).
    """
    confidence = np.asarray(confidence, dtype=np.float64)
    of_bin = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = np.asarray(correct, dtype=np.float64) - confidence
    return float(np.abs(np.bincount(of_bin, weights=gap, minlength=bins)).sum() / len(confidence))


def wilson_interval(successes: int, trials: int, z: float = Z95) -> Interval:
    """Wilson's score interval of a share, both ends in [0, 1] (Wilson 1927); 95 % unless `z` says otherwise."""
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} successes in {trials} trials")
    share, z2 = successes / trials, z * z
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = z / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def paired_difference(correct: npt.ArrayLike, other: npt.ArrayLike) -> PairedDifference:
    """Compare two classifiers image by image; the interval is the usual one of paired shares (Wald)."""
    first, second = np.asarray(correct, dtype=bool), np.asarray(other, dtype=bool)
    gained, lost, n = int((first & ~second).sum()), int((second & ~first).sum()), len(first)
    percent = 100 * (gained - lost) / n
    half = 100 * Z95 * math.sqrt(gained + lost - (gained - lost) ** 2 / n) / n
    return PairedDifference(gained, lost, percent, Interval(percent - half, percent + half))


def confusion_matrix(actual: npt.ArrayLike, predicted: npt.ArrayLike, classes: int) -> npt.NDArray[np.int64]:
    """Images by actual class (rows) and predicted class (columns), (K, K)."""
    cells = np.asarray(actual, dtype=np.int64) * classes + np.asarray(predicted, dtype=np.int64)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)
