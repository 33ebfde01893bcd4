"""Mean and standard deviation of a data set's pixels, by channel. Torch-free.

Letters in shapes: n images, C channels, S pixels in height and in width.
"""

from collections.abc import Iterable

import numpy as np


def pixel_statistics(pixels: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, pixels in [0, 1]. `pixels`: uint8 (n, C, S, S).

    Counted by value, so that the result depends neither on the order of the images nor on how a sum is split.
    """
    channels = range(pixels.shape[1])
    return value_statistics([np.bincount(pixels[:, channel].reshape(-1), minlength=256) for channel in channels])


def value_statistics(counts: Iterable[np.ndarray]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, pixels in [0, 1]. `counts`: pixels of each value 0 to 255."""
    values = np.arange(256) / 255
    means, deviations = [], []
    for of_channel in counts:
        share = of_channel / of_channel.sum()
        mean = float((share * values).sum())
        means.append(mean)
        deviations.append(float(np.sqrt((share * (values - mean) ** 2).sum())))
    return tuple(means), tuple(deviations)
