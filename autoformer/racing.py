"""Early stopping of candidates: a race over growing subsets of the search split. Torch-free.

All candidates are scored on the same images, and the race estimates the score on the whole split, not the accuracy on
new images. First, images on which the earlier candidates agree say little about a new one. So the split is divided into
strata by the fraction of candidates that classified an image correctly, and strata with disagreement are sampled more
(Neyman allocation: in proportion to size and standard deviation). Second, the population is finite: after m of N images

    score = sum over strata of N_h / N x mean of the scored images,
    variance = sum over strata of (N_h / N)^2 x (1 - m_h / N_h) x s_h^2 / m_h

(Cochran, Sampling Techniques, 3rd edition, sections 5.3 to 5.5). s_h^2 comes from the scored images, with a prior
from the differences between earlier candidates.

The same holds for the loss, with two changes: a candidate's loss on an image is predicted by the mean of the complete
ones, so only the differences are sampled, and the strata are divided by how much the complete ones differ there.

A candidate is stopped if the `keep`-th best of its race and all earlier ones is better with the given confidence. The
confidence applies to each decision: a candidate that ties with the `keep`-th best over r rounds is stopped by mistake
with a probability of at most r x (1 - confidence), a better one with a lower probability.

Dimensions: n candidates, N images of the split, m scored images, H strata.
"""

from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from autoformer.frozen import Frozen
from autoformer.space import SubnetSpec

Flags = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Losses = npt.NDArray[np.float32]
Objective = Literal["accuracy", "loss"]

# Edges of the strata: fraction of candidates that classify an image correctly.
_EDGES = np.array([1e-9, 0.05, 0.15, 0.4, 0.6, 0.85, 0.95, 1 - 1e-9])
_STRATA = len(_EDGES) + 1
_PRIOR_IMAGES = 20  # weight of the prior variance of a stratum, in images
_MIN_COMPLETE = 6  # complete candidates needed for useful strata; with 2, races lose the best candidate


class ScoringTask(NamedTuple):
    """A subnet, and the images of the split to score it on (m,)."""

    spec: SubnetSpec
    images: Indices


class ScoringResult(NamedTuple):
    """Correctness of a subnet on each image of a task (m,), and its cross entropy there in nats (m,)."""

    correct: Flags
    losses: Losses

    def values(self, objective: Objective) -> Floats:
        """Values (m,) whose mean the search maximises: 0 or 1 for accuracy, or minus the loss."""
        values: npt.NDArray[np.bool_ | np.float32] = self.correct if objective == "accuracy" else -self.losses
        return values.astype(np.float64)


class Racing(Frozen):
    """Settings of the race."""

    confidence: float = Field(
        0.98, gt=0.5, lt=1, description="confidence that a stopped candidate is not among the best"
    )
    first_images: int = Field(250, gt=0, description="search images of the first round, which scores every candidate")
    growth: float = Field(1.25, ge=1.01, description="factor of the number of images from one round to the next")

    def rounds(self, images: int) -> list[int]:
        """Images scored after each round; `images` after the last."""
        sizes, size = [], float(self.first_images)
        while size < images:
            sizes.append(int(size))
            size *= self.growth
        return [*sizes, images]


class Estimate(NamedTuple):
    """A score on the whole split, greater is better, and its standard error, 0 for a complete candidate."""

    score: float
    error: float


class Strata:
    """The split, stratified by the fraction of complete candidates that classify an image correctly.

    Args:
        complete: correctness of the complete candidates, 0 or 1 (n, N); at least two candidates.
    """

    def __init__(self, complete: Floats) -> None:
        self.predicted = np.zeros(complete.shape[1])  # (N,)
        counts = complete.sum(axis=0).astype(np.int64)  # (N,)
        self.of_image = np.digitize(counts / len(complete), _EDGES)
        self.sizes = np.bincount(self.of_image, minlength=_STRATA).astype(float)  # (H,)
        self.expected = _leave_one_out(complete, counts)  # (H,)
        self.variance = self.expected * (1 - self.expected)

    def order(self) -> Indices:
        """All images (N,). Each prefix samples every stratum in proportion to its size and standard deviation."""
        position = np.empty(len(self.of_image))
        for stratum in np.flatnonzero(self.sizes):
            mine = np.flatnonzero(self.of_image == stratum)
            position[mine] = (np.arange(len(mine)) + 0.5) / len(mine) / np.sqrt(self.variance[stratum])
        return np.argsort(position, kind="stable")

    def estimate(self, values: npt.ArrayLike, images: Indices, differences: bool = False) -> Estimate:
        """The mean over the whole split, estimated from a prefix of `order`.

        Args:
            values: values of a candidate (m,); with `differences`, of one candidate minus another.
            images: a prefix of `order` (m,).
        """
        values, stratum = np.asarray(values, dtype=float), self.of_image[images]
        predicted = 0.0 if differences else self.predicted
        values = values - (0.0 if differences else self.predicted[images])
        scored, total, squares = (
            np.bincount(stratum, weights=weights, minlength=_STRATA) for weights in (None, values, values * values)
        )
        at_least_one = np.maximum(scored, 1)
        mean = np.where(scored > 0, total / at_least_one, 0.0 if differences else self.expected)
        deviations = np.maximum(squares - scored * mean * mean, 0) * (scored > 0)
        prior = self.variance * (2 if differences else 1)
        variance = (deviations + _PRIOR_IMAGES * prior) / (scored + _PRIOR_IMAGES)
        weight, unscored = self.sizes / self.sizes.sum(), 1 - scored / np.maximum(self.sizes, 1)
        error = np.sqrt((weight * weight * unscored * variance / at_least_one).sum())
        one_image = 1 / len(self.of_image)
        return Estimate(float(np.mean(predicted) + (weight * mean).sum()), max(float(error), one_image))

    def estimate_mean(self, values: npt.ArrayLike, predicted: Floats, images: Indices) -> float:
        """The mean of another quantity over the whole split, from its values (m,) and its prediction (N,)."""
        stratum = self.of_image[images]
        scored, total = (
            np.bincount(stratum, weights=weights, minlength=len(self.sizes))
            for weights in (None, np.asarray(values, dtype=float) - predicted[images])
        )
        return float(predicted.mean() + (self.sizes * total / np.maximum(scored, 1)).sum() / self.sizes.sum())


class LossStrata(Strata):
    """The split, stratified by how much the complete candidates differ on an image.

    Args:
        complete: minus the losses of the complete candidates (n, N); at least two candidates.
    """

    def __init__(self, complete: Floats) -> None:
        self.predicted = complete.mean(axis=0)
        variance = complete.var(axis=0, ddof=1) * (1 + 1 / len(complete))  # of a new candidate minus the mean
        order = np.argsort(variance, kind="stable")
        deviations = np.sqrt(variance[order] + 1e-12).cumsum()
        self.of_image = np.empty(len(variance), dtype=np.int64)
        self.of_image[order] = np.minimum(_STRATA * deviations / deviations[-1], _STRATA - 1)  # equal deviation in each
        self.sizes = np.bincount(self.of_image, minlength=_STRATA).astype(float)
        self.expected = np.zeros(_STRATA)
        sums = np.bincount(self.of_image, weights=variance, minlength=_STRATA)
        self.variance = sums / np.maximum(self.sizes, 1) + 1e-12


def _leave_one_out(complete: Floats, counts: npt.NDArray[np.int64]) -> Floats:
    """Accuracy of a candidate in each stratum, where strata are defined by the other candidates (H,)."""
    images, correct = np.zeros(_STRATA), np.zeros(_STRATA)
    for flags in complete:
        stratum = np.digitize((counts - flags.astype(np.int64)) / (len(complete) - 1), _EDGES)
        images += np.bincount(stratum, minlength=_STRATA)
        correct += np.bincount(stratum, weights=flags, minlength=_STRATA)
    return (correct + 0.5) / (images + 1)


class Race:
    """The race of one generation. Iterate over `rounds`, and `record` the results of each round.

    If too few candidates are complete, the first entrants are scored on the whole split.

    Args:
        racing: None to score all entrants on the whole split.
        entrants: number of candidates, numbered from 0.
        images: N.
        keep: number of best candidates that are never stopped.
        complete: values of earlier complete candidates (n, N), for the strata.
        scores: of the rivals, greater is better.
        objective: kind of the values; see `ScoringResult.values`.
    """

    def __init__(
        self, racing: Racing | None, entrants: int, images: int, keep: int, complete: Sequence[Floats],
        scores: Sequence[float], objective: Objective = "accuracy",
    ) -> None:  # fmt: skip
        self.racing, self.images, self.keep, self.objective = racing, images, keep, objective
        self.strata: Strata | None = None  # None until enough candidates are complete
        self.complete, self.scores = list(complete), list(scores)
        self.live = list(range(entrants))
        self.estimates: dict[int, Estimate] = {}
        self.answered = dict.fromkeys(self.live, 0)  # number of scored images
        self._values: dict[int, list[Floats]] = {entrant: [] for entrant in self.live}

    def rounds(self) -> Iterator[tuple[list[int], Indices]]:
        """Entrants to score, and the images to score them on (m,), until all entrants are stopped or complete."""
        everything, entrants = np.arange(self.images), self.live
        needed = len(entrants)
        if self.racing is not None:
            needed = max(self.keep - len(self.scores), _MIN_COMPLETE - len(self.complete), 0)
        if first := entrants[:needed]:
            yield first, everything
            self.complete += [self._values[entrant][0] for entrant in first]
            self.scores += [self.estimates[entrant].score for entrant in first]
        self.live = entrants[needed:]
        if self.racing is None or not self.live:
            return
        kind = Strata if self.objective == "accuracy" else LossStrata
        strata, start = kind(np.array(self.complete, dtype=float)), 0
        self.strata, order = strata, strata.order()
        for size in self.racing.rounds(self.images):
            if not self.live:
                return
            yield list(self.live), order[start:size]
            if size < self.images:
                self._stop(strata, order[:size])
            start = size

    def record(self, values: Mapping[int, Floats]) -> None:
        """Record the values of each entrant on the images of the last round (m,)."""
        for entrant, of_round in values.items():
            self._values[entrant].append(of_round)
            self.answered[entrant] += len(of_round)
            if self.answered[entrant] == self.images:
                score = float(sum(part.sum() for part in self._values[entrant])) / self.images
                self.estimates[entrant] = Estimate(score, 0.0)

    def _stop(self, strata: Strata, images: Indices) -> None:
        """Stop the entrants that are worse than the `keep`-th best. `images`: scored for all entrants (m,)."""
        assert self.racing is not None
        values = {entrant: np.concatenate(self._values[entrant]) for entrant in self.live}
        self.estimates |= {entrant: strata.estimate(values[entrant], images) for entrant in self.live}
        ranking = [(score, -1) for score in self.scores]
        ranking += [(self.estimates[entrant].score, entrant) for entrant in self.live]
        ranking.sort(key=lambda entry: -entry[0])
        if len(ranking) <= self.keep:
            return
        bar, holder = ranking[self.keep - 1]
        quantile = NormalDist().inv_cdf(self.racing.confidence)
        best = {entrant for _, entrant in ranking[: self.keep]}

        def is_worse(entrant: int) -> bool:
            difference, error = self.estimates[entrant]
            difference -= bar
            if holder >= 0:  # the holder is an entrant: paired comparison, image by image
                paired = values[entrant].astype(float) - values[holder]
                difference, error = strata.estimate(paired, images, differences=True)
            return difference + quantile * error < 0

        self.live = [entrant for entrant in self.live if entrant in best or not is_worse(entrant)]
