"""Predicted scores of subnets: ridge regression on their choices. Torch-free.

Dimensions: n subnets with known scores, m subnets to predict, F features.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from autoformer.racing import Floats
from autoformer.space import SearchSpace, SubnetSpec

PENALTIES = tuple(10.0**power for power in range(-2, 4))


def one_hot(space: SearchSpace, specs: Sequence[SubnetSpec]) -> Floats:
    """One-hot features of subnets: each width, depth, and each block's heads and MLP ratio; 0 for missing blocks.

    Returns (n, F). Raises `ValueError` for a value that the space does not offer.
    """
    choices = space.choices
    blocks, heads, ratios = choices.depth[-1], len(choices.num_heads), len(choices.mlp_ratio)
    first = len(choices.embed_dim) + len(choices.depth)
    features = np.zeros((len(specs), first + blocks * (heads + ratios)))
    for row, spec in zip(features, specs, strict=True):
        row[choices.embed_dim.index(spec.embed_dim)] = 1
        row[len(choices.embed_dim) + choices.depth.index(spec.depth)] = 1
        for block, (head, ratio) in enumerate(zip(spec.num_heads, spec.mlp_ratio, strict=True)):
            start = first + block * (heads + ratios)
            row[start + choices.num_heads.index(head)] = 1
            row[start + heads + choices.mlp_ratio.index(ratio)] = 1
    return features


class Ridge:
    """Least squares with a penalty on the squared weights, but not on the intercept.

    Args:
        features: (n, F).
        scores: (n,).
        penalty: None for the one of `PENALTIES` with the least leave-one-out squared error.
    """

    def __init__(self, features: Floats, scores: npt.ArrayLike, penalty: float | None = None) -> None:
        scores = np.asarray(scores, dtype=np.float64)
        self.centre, self.mean = features.mean(axis=0), float(scores.mean())
        left, sizes, right = np.linalg.svd(features - self.centre, full_matrices=False)
        projected = left.T @ (scores - self.mean)

        def error(penalty: float) -> float:
            """Leave-one-out squared error: residuals divided by 1 minus the leverage, which includes the intercept."""
            shrunk = sizes**2 / (sizes**2 + penalty)
            leverage = 1 / len(scores) + (left**2) @ shrunk
            residual = scores - self.mean - left @ (shrunk * projected)
            return float(((residual / np.maximum(1 - leverage, 1e-12)) ** 2).sum())

        self.penalty = min(PENALTIES, key=error) if penalty is None else penalty
        self.weights = right.T @ (sizes / (sizes**2 + self.penalty) * projected)  # (F,)

    def __call__(self, features: Floats) -> Floats:
        """Predicted scores (m,) from features (m, F)."""
        return self.mean + (features - self.centre) @ self.weights


def predict(space: SearchSpace, known: Mapping[SubnetSpec, float], specs: Sequence[SubnetSpec]) -> list[float]:
    """Predicted scores of `specs`, from the `known` scores of other subnets, at least one.

    Rounded, so ties do not depend on the number of threads.
    """
    ridge = Ridge(one_hot(space, [*known]), [*known.values()])
    predicted: list[float] = ridge(one_hot(space, specs)).round(9).tolist()
    return predicted
