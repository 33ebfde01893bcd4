"""WebDataset shards: plain tars in which files of one key make a sample, an image and its class.

The class is the text of `key.cls`, or `label` or `cls` of `key.json`: a number from 0, named by a line of
`classes.txt` beside the shards where there is one, or a name. A shard's split is a word of its own name (train, val,
test); shards of which none has one are one set. Each is read once, from beginning to end, and its index is kept.
"""

import json
import os
import re
import tarfile
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from autoformer.errors import AutoFormerError
from autoformer.images.split_files import CHECKSUM, Split
from components.prepare_data.delivered import Delivered
from components.prepare_data.kept import KeptIndex
from components.prepare_data.sources import SPLIT_OF, SUFFIXES
from components.prepare_data.tars import Member, read_tar
from runtime.common.console import Progress
from runtime.storage.data import ArchiveFile, ArchiveFolder, find_archives, state_of

CLASS_NAMES = "classes.txt"
_LABELS = ("cls", "json")
_IMAGENET_KEY = re.compile(r"(n\d{8}|ILSVRC2012_val)_\d+")  # as ImageNet names its images
_LOOKED_AT = 8  # files of a first shard, among which is a sample's label
_THREADS = min(8, os.cpu_count() or 1)


class _Shard(NamedTuple):
    name: str
    split: str
    rows: Split  # all labels 0
    labels: list[int | str]
    checksum: str
    imagenet: bool  # whether all its images are named as ImageNet's


def is_mine(data: Path) -> bool:
    return holds_shards(find_archives(data))


def holds_shards(place: ArchiveFolder) -> bool:
    """Whether the first tar begins with a sample that has a label."""
    shards = _shards(place)
    if not shards:
        return False
    try:
        with _opened(shards[0]) as tar:
            return any(_parts(info.name)[1] in _LABELS for info in islice(tar, _LOOKED_AT))
    except (tarfile.TarError, OSError):
        return False


def read(data: Path, splits: tuple[str, ...] = ("train", "val", "test", "")) -> Delivered:
    """The images of the shards of the given splits.

    Raises `AutoFormerError` where a shard is damaged, an image has no label or two, or labels do not go together.
    """
    root = find_archives(data)
    paths = [path for path in _shards(root) if _split_of(path.name) in splits]
    if not paths:
        raise AutoFormerError(f"{root}: no shards of {' or '.join(filter(None, splits))}")
    kept = KeptIndex(root)
    with Progress("prepare_data: shards", len(paths), "shards") as bar, ThreadPoolExecutor(_THREADS) as pool:
        shards = []
        for shard in pool.map(lambda path: _read_shard(path, kept), paths):
            shards.append(shard)
            bar.update(len(shards))
    with_split = {bool(shard.split) for shard in shards}
    if len(with_split) > 1:
        loose = next(shard.name for shard in shards if not shard.split)
        raise AutoFormerError(f"{root / loose}: names no split, but other shards do; call it train, val or test")
    found = [label for shard in shards for label in shard.labels]
    classes = _classes(found, root)
    number: dict[Any, int] = {name: label for label, name in enumerate(classes)} | {n: n for n in range(len(classes))}
    columns = zip(*(shard.rows for shard in shards), strict=True)
    rows = Split(*(np.concatenate(column) for column in columns))
    imagenet = all(shard.imagenet for shard in shards)
    return Delivered(
        title="ImageNet" if imagenet else data.name,
        classes=classes,
        rows=rows._replace(labels=np.array([number[label] for label in found], dtype=np.int32)),
        splits=np.repeat([shard.split for shard in shards], [len(shard.labels) for shard in shards]),
        encoding="image",
        image_size=None,
        channels=3,
        archives={shard.name: shard.checksum for shard in shards},
        licence="ImageNet's terms of access: for non-commercial research" if imagenet else "not stated",
        source=f"WebDataset shards, {len(shards)} of them",
        upright=not imagenet,
    )


def _shards(root: ArchiveFolder) -> list[ArchiveFile]:
    if isinstance(root, Path):
        return [*sorted(root.glob("*.tar"))]
    return [root / name for name in sorted(root.entries) if name.endswith(".tar")]


def _opened(shard: ArchiveFile) -> tarfile.TarFile:
    """To look at its first files; of one in S3 all bytes up to there are read."""
    if isinstance(shard, Path):
        return tarfile.open(shard, "r:")
    return tarfile.open(fileobj=shard.open(), mode="r|")


def _split_of(name: str) -> str:
    """The split that a word of a shard's name says; "" for none."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((SPLIT_OF[word] for word in words if word in SPLIT_OF), "")


def _parts(name: str) -> tuple[str, str]:
    """Key and extension: what stands before and behind the first dot of the file's name, folders being of the key."""
    path = PurePosixPath(name)
    stem, _, extension = path.name.partition(".")
    return str(path.parent / stem), extension.lower()


def _read_shard(path: ArchiveFile, kept: KeptIndex) -> _Shard:
    def index() -> dict[str, Any]:
        tar = read_tar(path, keep=lambda name: _parts(name)[1] in _LABELS)
        images = _samples(tar.members, path)
        named = all(_IMAGENET_KEY.fullmatch(PurePosixPath(key).name) for key in images)
        return {"checksum": tar.checksum, "samples": list(images.values()), "imagenet": named}

    part = kept.part(path.name, state_of(path), index)
    offsets, sizes, labels, checksums = zip(*part["samples"], strict=True)
    rows = Split(
        archives=np.full(len(labels), path.name, dtype=object),
        offsets=np.array(offsets, dtype=np.int64),
        sizes=np.array(sizes, dtype=np.int32),
        labels=np.zeros(len(labels), dtype=np.int32),
        checksums=np.array(checksums, dtype=CHECKSUM),
    )
    return _Shard(path.name, _split_of(path.name), rows, list(labels), part["checksum"], part["imagenet"])


def _samples(members: list[Member], path: ArchiveFile) -> dict[str, tuple[int, int, int | str, str]]:
    """Offset, size, label and checksum of each sample's image by its key, in the order of the shard."""
    images: dict[str, Member] = {}
    labels: dict[str, int | str] = {}
    for member in members:
        key, extension = _parts(member.name)
        if extension in _LABELS:
            label = _label(member, extension, path)
            if label is not None and labels.setdefault(key, label) != label:
                raise AutoFormerError(f"{path}: {key} has two labels, '{labels[key]}' and '{label}'")
        elif f".{extension}" in SUFFIXES and images.setdefault(key, member) is not member:
            raise AutoFormerError(f"{path}: {key} has two images, {images[key].name} and {member.name}")
    without = [key for key in images if key not in labels]
    if without or not images:
        raise AutoFormerError(
            f"{path}: {f'{without[0]} has no label' if without else 'holds no images'}; a sample is an image and a "
            ".cls, or a .json with 'label' or 'cls'"
        )
    return {key: (image.offset, image.size, labels[key], image.checksum) for key, image in images.items()}


def _label(member: Member, extension: str, path: ArchiveFile) -> int | str | None:
    """The class that a label file says; None where its JSON says none."""
    try:
        text = member.content.decode().strip()
        value = json.loads(text) if extension == "json" else text
    except ValueError as error:
        raise AutoFormerError(f"{path}: {member.name} is not readable ({error})") from None
    if isinstance(value, dict):
        value = value.get("label", value.get("cls"))
        if value is None:
            return None
    if isinstance(value, str) and value.isdigit():
        value = int(value)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | str)
        or value == ""
        or (isinstance(value, int) and value < 0)
    ):
        raise AutoFormerError(f"{path}: {member.name} holds no class: a number from 0, or a name")
    return value


def _classes(labels: list[int | str], root: ArchiveFolder) -> tuple[str, ...]:
    """The names of the classes, by label."""
    found = set(labels)
    if len({type(label) for label in found}) > 1:
        raise AutoFormerError(f"{root}: some labels are numbers and some are names; use the one or the other")
    file = root / CLASS_NAMES
    if isinstance(next(iter(found)), str):
        classes = tuple(sorted(map(str, found)))
    elif file.is_file():
        classes = tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    else:
        classes = tuple(map(str, range(1 + max(int(label) for label in found))))
    highest = max((label for label in found if isinstance(label, int)), default=0)
    if len(classes) < 2 or highest >= len(classes):
        raise AutoFormerError(
            f"{root}: {len(classes)} classes, but a label is {highest}; mend {CLASS_NAMES} or the labels"
        )
    return classes
