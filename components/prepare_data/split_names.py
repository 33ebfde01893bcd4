"""Which folders are splits, by their names: `train`, `Validation`, `test_set`, `seg_train` beside `seg_test`."""

import re
from collections.abc import Sequence
from pathlib import Path

from autoformer.errors import AutoFormerError, printable
from components.prepare_data.listing import NO_CLASS, SPLIT_OF, alike, folders_in, loose_images

# Words that say nothing more: train_images, test set
_FILLERS = frozenset(("set", "sets", "data", "dataset", "split", "image", "images", "img", "imgs", "photos", "files"))
_JOINED = re.compile(rf"({'|'.join(SPLIT_OF)})({'|'.join(_FILLERS)})")  # testset


def splits_of(names: Sequence[str]) -> list[str]:
    """The split that each of the folders beside each other is by its name; "" for none.

    A further part of a name, as in `seg_train`, must be the same in another split: `train_station` is no split.
    """
    meanings = [_meaning(name) for name in names]
    known = [(split, rest) for split, rest in meanings if split]
    return [
        split if split and (not rest or any(rest == r and split != s for s, r in known)) else ""
        for split, rest in meanings
    ]


def _meaning(name: str) -> tuple[str, tuple[str, ...]]:
    """Split and other words of a name; "" unless one word of it is a split."""
    words = re.findall(r"[^\W\d_]+|\d+", _JOINED.sub(r"\1 \2", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()))
    splits = [SPLIT_OF[word] for word in words if word in SPLIT_OF]
    rest = tuple(word for word in words if word not in SPLIT_OF and word not in _FILLERS)
    return (splits[0], rest) if len(splits) == 1 else ("", rest)


def split_folders(root: Path, below: Sequence[Path]) -> dict[str, Path]:
    """Split -> folder, if the folders below `root` are splits by their names; none if they are classes.

    `train` can also be a class, for example beside `bus`. Raises `AutoFormerError` for an ambiguous mixture of both.
    """
    named = splits_of([folder.name for folder in below])
    if "train" not in named:
        _check_train_is_there(root, below, named)
        return {}
    if len(below) > 1 and not {"val", "test"} & set(named):
        return {}
    for folder, split in zip(below, named, strict=True):
        if not split:
            raise AutoFormerError(
                f"{folder}: neither train, val nor test, beside a folder '{below[named.index('train')].name}'; "
                "move it elsewhere, or, if all of them are classes, rename the other"
            )
        if named.count(split) > 1:
            raise AutoFormerError(f"{folder}: two folders mean the split '{split}' in {root}; keep one of them")
    return {split: innermost(folder) for folder, split in zip(below, named, strict=True)}


def _check_train_is_there(root: Path, below: Sequence[Path], named: Sequence[str]) -> None:
    """Raise `AutoFormerError` if all folders are splits of class folders, none of them train."""
    if len(set(named)) > 1 and all(named) and all(folders_in(f) and not loose_images(f) for f in below):
        names = " and ".join(printable(folder.name) for folder in below)
        raise AutoFormerError(
            f"{root}: {names} hold class folders, but there is no train beside them; rename the one to train on, or, "
            "if they are classes, put their images directly into them"
        )


def innermost(split: Path) -> Path:
    """The folder of the class folders: archives unpack to train/train, and others have train/images."""
    while len(below := folders_in(split)) == 1 and not loose_images(split):
        name = alike(below[0].name)
        if name != alike(split.name) and (name not in NO_CLASS or not folders_in(below[0])):
            break
        split = below[0]
    return split
