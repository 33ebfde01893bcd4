"""Find the reader of a data folder: a module with `is_mine(data)` and `read(data)`."""

from pathlib import Path
from typing import Protocol

from autoformer.errors import AutoFormerError
from components.prepare_data import cifar, class_folders, fashion_mnist, imagenet, packed, photo_sets, webdataset
from components.prepare_data.delivered import Delivered


class Reader(Protocol):
    def is_mine(self, data: Path) -> bool:
        """Whether this reader recognises the folder by its file names."""

    def read(self, data: Path) -> Delivered:
        """Every image of the folder, in place. Raises `AutoFormerError` if a file is missing, damaged or changed."""


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
    raise AutoFormerError(
        f"dataset = {dataset}: {data} is no pack of images; `make data DATA=… NAME={dataset}` makes "
        f"one of yours, `make data DATASET=… ARCHIVES=…` takes official archives, "
        f"and '{fashion_mnist.NAME}' is the data set that comes with the project"
    )


def read_to_test(data: Path, dataset: str) -> Delivered:
    """`read_delivered` for evaluation: readers that can skip the training images do."""
    reader = next((reader for reader in READERS if reader.is_mine(data)), None)
    if reader in (imagenet, class_folders, webdataset):
        return reader.read(data, splits=("val", "test"))
    return read_delivered(data, dataset)
