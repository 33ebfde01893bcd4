"""What a reader finds in a data folder, whatever its layout: every image, its class, and the split it came with."""

from typing import Literal, NamedTuple

import numpy as np

from autoformer.images.split_files import Split

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of pixels in [0, 1], by channel

IMAGENET_STATISTICS: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Of ImageNet's training pixels: what published models are fed with, on ImageNet and on what they are moved to."""


class Delivered(NamedTuple):
    title: str
    classes: tuple[str, ...]  # in the order of their labels, from 0
    rows: Split  # in the delivered order
    splits: np.ndarray  # of each row: "train", "val" or "test"; "" where the source does not say
    encoding: Literal["raw", "image"]  # as in `DatasetCard`
    image_size: int | None  # raw: in height and in width; image: of the shorter side, None for any size
    channels: int
    archives: dict[str, str]  # file name -> sha256; empty where `files`
    licence: str
    source: str
    files: bool = False  # whether each image is a file of its own, its row's archive, with its row's checksum
    upright: bool = True  # whether an image is turned as its camera noted
    statistics: Statistics | None = None  # by which pixels are normalised; None for ImageNet's, or to compute them
    notes: tuple[str, ...] = ()
