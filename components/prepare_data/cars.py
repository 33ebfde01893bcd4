"""Stanford Cars (Krause et al. 2013): two tars of photographs, and .mat files that say which car each shows."""

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from autoformer.errors import AutoFormerError
from components.prepare_data.delivered import Delivered
from components.prepare_data.labels import read_mat
from components.prepare_data.tars import Member, as_split, pick, read_member, read_tar

ARCHIVES = {"train": "cars_train.tar", "test": "cars_test.tar"}
DEVKIT = "car_devkit.tgz"
TEST_LABELS = "cars_test_annos_withlabels.mat"  # those of the devkit have none


class _Labelled(NamedTuple):
    name: str
    label: int


def is_mine(data: Path) -> bool:
    return (data / DEVKIT).is_file() and any((data / name).is_file() for name in ARCHIVES.values())


def read(data: Path) -> Delivered:
    """Raises `AutoFormerError` where a file is missing or damaged, or an image that has a label is not there."""
    devkit = data / DEVKIT
    classes = tuple(map(str, np.atleast_1d(_of_devkit(devkit, "cars_meta.mat", "class_names")).tolist()))
    labelled = {
        "train": _labelled(_of_devkit(devkit, "cars_train_annos.mat", "annotations"), devkit),
        "test": _labelled(read_mat(data / TEST_LABELS, str(data / TEST_LABELS), "annotations"), data / TEST_LABELS),
    }
    archives, labels, splits, checksums = [], [], [], {}
    members: list[Member] = []
    for split, archive in ARCHIVES.items():
        tar = read_tar(data / archive)
        checksums[archive] = tar.checksum
        members += pick(data / archive, tar, [entry.name for entry in labelled[split]])
        for entry in labelled[split]:
            if not 0 <= entry.label < len(classes):
                raise AutoFormerError(f"{data}: the label of {entry.name} lies outside the {len(classes)} classes")
            archives.append(archive)
            labels.append(entry.label)
            splits.append(split)
    return Delivered(
        title="Stanford Cars",
        classes=classes,
        rows=as_split(archives, members, labels),
        splits=np.array(splits),
        encoding="image",
        image_size=None,
        channels=3,
        archives=checksums,
        licence="for non-commercial research; the photographs' copyright is their owners'",
        source="https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
    )


def _labelled(annotations: Any, file: Path) -> list[_Labelled]:
    try:
        return [_Labelled(str(row["fname"]), int(row["class"]) - 1) for row in np.atleast_1d(annotations)]
    except (IndexError, KeyError, ValueError, TypeError) as error:
        raise AutoFormerError(f"{file}: its annotations name no files and classes ({error})") from None


def _of_devkit(file: Path, name: str, key: str) -> Any:
    """A variable of a .mat file in the devkit."""
    return read_mat(io.BytesIO(read_member(file, f"devkit/{name}")), f"{file}: devkit/{name}", key)
