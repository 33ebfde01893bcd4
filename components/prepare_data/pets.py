"""Oxford-IIIT Pets (Parkhi et al. 2012): a tar of photographs, and lists of those to train and to test on."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from autoformer.errors import AutoFormerError
from components.prepare_data.delivered import Delivered
from components.prepare_data.tars import as_split, pick, read_member, read_tar

ARCHIVE = "images.tar"
ANNOTATIONS = "annotations.tar.gz"
LISTS = {"train": "annotations/trainval.txt", "test": "annotations/test.txt"}


class _Listed(NamedTuple):
    name: str
    label: int
    split: str


def is_mine(data: Path) -> bool:
    return (data / ARCHIVE).is_file() and (data / ANNOTATIONS).is_file()


def read(data: Path) -> Delivered:
    """Raises `AutoFormerError` where a file is missing or damaged, or an image that is listed is not there."""
    listed = _read_lists(data / ANNOTATIONS)
    tar = read_tar(data / ARCHIVE)
    members = pick(data / ARCHIVE, tar, [f"{entry.name}.jpg" for entry in listed])
    return Delivered(
        title="Oxford-IIIT Pets",
        classes=_classes(listed, data / ANNOTATIONS),
        rows=as_split(
            [ARCHIVE] * len(listed),
            members,
            [entry.label for entry in listed],
        ),
        splits=np.array([entry.split for entry in listed]),
        encoding="image",
        image_size=None,
        channels=3,
        archives={ARCHIVE: tar.checksum},
        licence="CC BY-SA 4.0; the photographs' copyright is their owners'",
        source="https://www.robots.ox.ac.uk/~vgg/data/pets/",
    )


def _read_lists(file: Path) -> list[_Listed]:
    """Each line: the image's name, its class from 1, cat or dog, and the breed's number among them."""
    listed = []
    for split, name in LISTS.items():
        text = read_member(file, name).decode("utf-8", "replace")
        for number, line in enumerate(text.splitlines(), start=1):
            if line.startswith("#"):
                continue
            words = line.split()
            if len(words) != 4 or not words[1].isdigit() or words[1] == "0" or "_" not in words[0]:
                raise AutoFormerError(f"{file}: {name}, line {number}: expected an image's name and three numbers")
            listed.append(_Listed(words[0], int(words[1]) - 1, split))
    return listed


def _classes(listed: list[_Listed], file: Path) -> tuple[str, ...]:
    """Their names, which are what an image's name begins with, written as torchvision's OxfordIIITPet does."""
    names: dict[int, str] = {}
    for entry in listed:
        name = " ".join(part.title() for part in entry.name.rsplit("_", 1)[0].split("_"))
        if names.setdefault(entry.label, name) != name:
            raise AutoFormerError(f"{file}: class {entry.label + 1} is '{names[entry.label]}' and '{name}'")
    if sorted(names) != list(range(len(names))) or len(names) < 2:
        raise AutoFormerError(f"{file}: its {len(names)} classes are not numbered from 1 without a gap")
    return tuple(names[label] for label in range(len(names)))
