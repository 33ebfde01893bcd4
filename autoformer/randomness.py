"""Randomness as a function of (seed, step) and of (seed, epoch, sample): nothing to save, nothing to replay.

Whatever the batch, the worker or the moment of a restart, the same step draws the same subnet and the same
sample is cropped the same way.
"""

import hashlib
from random import Random

import numpy as np
import numpy.typing as npt


def derived_seed(*parts: object) -> int:
    """A 63-bit seed from any parts, such as ("drop path", seed, step, rank)."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def derived_rng(*parts: object) -> Random:
    """Python's generator, seeded from any parts."""
    return Random(derived_seed(*parts))


def epoch_order(seed: int, epoch: int, samples: int) -> npt.NDArray[np.int64]:
    """The order in which an epoch visits its samples."""
    return np.random.default_rng(derived_seed("epoch order", seed, epoch)).permutation(samples)


def sample_uniform(seed: int, epoch: int, stream: str, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """One number in [0, 1) for each sample of an epoch; streams are independent of each other.

    A counter-based generator (splitmix64's finaliser), so that a batch is one vector operation.
    """
    x = samples.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(derived_seed(stream, seed, epoch))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53
