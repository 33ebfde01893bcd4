"""Class folders below train/ and val/ or test/, used in place, as in torchvision's ImageFolder.

Each image stays a separate file; its row has the file's name and checksum, which every later read verifies. The first
read of 1.3 million files is limited by the disk. The index is cached per class, and a class is read again only if a
name, size or time in it has changed.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from autoformer.cores import cores
from autoformer.errors import AutoFormerError, quantity
from autoformer.files import hash_file
from autoformer.images.card import check_class_names
from autoformer.images.source import archive_folder
from autoformer.images.split_files import Split
from components.prepare_data.class_spellings import meant
from components.prepare_data.delivered import Delivered, concatenate, make_rows
from components.prepare_data.index_cache import cached_index
from components.prepare_data.kaggle_imagenet import SOLUTION, flat_folder, labelled_val, tree_of
from components.prepare_data.listing import (
    SPLIT_NAMES,
    LeftOut,
    alike,
    files_below,
    folders_in,
    is_image,
    loose_images,
    unreadable,
)
from components.prepare_data.split_names import innermost, splits_of
from runtime.common.console import Progress
from runtime.storage.data import find_archives

_WNID = re.compile(r"n\d{8}")  # a WordNet synset, as ImageNet names its classes


def is_mine(data: Path) -> bool:
    place = find_archives(data)
    if not isinstance(place, Path):
        return False
    folders = _split_folders(tree_of(place))
    return "train" in folders or any(map(folders_in, folders.values()))


def read(data: Path, splits: tuple[str, ...] = ("train", "val", "test")) -> Delivered:
    """The images of the given splits; other splits may be missing.

    The classes are those of train if it exists. If train is not among the splits, classes that it lacks are added.

    Raises `AutoFormerError` if a class has no image or is not in train, or a file cannot be read.
    """
    place, left_out = archive_folder(data), LeftOut()
    tree = tree_of(place)
    folders = _split_folders(tree)
    if "train" in splits and "train" not in folders:
        raise AutoFormerError(f"{tree}: no folder train, which holds the classes; give all splits")
    if twice := [both for both in _folders_of_splits(tree).values() if len(both) > 1]:
        first, second = (folder.name for folder in twice[0][:2])
        raise AutoFormerError(f"{tree}: {first} and {second} mean the same split; keep one of them")
    left_out.add_loose(tree, place)
    trained = {alike(folder.name) for folder in folders_in(folders["train"])} if "train" in folders else set()
    found = [
        (split, label, files)
        for split, folder in folders.items()
        if split in splits
        for label, files in _classes_in(folder, split, place, trained if split != "train" else set(), left_out).items()
    ]
    names = [name for _, name, _ in found]
    trees = folders_in(folders["train"]) if "train" in folders else ()
    classes = _sorted_names(tree, [folder.name for folder in trees] or names)
    if "train" not in splits and (missing := [name for name in names if _label_of(name, classes) < 0]):
        classes = _sorted_names(tree, [*classes, *missing])  # an unused train may be empty or incomplete
    check_class_names(classes)
    label_of = {name: _label_of(name, classes) for name in names}
    unknown = [folders[split] / name for split, name, _ in found if label_of[name] < 0]
    if unknown or len(classes) < 2:
        hint = meant(unknown[0].name, classes) if unknown else ""
        fault = (
            f"{unknown[0]}: a class that train does not have{hint}" if unknown else f"{tree}: fewer than two classes"
        )
        raise AutoFormerError(f"{fault}; give every split the same class folders")
    rows: list[Split] = []
    with (
        Progress("prepare_data: class folders", len(found), "folders") as bar,
        ThreadPoolExecutor(min(16, 2 * cores())) as pool,
    ):
        for _, name, images in found:
            try:
                rows.append(_rows(place, images, label_of[name], left_out, pool))
            except OSError as error:
                raise unreadable(error) from None
            except UnicodeEncodeError:
                raise AutoFormerError(
                    f"{place}: an image of '{name}' has a name that is not in UTF-8; rename it"
                ) from None
            bar.update(len(rows))
    name_of = {split: folder.relative_to(tree).as_posix() for split, folder in folders.items()}
    imagenet = all(_WNID.fullmatch(name) for name in classes)
    return Delivered(
        title="ImageNet" if imagenet else data.name,
        classes=classes,
        rows=concatenate(rows),
        splits=np.repeat([split for split, _, _ in found], [len(part.labels) for part in rows]),
        archives={},
        files=True,
        licence="ImageNet's terms of access: for non-commercial research" if imagenet else "not stated",
        source=f"class folders ({', '.join(dict.fromkeys(name_of[split] for split, _, _ in found))})",
        upright=not imagenet,
        notes=tuple(left_out.notes()),
    )


def _split_folders(root: Path) -> dict[str, Path]:
    """Split -> folder of its class folders, train first; of two folders of one split the first."""
    found = _folders_of_splits(root)
    return {split: innermost(found[split][0]) for split in SPLIT_NAMES if split in found}


def _folders_of_splits(root: Path) -> dict[str, list[Path]]:
    try:
        below = sorted(item for item in root.iterdir() if item.is_dir())
    except OSError:
        return {}
    found: dict[str, list[Path]] = {}
    for folder, split in zip(below, splits_of([folder.name for folder in below]), strict=True):
        if split:
            found.setdefault(split, []).append(folder)
    return found


def _classes_in(
    folder: Path, split: str, root: Path, classes: set[str], left_out: LeftOut
) -> dict[str, Path | list[Path]]:
    """Class name -> its folder, or its images.

    `classes`: normal forms of the classes of train, if this is another split.
    """
    if split == "val" and (labelled := labelled_val(folder)):
        return {label: files for label, files in labelled.items()}
    folder = (flat_folder(folder, classes) if classes else None) or folder
    if below := folders_in(folder, left_out):
        left_out.add_loose(folder, root)
        return {item.name: item for item in below}
    images = loose_images(folder)
    if images and split == "test":  # a flat test folder without labels, as in competitions
        left_out.add_loose(folder, root)
        return {}
    if not images:
        raise AutoFormerError(f"{folder}: holds no class folders; fill or remove it")
    raise AutoFormerError(
        f"{folder}: {quantity(len(images), 'image lies', 'images lie')} in no class folder; sort images into "
        f"{split}/<class>/, or, of Kaggle's ImageNet, put its {SOLUTION} into a folder above"
    )


def _label_of(name: str, classes: tuple[str, ...]) -> int:
    """The class of this name, or the only class whose name differs in spelling alone; -1 for none."""
    name = unicodedata.normalize("NFC", name)
    alike_ones = [label for label, other in enumerate(classes) if other == name] or [
        label for label, other in enumerate(classes) if alike(other) == alike(name)
    ]
    return alike_ones[0] if len(alike_ones) == 1 else -1


def _sorted_names(place: Path, found: list[str]) -> tuple[str, ...]:
    """The classes in ImageFolder's order."""
    names = sorted({*found})
    composed = [unicodedata.normalize("NFC", name) for name in names]
    twice = [name for name, count in Counter(composed).items() if count > 1]
    if twice:
        raise AutoFormerError(f"{place}: two spellings of '{twice[0]}' differ by their Unicode form alone; merge them")
    return tuple(composed)


def _rows(root: Path, images: Path | list[Path], label: int, left_out: LeftOut, pool: ThreadPoolExecutor) -> Split:
    """The images of one class in one split, from a folder or a list."""
    files: Sequence[Path | os.DirEntry[str]] = images if isinstance(images, list) else [*files_below(images, left_out)]
    left_out.add_others([Path(file) for file in files if not is_image(file.name)], root)
    start = len(str(root)) + 1
    states = sorted(
        (str(getattr(file, "path", file))[start:], file.stat().st_size, file.stat().st_mtime_ns)
        for file in files
        if is_image(file.name)
    )
    if not states:
        raise AutoFormerError(f"{images}: a class folder without images; fill it or remove it")

    def read_all(add: Callable[[Split], None]) -> dict[str, Any]:
        names, sizes, _ = zip(*states, strict=True)
        add(make_rows(names, 0, sizes, 0, list(pool.map(hash_file, (root / name for name in names)))))
        return {}

    rows = cached_index(["class folder", str(root.resolve()), states], read_all).rows
    return rows._replace(labels=np.full_like(rows.labels, label))
