"""Mean and standard deviation of a data set's pixels, by channel. Torch-free."""

from collections.abc import Iterable

import numpy as np


def pixel_statistics(pixels: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixels in [0, 1]. `pixels`: uint8 (n, C, S, S)."""
    channels = range(pixels.shape[1])
    return value_statistics([np.bincount(pixels[:, channel].reshape(-1), minlength=256) for channel in channels])


def value_statistics(counts: Iterable[np.ndarray]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The same from the number of pixels of each value 0 to 255, by channel. Independent of the order of images."""
    values = np.arange(256) / 255
    means, deviations = [], []
    for of_channel in counts:
        frequency = of_channel / of_channel.sum()
        mean = float((frequency * values).sum())
        means.append(mean)
        deviations.append(float(np.sqrt((frequency * (values - mean) ** 2).sum())))
    return tuple(means), tuple(deviations)
