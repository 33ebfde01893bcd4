"""Randomness as a function of (seed, step) and of (seed, epoch, sample): nothing to save, nothing to replay.

Whatever the batch, the worker or the moment of a restart, the same step draws the same subnet and the same
sample is cropped the same way.
"""

import contextlib
import hashlib
import random
from collections.abc import Iterator
from random import Random

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


def derived_seed(*parts: object) -> int:
    """A 63-bit seed from any parts, such as ("drop path", seed, step, rank)."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def derived_rng(*parts: object) -> Random:
    """Python's generator, seeded from any parts."""
    return Random(derived_seed(*parts))


def epoch_order(seed: int, epoch: int, samples: int) -> IntArray:
    """The order in which an epoch visits its samples."""
    return np.random.default_rng(derived_seed("epoch order", seed, epoch)).permutation(samples)


def sample_uniform(seed: int, epoch: int, stream: str, samples: IntArray) -> npt.NDArray[np.float64]:
    """One number in [0, 1) for each sample of an epoch; streams are independent of each other.

    A counter-based generator (splitmix64's finaliser), so that a batch is one vector operation.
    """
    x = samples.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(derived_seed(stream, seed, epoch))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53


@contextlib.contextmanager
def seeded(*parts: object) -> Iterator[None]:
    """Python's, numpy's and torch's global generators, seeded from any parts; as they were afterwards,
    but for those of GPUs.

    For libraries that draw from them, as timm's augmentations do. Not for two threads at once.
    """
    import torch

    seed = derived_seed(*parts)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # all that it takes
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # never so in a worker process
        torch.cuda.manual_seed_all(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def repeated_order(seed: int, epoch: int, samples: int, repeats: int) -> tuple[IntArray, IntArray]:
    """The samples of an epoch with repeated augmentation, and which copy of its sample each is.

    An epoch is as long as ever, `samples`: its first samples / repeats of a shuffled order come `repeats` times each,
    the copies next to each other, so that an optimiser step has all of them, however it is dealt out (Hoffer et al.,
    arXiv 1901.09335; timm's sampler has this order too, in a process group alone, and deals it out image by image).
    """
    order = epoch_order(seed, epoch, samples)
    if repeats == 1:
        return order, np.zeros(samples, dtype=np.int64)
    place = np.arange(samples)
    return order[place // repeats], place % repeats
