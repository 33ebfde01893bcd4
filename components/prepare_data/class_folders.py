"""Class folders below train/ and val/ or test/, used in place: ImageNet as torchvision's ImageFolder reads it.

Each image stays a file of its own; its row names it and holds the checksum that every later reading is verified by.
The first reading of 1.3 million files takes as long as the disk does. The index is cached class by class, and a class
is read again only where a name, size or time in it changes.
"""

import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from autoformer.cores import cores
from autoformer.errors import AutoFormerError
from autoformer.files import hash_file
from autoformer.images.source import archive_folder
from autoformer.images.split_files import Split
from components.prepare_data.delivered import Delivered, concatenate, make_rows
from components.prepare_data.index_cache import cached_index
from components.prepare_data.sources import SPLIT_NAMES, SPLIT_OF, SUFFIXES, files_below, folders_in
from runtime.common.console import Progress
from runtime.storage.data import find_archives

_WNID = re.compile(r"n\d{8}")  # a WordNet synset, as ImageNet names its classes


def is_mine(data: Path) -> bool:
    place = find_archives(data)
    return isinstance(place, Path) and "train" in _split_folders(place)


def read(data: Path, splits: tuple[str, ...] = ("train", "val", "test")) -> Delivered:
    """The images of the given splits; the classes are those of train, as ImageFolder sorts them.

    Raises `AutoFormerError` where a class has no image, is not in train, or a file cannot be read.
    """
    root = archive_folder(data)
    folders = _split_folders(root)
    classes = tuple(folder.name for folder in folders_in(folders["train"]))
    parts = [(split, part) for split, folder in folders.items() if split in splits for part in folders_in(folder)]
    unknown = [folder for _, folder in parts if folder.name not in classes]
    if unknown or len(classes) < 2:
        fault = f"{unknown[0]}: a class that train does not have" if unknown else f"{root}: fewer than two classes"
        raise AutoFormerError(f"{fault}; give every split the same class folders")
    rows: list[Split] = []
    with (
        Progress("prepare_data: class folders", len(parts), "folders") as bar,
        ThreadPoolExecutor(min(16, 2 * cores())) as pool,
    ):
        for _, folder in parts:
            try:
                rows.append(_rows(root, folder, classes.index(folder.name), pool))
            except OSError as error:
                raise AutoFormerError(
                    f"{error.filename}: cannot be read ({error.strerror}); change its permissions or remove it"
                ) from None
            bar.update(len(rows))
    imagenet = all(_WNID.fullmatch(name) for name in classes)
    return Delivered(
        title="ImageNet" if imagenet else data.name,
        classes=classes,
        rows=concatenate(rows),
        splits=np.repeat([split for split, _ in parts], [len(part.labels) for part in rows]),
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


def _rows(root: Path, folder: Path, label: int, pool: ThreadPoolExecutor) -> Split:
    """The images of one class in one split."""
    place = folder.relative_to(root).as_posix()
    states = sorted(
        (place + file.path[len(str(folder)) :], file.stat().st_size, file.stat().st_mtime_ns)
        for file in files_below(folder)
        if os.path.splitext(file.name)[1].lower() in SUFFIXES  # noqa: PTH122 (a million paths are slow to make)
    )
    if not states:
        raise AutoFormerError(f"{folder}: a class folder without images; fill it or remove it")

    def read_all(add: Callable[[Split], None]) -> dict[str, Any]:
        names, sizes, _ = zip(*states, strict=True)
        add(make_rows(names, 0, sizes, 0, list(pool.map(hash_file, (root / name for name in names)))))
        return {}

    rows = cached_index(["class folder", str(root.resolve()), states], read_all).rows
    return rows._replace(labels=np.full_like(rows.labels, label))
