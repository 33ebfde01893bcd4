"""Class folders below train/ and val/ or test/, used where they lie: ImageNet as torchvision's ImageFolder reads it.

Nothing is packed or copied: each image stays a file of its own, its row names it, and the row's checksum is the truth
that a reading is held against. The first reading of 1.3 million files takes as long as the disk does; what is found
is kept class by class in the work folder, and a class is read again only where a name, size or time in it changes.
"""

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import file_digest
from pathlib import Path

import numpy as np

from autoformer.errors import AutoFormerError
from autoformer.images.source import archive_folder
from autoformer.images.split_files import CHECKSUM, Split
from components.prepare_data.delivered import Delivered
from components.prepare_data.kept import KeptIndex
from components.prepare_data.sources import SPLIT_NAMES, SPLIT_OF, SUFFIXES
from runtime.common.console import Progress
from runtime.storage.data import find_archives

_WNID = re.compile(r"n\d{8}")  # a synset of WordNet, as ImageNet names its classes
_THREADS = min(16, 2 * (os.cpu_count() or 1))  # they wait for the disk


def is_mine(data: Path) -> bool:
    place = find_archives(data)
    return isinstance(place, Path) and "train" in _split_folders(place)


def read(data: Path, splits: tuple[str, ...] = ("train", "val", "test")) -> Delivered:
    """The images of the given splits; the classes are those of train, as ImageFolder sorts them.

    Raises `AutoFormerError` where a class has no image, is in one split only, or a file cannot be read.
    """
    root = archive_folder(data)
    folders = _split_folders(root)
    classes = tuple(_class_names(folders["train"]))
    parts = [
        (split, folder, name) for split, folder in folders.items() if split in splits for name in _class_names(folder)
    ]
    unknown = [folder / name for _, folder, name in parts if name not in classes]
    if unknown or len(classes) < 2:
        what = f"{unknown[0]}: a class that train does not have" if unknown else f"{root}: fewer than two classes"
        raise AutoFormerError(f"{what}; give every split the same class folders")
    kept, label_of = KeptIndex(root), {name: label for label, name in enumerate(classes)}
    rows, names = [], []
    with Progress("prepare_data: class folders", len(parts), "folders") as bar, ThreadPoolExecutor(_THREADS) as pool:
        for done, (split, folder, name) in enumerate(parts, start=1):
            rows.append(_rows(root, folder / name, label_of[name], kept, pool))
            names += [split] * len(rows[-1].labels)
            bar.update(done)
    imagenet = all(_WNID.fullmatch(name) for name in classes)
    return Delivered(
        title="ImageNet" if imagenet else data.name,
        classes=classes,
        rows=Split(*(np.concatenate(columns) for columns in zip(*rows, strict=True))),
        splits=np.array(names),
        encoding="image",
        image_size=None,
        channels=3,
        archives={},
        files=True,
        licence="ImageNet's terms of access: for non-commercial research" if imagenet else "not stated",
        source=f"class folders ({', '.join(folder.name for folder in folders.values())})",
        upright=not imagenet,
    )


def _split_folders(root: Path) -> dict[str, Path]:
    """split -> its folder, train first."""
    try:
        found = {SPLIT_OF[item.name.lower()]: item for item in root.iterdir() if item.name.lower() in SPLIT_OF}
    except OSError:
        return {}
    return {split: found[split] for split in SPLIT_NAMES if split in found and found[split].is_dir()}


def _class_names(folder: Path) -> list[str]:
    return sorted(item.name for item in os.scandir(folder) if item.is_dir() and not item.name.startswith("."))


def _rows(root: Path, folder: Path, label: int, kept: KeptIndex, pool: ThreadPoolExecutor) -> Split:
    """The images of one class in one split."""
    place = folder.relative_to(root).as_posix()
    try:
        listing = sorted(_images(folder, place))
    except OSError as error:
        raise _unreadable(error.filename, error) from None
    if not listing:
        raise AutoFormerError(f"{folder}: a class folder without images; fill it or remove it")

    def read_all() -> list[str]:
        return list(pool.map(lambda image: _checksum(root / image[0]), listing))

    checksums = kept.part(place, listing, read_all)
    return Split(
        archives=np.array([name for name, _, _ in listing], dtype=object),
        offsets=np.zeros(len(listing), dtype=np.int64),
        sizes=np.array([size for _, size, _ in listing], dtype=np.int32),
        labels=np.full(len(listing), label, dtype=np.int32),
        checksums=np.array(checksums, dtype=CHECKSUM),
    )


def _images(folder: Path, name: str) -> Iterator[tuple[str, int, int]]:
    """Name below the root, size, and time of change of each image file, folders below the class's with it.

    `name`: of the folder, below the root.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):  # no link can make a circle
                yield from _images(Path(entry.path), f"{name}/{entry.name}")
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:  # noqa: PTH122 (a million paths are slow to make)
                status = entry.stat()
                yield f"{name}/{entry.name}", status.st_size, status.st_mtime_ns


def _checksum(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(file, error) from None


def _unreadable(path: Path | str, error: OSError) -> AutoFormerError:
    return AutoFormerError(f"{path}: cannot be read ({error.strerror}); change its permissions or remove it")
