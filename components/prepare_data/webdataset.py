"""WebDataset shards: uncompressed tars in which the files of one key are a sample: an image and its class.

The class is the text of `key.cls`, or `label` or `cls` in `key.json`. It is a name, or a number from 0, whose name may
be in a line of `classes.txt` beside the shards. A word in a shard's name is its split (train, val, test); shards
without such a word are one set. Each shard is read once, and its index is cached.
"""

import json
import re
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from autoformer.bounds import BOUNDS
from autoformer.cores import cores
from autoformer.errors import AutoFormerError, quantity
from autoformer.images.split_files import Split
from autoformer.reading import in_short, parse_json, read_bytes
from components.prepare_data.delivered import Delivered, concatenate, make_rows
from components.prepare_data.index_cache import Index, cached_index
from components.prepare_data.listing import SPLIT_OF, SUFFIXES
from components.prepare_data.tars import HashedStream, Member, members, read_tar
from runtime.common.console import Progress
from runtime.storage.data import ArchiveFile, ArchiveFolder, find_archives, size_of, state_of

CLASS_NAMES = "classes.txt"
_LABELS = ("cls", "json")
_IMAGENET_KEY = re.compile(r"(n\d{8}|ILSVRC2012_val)_\d+")  # ImageNet's names of images
_FIRST_FILES = 8  # of a shard; a label must be among them


def is_mine(data: Path) -> bool:
    return holds_shards(find_archives(data))


def holds_shards(place: ArchiveFolder) -> bool:
    """Whether the first tar begins with a labelled sample."""
    try:
        for shard in _shards(place)[:1]:
            with HashedStream(shard, hashes=()) as stream:
                files = islice(members(stream, size_of(shard)), _FIRST_FILES)
                return any(_key_and_extension(info.name)[1] in _LABELS for info in files)
    except (tarfile.TarError, OSError):
        pass
    return False


def read(data: Path, splits: tuple[str, ...] = ("train", "val", "test", "")) -> Delivered:
    """The images of the shards of the given splits.

    Raises `AutoFormerError` if a shard is damaged, an image has no label or two, or names and numbers are mixed.
    """
    root = find_archives(data)
    paths = [path for path in _shards(root) if _split_of(path.name) in splits]
    if strange := [path.name for path in paths if not path.name.isprintable()]:
        raise AutoFormerError(f"{root}: {strange[0]!a} has a name that is not in UTF-8; rename it")
    if not paths:
        raise AutoFormerError(f"{root}: no shards of {' or '.join(filter(None, splits))}")
    shards: list[Index] = []
    with Progress("prepare_data: shards", len(paths), "shards") as bar, ThreadPoolExecutor(min(8, cores())) as pool:
        for shard in pool.map(_read_shard, paths):
            shards.append(shard)
            bar.update(len(shards))
    without_split = [path for path in paths if not _split_of(path.name)]
    if 0 < len(without_split) < len(shards):
        raise AutoFormerError(f"{without_split[0]}: names no split, but other shards do; call it train, val or test")
    labels = [label for shard in shards for label in shard.facts["labels"]]
    classes = _class_names(set(labels), root)
    label_of: dict[Any, int] = {name: label for label, name in enumerate(classes)} | {n: n for n in range(len(classes))}
    imagenet = all(shard.facts["imagenet"] for shard in shards)
    return Delivered(
        title="ImageNet" if imagenet else data.name,
        classes=classes,
        rows=concatenate([shard.rows for shard in shards])._replace(
            labels=np.array([label_of[label] for label in labels], dtype=np.int32)
        ),
        splits=np.repeat([_split_of(path.name) for path in paths], [len(shard.rows.labels) for shard in shards]),
        archives={path.name: shard.facts["checksum"] for path, shard in zip(paths, shards, strict=True)},
        licence="ImageNet's terms of access: for non-commercial research" if imagenet else "not stated",
        source=f"WebDataset shards, {len(shards)} of them",
        upright=not imagenet,
    )


def _shards(root: ArchiveFolder) -> list[ArchiveFile]:
    if isinstance(root, Path):
        return [*sorted(root.glob("*.tar"))]
    return [root / name for name in sorted(root.entries) if name.endswith(".tar")]


def _split_of(name: str) -> str:
    """The split that a word of a shard's name stands for; "" for none."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((SPLIT_OF[word] for word in words if word in SPLIT_OF), "")


def _key_and_extension(name: str) -> tuple[str, str]:
    """A file's name before and after its first dot; folders belong to the key."""
    path = PurePosixPath(name)
    stem, _, extension = path.name.partition(".")
    return str(path.parent / stem), extension.lower()


def _read_shard(path: ArchiveFile) -> Index:
    """Rows without labels; facts: `labels` (int or str), `checksum`, `imagenet` (all images have ImageNet's names)."""

    def index(add: Callable[[Split], None]) -> dict[str, Any]:
        files, checksum = read_tar(path, keep=lambda name: _key_and_extension(name)[1] in _LABELS)
        samples = _samples(files, path)
        imagenet = all(_IMAGENET_KEY.fullmatch(PurePosixPath(key).name) for key in samples)
        offsets, sizes, labels, checksums = zip(*samples.values(), strict=True)
        add(make_rows(path.name, offsets, sizes, 0, checksums))
        return {"labels": labels, "checksum": checksum, "imagenet": imagenet}

    return cached_index(["shard", path.name, state_of(path)], index)


def _samples(files: list[Member], path: ArchiveFile) -> dict[str, tuple[int, int, int | str, str]]:
    """Key -> offset, size, label and checksum of the sample's image, in the order of the shard."""
    images: dict[str, Member] = {}
    labels: dict[str, int | str] = {}
    for file in files:
        key, extension = _key_and_extension(file.name)
        if extension in _LABELS:
            label = _label(file, extension, path)
            if label is not None and labels.setdefault(key, label) != label:
                raise AutoFormerError(f"{path}: {key} has two labels, '{labels[key]}' and '{label}'")
        elif f".{extension}" in SUFFIXES and file.size > BOUNDS.image_file_bytes:
            raise AutoFormerError(f"{path}: {file.name} has {file.size} bytes, too many for an image; take it out")
        elif f".{extension}" in SUFFIXES and images.setdefault(key, file) is not file:
            raise AutoFormerError(f"{path}: {key} has two images, {images[key].name} and {file.name}")
    without = [key for key in images if key not in labels]
    if without or not images:
        raise AutoFormerError(
            f"{path}: {f'{without[0]} has no label' if without else 'holds no images'}; a sample is an image and a "
            ".cls, or a .json with 'label' or 'cls'"
        )
    return {key: (image.offset, image.size, labels[key], image.checksum) for key, image in images.items()}


def _label(file: Member, extension: str, path: ArchiveFile) -> int | str | None:
    """The class in a label file; None if its JSON has none."""
    try:
        text = file.content.decode().strip()
        value = parse_json(text) if extension == "json" else text
        json.dumps(value, ensure_ascii=False).encode()  # raises for lone surrogates, which JSON allows
    except (ValueError, RecursionError) as error:
        raise AutoFormerError(f"{path}: {file.name} is not readable ({in_short(error)})") from None
    if isinstance(value, dict):
        value = value.get("label", value.get("cls"))
        if value is None:
            return None
    if isinstance(value, str) and value.isdecimal() and len(value) < 20:
        value = int(value)
    if value == "" or type(value) not in (int, str) or (isinstance(value, int) and value < 0):
        raise AutoFormerError(f"{path}: {file.name} holds no class: a number from 0, or a name")
    label: int | str = value
    return label


def _read_names(file: ArchiveFile) -> tuple[str, ...]:
    try:
        content = read_bytes(file, BOUNDS.names_bytes) if isinstance(file, Path) else file.read_bytes()
        return tuple(line.strip() for line in content.decode().splitlines() if line.strip())
    except (OSError, UnicodeError) as error:
        raise AutoFormerError(f"{file}: not readable as names of classes ({in_short(error)}); correct it") from None


def _class_names(labels: set[int | str], root: ArchiveFolder) -> tuple[str, ...]:
    numbers = {label for label in labels if isinstance(label, int)}
    if numbers and numbers != labels:
        raise AutoFormerError(f"{root}: some labels are numbers and some are names; use the one or the other")
    highest, file = max(numbers, default=0), root / CLASS_NAMES
    if max(highest, len(labels)) >= BOUNDS.classes:
        fault = f"a label is {highest}" if highest else quantity(len(labels), "class name")
        raise AutoFormerError(
            f"{root}: {fault}, but a data set has at most {BOUNDS.classes} classes; correct the labels"
        )
    if not numbers:
        classes = tuple(sorted(map(str, labels)))
    elif file.is_file():
        classes = _read_names(file)
    else:
        classes = tuple(map(str, range(1 + highest)))
    if len(classes) < 2 or highest >= len(classes):
        raise AutoFormerError(
            f"{root}: {quantity(len(classes), 'class')}, but a label is {highest}; correct {CLASS_NAMES} or the labels"
        )
    return classes
