"""Find the reader of a data folder: a module with `is_mine(data)` and `read(data)`."""

import shlex
from pathlib import Path
from typing import Protocol

from autoformer.errors import AutoFormerError
from components.prepare_data import cifar, class_folders, fashion_mnist, imagenet, packed, photo_sets, webdataset
from components.prepare_data.delivered import Delivered
from components.prepare_data.listing import SPLIT_OF, folders_in


class Reader(Protocol):
    def is_mine(self, data: Path) -> bool:
        """Whether this reader recognises the folder by its file names."""

    def read(self, data: Path) -> Delivered:
        """Every image of the folder, in place. Raises `AutoFormerError` if a file is missing, damaged or changed."""


_MOST = 8  # folders that are looked into
READERS: tuple[Reader, ...] = (packed, imagenet, cifar, photo_sets, class_folders, webdataset)


def read_delivered(data: Path, dataset: str) -> Delivered:
    """The images of a data folder.

    Args:
        dataset: the configured name, which decides only between data sets with equal file names.

    Raises:
        AutoFormerError: the folder's layout is unknown, or a file is missing, damaged or changed.
    """
    for reader in READERS:
        if reader.is_mine(data):
            return reader.read(data)
    if dataset == fashion_mnist.NAME:  # MNIST and its successors have equal file names
        return fashion_mnist.read(data)
    if meant := _meant(data):
        raise AutoFormerError(f"{data}: no data set of its own; did you mean {shlex.quote(str(meant))}?")
    raise AutoFormerError(
        f"dataset = {dataset}: {data} is no pack of images; `make data DATA=… NAME={dataset}` makes "
        f"one of yours, `make data DATASET=… ARCHIVES=…` takes official archives, "
        f"and '{fashion_mnist.NAME}' is the data set that comes with the project"
    )


def _meant(data: Path) -> Path | None:
    """The folder around one split, or the only folder inside that a reader takes; None if there is none."""
    above = data.absolute().parent
    if data.name.lower() in SPLIT_OF and class_folders.is_mine(above):
        return above
    try:
        below = folders_in(data)
    except AutoFormerError:  # no folder
        return None
    inside = [folder for folder in below[:_MOST] if any(reader.is_mine(folder) for reader in READERS)]
    return inside[0] if len(inside) == 1 else None


def read_to_test(data: Path, dataset: str) -> Delivered:
    """`read_delivered` for evaluation: readers that can skip the training images do."""
    reader = next((reader for reader in READERS if reader.is_mine(data)), None)
    if reader in (imagenet, class_folders, webdataset):
        return reader.read(data, splits=("val", "test"))
    return read_delivered(data, dataset)
