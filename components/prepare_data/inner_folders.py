"""Folders in class folders: splits of each class, and folders that look like the classes meant."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from components.prepare_data.listing import alike, some
from components.prepare_data.split_names import splits_of


def folders_of_classes(names: Sequence[tuple[str, str]]) -> dict[str, set[str]]:
    """Class -> the folders directly in it that hold images; "" for images directly in it.

    Args:
        names: class, and path below the folder of all classes, of each image.
    """
    inner: dict[str, set[str]] = defaultdict(set)
    for label, name in names:
        parts = name.split("/", 2)
        inner[label].add(parts[1] if len(parts) > 2 else "")
    return dict(inner)


def inner_splits(inner: Mapping[str, set[str]]) -> dict[str, str]:
    """Folder in the class folders -> split, if all are splits, as in cat/train and cat/test; none otherwise."""
    names = sorted(set().union(*inner.values()))
    split_of = dict(zip(names, splits_of(names), strict=True))
    is_split = all(split_of.values()) and len(set(split_of.values())) == len(names) > 1
    return split_of if is_split and "train" in split_of.values() else {}


def inner_notes(inner: Mapping[str, set[str]], root: Path) -> list[str]:
    """A note on class folders that hold folders alone, if those seem to be the classes.

    They seem so if all class folders hold the same ones (original, augmented), or the class is called as a split.
    """
    bare = {label: folders for label, folders in inner.items() if "" not in folders and len(folders) > 1}
    if not bare:
        return []
    label, folders = min(bare.items())
    same = len(bare) > 1 and len({frozenset(map(alike, each)) for each in inner.values()}) == 1
    as_split = next((name for name in sorted(bare) if splits_of([name])[0]), None)
    if same:
        who = f"the class folders {some(sorted(inner))} hold the same folders"
    elif as_split:
        label, folders = as_split, bare[as_split]
        who = f"the class folder '{label}' has the name of a split and holds folders"
    else:
        return []
    return [
        f"{who}, {some(sorted(folders))}, which count as parts of one class: if they are the classes, give "
        f"DATA={root / label}"
    ]
