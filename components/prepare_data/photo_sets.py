"""Oxford Flowers-102, Oxford-IIIT Pets and Stanford Cars: plain tars of photographs, and lists of labels and splits.

torchvision.datasets reads the lists. Its readers expect unpacked photographs, but open none while they index. So the
lists are unpacked beside empty folders, and the photographs are looked up by name in the tars that later steps read.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from autoformer.bounds import BOUNDS
from autoformer.errors import AutoFormerError, quantity
from components.prepare_data.delivered import Delivered, make_rows
from components.prepare_data.tars import read_tar, unpack


class _PhotoSet(NamedTuple):
    title: str
    reader: str  # class in torchvision.datasets
    folder: str  # where the reader looks
    lists: tuple[str, ...]  # delivered files that it reads there, unpacked
    tars: dict[str, str]  # folder of photographs there -> delivered tar
    splits: dict[str, str]  # our split -> torchvision's
    licence: str
    source: str
    by_name: bool = False  # order the photographs by name, not by split


PHOTO_SETS = (
    _PhotoSet(
        title="Oxford Flowers-102",
        reader="Flowers102",
        folder="flowers-102",
        lists=("imagelabels.mat", "setid.mat"),
        tars={"jpg": "102flowers.tar"},
        # Published transfer results train on both train and val, 2,040 images: here `train_full`.
        splits={"train": "train", "val": "val", "test": "test"},
        licence="not stated by the authors; for research",
        source="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        by_name=True,
    ),
    _PhotoSet(
        title="Oxford-IIIT Pets",
        reader="OxfordIIITPet",
        folder="oxford-iiit-pet",
        lists=("annotations.tar.gz",),
        tars={"images": "images.tar"},
        splits={"train": "trainval", "test": "test"},
        licence="CC BY-SA 4.0; the photographs' copyright is their owners'",
        source="https://www.robots.ox.ac.uk/~vgg/data/pets/",
    ),
    _PhotoSet(
        title="Stanford Cars",
        reader="StanfordCars",
        folder="stanford_cars",
        lists=("car_devkit.tgz", "cars_test_annos_withlabels.mat"),  # the devkit's test list has no labels
        tars={"cars_train": "cars_train.tar", "cars_test": "cars_test.tar"},
        splits={"train": "train", "test": "test"},
        licence="for non-commercial research; the photographs' copyright is their owners'",
        source="https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
    ),
)


class _Photo(NamedTuple):
    name: str
    tar: str
    label: int
    split: str


def is_mine(data: Path) -> bool:
    return _recognise(data) is not None


def _recognise(data: Path) -> _PhotoSet | None:
    """The data set, recognised by the archives of its lists, or by its tar."""
    for photo_set in PHOTO_SETS:
        archives = [name for name in photo_set.lists if not name.endswith(".mat")]
        if all((data / name).is_file() for name in archives or photo_set.tars.values()):
            return photo_set
    return None


def read(data: Path) -> Delivered:
    """The photographs. Raises `AutoFormerError` if a file is missing or damaged, or a tar lacks a listed photograph."""
    photo_set = _recognise(data)
    assert photo_set is not None, "call is_mine first"
    photos, classes = _read_lists(data, photo_set)
    tars = {name: read_tar(data / name) for name in photo_set.tars.values()}
    by_name = {name: {Path(member.name).name: member for member in members} for name, (members, _) in tars.items()}
    rows = []
    for photo in photos:
        member = by_name[photo.tar].get(photo.name)
        if member is None:
            raise AutoFormerError(f"{data / photo.tar}: holds no {photo.name}; `make data` downloads it again")
        if not 0 <= photo.label < len(classes):
            raise AutoFormerError(
                f"{data}: the label of {photo.name} lies outside the {quantity(len(classes), 'class')}"
            )
        rows.append((photo.tar, member.offset, member.size, photo.label, member.checksum))
    return Delivered(
        title=photo_set.title,
        classes=classes,
        rows=make_rows(*zip(*rows, strict=True)),
        splits=np.array([photo.split for photo in photos]),
        archives={name: checksum for name, (_, checksum) in tars.items()},
        licence=photo_set.licence,
        source=photo_set.source,
    )


def _read_lists(data: Path, photo_set: _PhotoSet) -> tuple[list[_Photo], tuple[str, ...]]:
    """The listed photographs, and the class names."""
    from torchvision import datasets

    if missing := [name for name in photo_set.lists if not (data / name).is_file()]:
        raise AutoFormerError(f"{data / missing[0]}: no such file; `make data` downloads it")
    with TemporaryDirectory() as root:
        folder = Path(root, photo_set.folder)
        for name in photo_set.tars:
            (folder / name).mkdir(parents=True)
        try:
            for faulty in photo_set.lists:
                if faulty.endswith(".mat"):
                    shutil.copy(data / faulty, folder)
                else:
                    unpack(data / faulty, folder)
            if large := [file.name for file in folder.rglob("*.mat") if file.stat().st_size > BOUNDS.list_bytes]:
                raise ValueError(f"{large[0]} is larger than a list of labels")
            faulty, reader = " or ".join(photo_set.lists), getattr(datasets, photo_set.reader)
            found = {split: reader(root, theirs) for split, theirs in photo_set.splits.items()}
            photos = [
                _Photo(path.name, photo_set.tars[path.parent.name], int(label), split)
                for split, dataset in found.items()
                for path, label in _paths_and_labels(dataset)
            ]
            classes = tuple(map(str, found["train"].classes))
            if not photos:
                raise ValueError("no photographs")
        except Exception as error:  # tarfile, scipy and torchvision raise many kinds for a damaged list
            text = " ".join(str(error).replace(f"{folder}/", "").split())
            reason = "" if isinstance(error, RuntimeError) else f" ({text})"
            raise AutoFormerError(
                f"{data / faulty}: not as published{reason}; `make data` downloads it again"
            ) from None
    return sorted(photos) if photo_set.by_name else photos, classes


def _paths_and_labels(dataset: Any) -> Iterator[tuple[Path, int]]:
    if hasattr(dataset, "loader"):
        dataset.loader = Path  # opens no image
        return iter(dataset)
    return zip(dataset._images, dataset._labels, strict=True)  # OxfordIIITPet takes no loader
