"""Which candidates are worth more images: a race over growing parts of the search split. Torch-free.

All candidates answer the same images, and the race is after the score on the whole split, not after the accuracy in
the world. Two things follow. Images that the candidates so far have all right, or all wrong, tell little of a new
one; so the split is cut into strata by how many had an image right, and more is taken of those where they differ
(Neyman allocation: in proportion to the stratum's size and deviation). And what is left to be answered is finite: a
score that is half known is uncertain in the other half alone. So after m of N images

    score = sum over strata of N_h / N x mean of the answered,
    variance = sum over strata of (N_h / N)^2 x (1 - m_h / N_h) x s_h^2 / m_h

(Cochran, Sampling Techniques, 3rd edition, sections 5.3 to 5.5), with s_h^2 from the answers and, while these are few,
from how the candidates so far differ from one another.

A candidate is stopped where the `keep`-th best of its race and of all before it is better with the stated confidence.
That holds for each decision by itself: a candidate that is looked at r times and ties with the `keep`-th best is
stopped in error with a probability of at most r x (1 - confidence); a better one, in less.

Letters in shapes: n candidates, N images of the split, m images answered, H strata.
"""

from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from autoformer.frozen import Frozen
from autoformer.space import SubnetSpec

Flags = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Strata end at these shares of candidates that have an image right: none, hardly any, ..., hardly all, all.
_EDGES = np.array([1e-9, 0.05, 0.15, 0.4, 0.6, 0.85, 0.95, 1 - 1e-9])
_STRATA = len(_EDGES) + 1
_PRIOR_IMAGES = 20  # what is known of a stratum beforehand weighs as much as so many answers
_FEWEST = 2  # complete candidates, from which deviations can be told


class ScoringTask(NamedTuple):
    """A subnet, and the images of the split that it is to answer (m,)."""

    spec: SubnetSpec
    images: Indices


class ScoringResult(NamedTuple):
    """Which images of its task a subnet has right (m,), and its cross entropy summed over them, in nats."""

    right: Flags
    loss_sum: float


class Racing(Frozen):
    """How a race goes: hopeless candidates are stopped on growing parts of the search split."""

    confidence: float = Field(0.98, gt=0.5, lt=1, description="that a stopped candidate is not among the best")
    first_images: int = Field(250, gt=0, description="search images that every candidate is scored on")
    growth: float = Field(1.25, gt=1, description="of the images from one look to the next")

    def rounds(self, images: int) -> list[int]:
        """Images that have been answered after each round; the last one is the whole split."""
        sizes, size = [], float(self.first_images)
        while size < images:
            sizes.append(int(size))
            size *= self.growth
        return [*sizes, images]


class Estimate(NamedTuple):
    """A score on the whole split, in [0, 1], and its standard error, 0 where all of it is known."""

    score: float
    error: float


class Strata:
    """The split, cut by how many of the complete candidates have an image right.

    Args:
        complete: answers of at least two complete candidates to the whole split (n, N).
    """

    def __init__(self, complete: Flags) -> None:
        counts = complete.sum(axis=0)  # N
        self.of_image = np.digitize(counts / len(complete), _EDGES)
        self.sizes = np.bincount(self.of_image, minlength=_STRATA).astype(float)
        self.expected = _left_one_out(complete, counts)
        self.variance = self.expected * (1 - self.expected)

    def order(self) -> Indices:
        """All images, so that each prefix has of every stratum in proportion to its size and deviation.

        Within a stratum they stay in the order of the split.
        """
        place = np.empty(len(self.of_image))
        for stratum in np.flatnonzero(self.sizes):
            mine = np.flatnonzero(self.of_image == stratum)
            place[mine] = (np.arange(len(mine)) + 0.5) / len(mine) / np.sqrt(self.variance[stratum])
        return np.argsort(place, kind="stable")

    def estimate(self, values: npt.ArrayLike, images: Indices, differences: bool = False) -> Estimate:
        """The mean of values over the whole split, from those of `images` (m,).

        Args:
            values: answers, 0 or 1, or with `differences` those of one candidate minus those of another (m,).
            images: as a prefix of `order` has them.
        """
        values, stratum = np.asarray(values, dtype=float), self.of_image[images]
        answered, total, squares = (
            np.bincount(stratum, weights=weights, minlength=_STRATA) for weights in (None, values, values * values)
        )
        least = np.maximum(answered, 1)
        mean = np.where(answered > 0, total / least, 0.0 if differences else self.expected)
        spread = np.maximum(squares - answered * mean * mean, 0) * (answered > 0)
        before = self.variance * (2 if differences else 1)
        variance = (spread + _PRIOR_IMAGES * before) / (answered + _PRIOR_IMAGES)
        share, left = self.sizes / self.sizes.sum(), 1 - answered / np.maximum(self.sizes, 1)
        error = np.sqrt((share * share * left * variance / least).sum())
        surprise = 1 / len(self.of_image)  # in one image is always possible
        return Estimate(float((share * mean).sum()), max(float(error), surprise))


def _left_one_out(complete: Flags, counts: npt.NDArray[np.int64]) -> Floats:
    """How often a candidate has an image of a stratum right, where the stratum is told by the others (H,)."""
    images, right = np.zeros(_STRATA), np.zeros(_STRATA)
    for answers in complete:
        stratum = np.digitize((counts - answers) / (len(complete) - 1), _EDGES)
        images += np.bincount(stratum, minlength=_STRATA)
        right += np.bincount(stratum, weights=answers, minlength=_STRATA)
    return (right + 0.5) / (images + 1)


class Round(NamedTuple):
    """What is to be answered next: which entrants, and which images beyond those that they have answered (m,)."""

    entrants: list[int]
    images: Indices


class Race:
    """One generation. Go through `rounds`, and before each next one `tell` the answers to the last.

    As many entrants as it takes to compare with are given the whole split at first, if fewer candidates are complete.

    Args:
        racing: None gives every entrant the whole split at once.
        entrants: how many candidates take part; they are numbered from 0.
        images: N.
        keep: how many of the best are never stopped.
        complete: whole answers of the candidates before (n, N), for what they tell of the images.
        scores: of those whom the entrants are up against, each from 0 to 1.
    """

    def __init__(
        self, racing: Racing | None, entrants: int, images: int, keep: int, complete: Sequence[Flags],
        scores: Sequence[float],
    ) -> None:  # fmt: skip
        self.racing, self.images, self.keep = racing, images, keep
        self.before, self.scores = list(complete), list(scores)
        self.live = list(range(entrants))
        self.estimates: dict[int, Estimate] = {}
        self.answered = dict.fromkeys(self.live, 0)
        self._answers: dict[int, list[Flags]] = {entrant: [] for entrant in self.live}

    def rounds(self) -> Iterator[Round]:
        """What is to be answered, until all entrants are stopped or complete."""
        everything, entrants = np.arange(self.images), self.live
        needed = len(entrants)
        if self.racing is not None:
            needed = max(self.keep - len(self.scores), _FEWEST - len(self.before), 0)
        if first := entrants[:needed]:
            yield Round(first, everything)
            self.before += [self._answers[entrant][0] for entrant in first]
            self.scores += [self.estimates[entrant].score for entrant in first]
        self.live = entrants[needed:]
        if self.racing is None or not self.live:
            return
        strata, start = Strata(np.array(self.before)), 0
        order = strata.order()
        for size in self.racing.rounds(self.images):
            if not self.live:
                return
            yield Round(list(self.live), order[start:size])
            if size < self.images:
                self._stop(strata, order[:size])
            start = size

    def record(self, answers: Mapping[int, Flags]) -> None:
        """Which images of the last round each of its entrants had right (m,)."""
        for entrant, right in answers.items():
            self._answers[entrant].append(right)
            self.answered[entrant] += len(right)
            if self.answered[entrant] == self.images:
                score = sum(int(part.sum()) for part in self._answers[entrant]) / self.images
                self.estimates[entrant] = Estimate(score, 0.0)

    def _stop(self, strata: Strata, images: Indices) -> None:
        """Take out who is worse than the `keep`-th best, with confidence. `images`: all that the live have answered."""
        assert self.racing is not None
        answers = {entrant: np.concatenate(self._answers[entrant]) for entrant in self.live}
        self.estimates |= {entrant: strata.estimate(answers[entrant], images) for entrant in self.live}
        field = [(score, -1) for score in self.scores]
        field += [(self.estimates[entrant].score, entrant) for entrant in self.live]
        field.sort(key=lambda one: -one[0])
        if len(field) <= self.keep:
            return
        bar, holder = field[self.keep - 1]
        quantile = NormalDist().inv_cdf(self.racing.confidence)
        inside = {entrant for _, entrant in field[: self.keep]}

        def hopeless(entrant: int) -> bool:
            difference, error = self.estimates[entrant]
            difference -= bar
            if holder >= 0:  # still racing itself: compared image by image
                gained = answers[entrant].astype(float) - answers[holder]
                difference, error = strata.estimate(gained, images, differences=True)
            return difference + quantile * error < 0

        self.live = [entrant for entrant in self.live if entrant in inside or not hopeless(entrant)]
