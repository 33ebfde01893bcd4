"""Randomness as a function of (seed, step) and of (seed, epoch, sample), so there is no generator state to save.

The same step draws the same subnet, and a sample gets the same crop, whatever the batch, the worker or the restarts.
"""

import contextlib
import hashlib
import random
from collections.abc import Iterator
from random import Random

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


def derived_seed(*key: object) -> int:
    """A 63-bit seed, a hash of a key such as ("subnet", seed, step)."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def derived_rng(*key: object) -> Random:
    """Python's generator, seeded from a key."""
    return Random(derived_seed(*key))


def epoch_order(seed: int, epoch: int, samples: int) -> IntArray:
    """The order in which an epoch visits its samples."""
    return np.random.default_rng(derived_seed("epoch order", seed, epoch)).permutation(samples)


def sample_uniform(seed: int, epoch: int, stream: str, samples: IntArray) -> npt.NDArray[np.float64]:
    """One number in [0, 1) per sample (n,); streams are independent.

    A counter-based generator (splitmix64's finaliser): a batch is one vector operation.
    """
    x = samples.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(derived_seed(stream, seed, epoch))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53


@contextlib.contextmanager
def seeded(*key: object) -> Iterator[None]:
    """Seed the global generators of Python, numpy and torch from a key, and restore them on exit, except on GPUs.

    For libraries that use them, such as timm's augmentations. Not thread-safe.
    """
    import torch

    seed = derived_seed(*key)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # numpy takes 32 bits
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # never in a worker process
        torch.cuda.manual_seed_all(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def repeated_order(seed: int, epoch: int, samples: int, repeats: int) -> tuple[IntArray, IntArray]:
    """The samples of an epoch with repeated augmentation (Hoffer et al., arXiv 1901.09335), and their copy numbers.

    An epoch keeps its length: the first samples / repeats of the shuffled order come `repeats` times each. Copies are
    adjacent, so one optimiser step has all of them. timm's sampler has the same order, but needs a process group, and
    distributes it over the ranks image by image.
    """
    order = epoch_order(seed, epoch, samples)
    if repeats == 1:
        return order, np.zeros(samples, dtype=np.int64)
    place = np.arange(samples)
    return order[place // repeats], place % repeats
