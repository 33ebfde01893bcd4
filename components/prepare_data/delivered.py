"""The result of every reader: the images of a data folder, their classes, and the splits that the source has."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from autoformer.images.pixel_rule import PixelRule
from autoformer.images.split_files import CHECKSUM, Split

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of pixels in [0, 1], by channel

IMAGENET_STATISTICS: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Of ImageNet's training pixels; published models are fed with them, on ImageNet and on transfer sets."""


class Delivered(NamedTuple):
    title: str
    classes: tuple[str, ...]  # in the order of their labels, from 0
    rows: Split  # in the delivered order
    splits: np.ndarray  # of each row: "train", "val" or "test"; "" if the source has none
    archives: dict[str, str]  # file name -> sha256; empty if `files`
    licence: str
    source: str
    encoding: Literal["raw", "image"] = "image"  # as in `DatasetCard`
    image_size: int | None = None  # raw: height and width; image: the shorter side, None for any size
    channels: int = 3
    files: bool = False  # each image is a separate file, verified by its row's checksum
    upright: bool = True  # apply the EXIF orientation
    notes: tuple[str, ...] = ()
    originals: np.ndarray | None = None  # S64, sha256 of each image before packing; None if not recorded
    pixels: PixelRule | None = None  # of a pack, whose images are already converted; None for the configured rule


def make_rows(
    archives: str | Sequence[str], offsets: npt.ArrayLike, sizes: npt.ArrayLike, labels: npt.ArrayLike, checksums: Any
) -> Split:
    """Rows with the column types; a single archive, offset, size or label applies to every row."""
    count = len(checksums)
    names = np.empty(count, dtype=object)
    names[:] = archives  # one string object for all rows that share it

    def column(values: npt.ArrayLike, dtype: type) -> np.ndarray:
        return np.broadcast_to(np.array(values, dtype), count).copy()

    numbers = column(offsets, np.int64), column(sizes, np.int32), column(labels, np.int32)
    return Split(names, *numbers, np.array(checksums, dtype=CHECKSUM))


def concatenate(rows: Sequence[Split]) -> Split:
    return Split(*(np.concatenate(columns) for columns in zip(*rows, strict=True)))
