"""Predicted scores of subnets: a Gaussian process (Rasmussen and Williams, chapters 2 and 5). Torch-free.

The closer the choices of two subnets in the lists of the space, the more alike their scores. With a rate for each of
width, depth, heads and ratio, and a missing block one place before the first choice, the correlation of two scores is

    exp(-(rate of width x places between the widths + the same for depth + the sums over blocks for heads and ratio)).

Unlike a sum of one term for each choice, this lets the effect of a choice differ between parts of the space.

Dimensions: n subnets with known scores, m subnets to predict, F coordinates.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from autoformer.racing import Floats
from autoformer.space import SearchSpace, SubnetSpec

MOST_KNOWN = 500  # the best scores that train a predictor: its time grows with their cube
RATES = (0.01, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6)
NOISES = (1e-4, 1e-3, 1e-2, 1e-1)  # variance of what the choices do not explain, as a share of the scores'
_START = (0.2, 0.2, 0.2, 0.2, 1e-2)
_PREDICTED = 1000  # subnets at a time
_PASSES = 4  # over the rates and the noise


def coordinates(space: SearchSpace, specs: Sequence[SubnetSpec]) -> Floats:
    """Places of choices in their lists: width, depth, and each block's heads and ratio, from 1; 0 for missing blocks.

    Returns (n, F). Raises `ValueError` for a value that the space does not offer.
    """
    choices = space.choices
    blocks = choices.depth[-1]
    places = np.zeros((len(specs), 2 + 2 * blocks))
    for row, spec in zip(places, specs, strict=True):
        row[:2] = choices.embed_dim.index(spec.embed_dim), choices.depth.index(spec.depth)
        row[2 : 2 + spec.depth] = [1 + choices.num_heads.index(heads) for heads in spec.num_heads]
        row[2 + blocks : 2 + blocks + spec.depth] = [1 + choices.mlp_ratio.index(ratio) for ratio in spec.mlp_ratio]
    return places


def distances(first: Floats, second: Floats) -> Floats:
    """Distances (4, n, m) of coordinates (n, F) and (m, F): of width, depth, heads and ratios, summed over blocks."""
    blocks = (first.shape[1] - 2) // 2
    found = np.zeros((4, len(first), len(second)))
    for column, kind in enumerate([0, 1, *[2] * blocks, *[3] * blocks]):
        found[kind] += np.abs(first[:, column, None] - second[None, :, column])
    return found


class GaussianProcess:
    """The mean, given known scores, of a Gaussian process with a constant mean.

    Args:
        places: coordinates (n, F), each subnet once.
        scores: (n,).
        hyper: the four rates and the noise; None for those of `RATES` and `NOISES` with the greatest marginal
            likelihood that changing one at a time finds.
    """

    def __init__(self, places: Floats, scores: npt.ArrayLike, hyper: Sequence[float] | None = None) -> None:
        scores = np.asarray(scores, dtype=np.float64)
        self.places, self.mean = places, float(scores.mean())
        self.residual = scores - self.mean  # (n,)
        self._distances = distances(places, places)
        self.hyper = tuple(hyper) if hyper is not None else self._most_likely()
        self.weights = np.linalg.solve(self._covariance(self.hyper), self.residual)  # (n,)

    def __call__(self, places: Floats) -> Floats:
        """Predicted scores (m,) from coordinates (m, F), some at a time: the distances of all could fill the memory."""
        parts = [places[start : start + _PREDICTED] for start in range(0, len(places), _PREDICTED)]
        found = [_correlation(distances(part, self.places), self.hyper) @ self.weights for part in parts]
        return self.mean + np.concatenate([np.zeros(0), *found])

    def log_likelihood(self, hyper: Sequence[float]) -> float:
        """Log marginal likelihood of the scores, up to a constant, at the variance that maximises it."""
        covariance = self._covariance(hyper)
        variance = float(self.residual @ np.linalg.solve(covariance, self.residual)) / len(self.residual)
        determinant = 2 * float(np.log(np.diag(np.linalg.cholesky(covariance))).sum())
        return -len(self.residual) / 2 * math.log(variance) - determinant / 2

    def _covariance(self, hyper: Sequence[float]) -> Floats:
        """Covariance (n, n) of the known scores, as a multiple of the process's variance."""
        return _correlation(self._distances, hyper) + hyper[-1] * np.eye(len(self.residual))

    def _most_likely(self) -> tuple[float, ...]:
        hyper: tuple[float, ...] = _START
        if not self.residual.any():  # equal scores tell nothing
            return hyper
        best = self.log_likelihood(hyper)
        for number in range(_PASSES * len(_START)):
            place = number % len(_START)
            for value in NOISES if place == len(_START) - 1 else RATES:
                tried = (*hyper[:place], value, *hyper[place + 1 :])
                likelihood = self.log_likelihood(tried)
                if likelihood > best + 1e-6:  # more than rounding, which depends on the number of threads
                    hyper, best = tried, likelihood
        return hyper


def _correlation(apart: Floats, hyper: Sequence[float]) -> Floats:
    """(n, m) from distances (4, n, m)."""
    correlation: Floats = np.exp(-np.tensordot(hyper[:-1], apart, axes=1))
    return correlation


def predict(space: SearchSpace, known: Mapping[SubnetSpec, float], specs: Sequence[SubnetSpec]) -> list[float]:
    """Predicted scores of `specs`, from the `known` scores of other subnets, at least one.

    Rounded, so ties do not depend on the number of threads.
    """
    best = sorted(known, key=lambda spec: -known[spec])[:MOST_KNOWN]
    process = GaussianProcess(coordinates(space, best), [known[spec] for spec in best])
    predicted: list[float] = process(coordinates(space, specs)).round(9).tolist()
    return predicted
