"""Which reader a data folder is for. A reader is a module with `is_mine(data)` and `read(data)`."""

from pathlib import Path
from typing import Protocol

from autoformer.errors import AutoFormerError
from components.prepare_data import (
    cars,
    cifar,
    class_folders,
    fashion_mnist,
    flowers,
    imagenet,
    packed,
    pets,
    webdataset,
)
from components.prepare_data.delivered import Delivered


class Reader(Protocol):
    def is_mine(self, data: Path) -> bool:
        """Whether the folder looks as this reader's data do: by names of files, without a look into them."""

    def read(self, data: Path) -> Delivered:
        """Every image that was delivered, none of them moved; `AutoFormerError` where a file is not as it should be."""


READERS: tuple[Reader, ...] = (packed, imagenet, cifar, flowers, pets, cars, class_folders, webdataset)


def read_delivered(data: Path, dataset: str) -> Delivered:
    """What lies in a data folder.

    Args:
        data: the folder.
        dataset: the configured name. It decides only where files of one name belong to several data sets.

    Raises:
        AutoFormerError: nothing there is known, or it is not as it was delivered.
    """
    for reader in READERS:
        if reader.is_mine(data):
            return reader.read(data)
    if dataset == fashion_mnist.NAME:  # MNIST and its heirs all name their files so
        return fashion_mnist.read(data)
    raise AutoFormerError(
        f"dataset = {dataset}: {data} is no pack of images; `make data DATA=… NAME={dataset}` makes "
        f"one of yours, `make data DATASET=… ARCHIVES=…` takes official archives, "
        f"and '{fashion_mnist.NAME}' is the data set that comes with the project"
    )


def read_to_test(data: Path, dataset: str) -> Delivered:
    """As `read_delivered`, but without the training images where a reader can leave them unread."""
    reader = next((reader for reader in READERS if reader.is_mine(data)), None)
    if reader in (imagenet, class_folders, webdataset):
        return reader.read(data, splits=("val", "test"))
    return read_delivered(data, dataset)
