"""Find a user's labelled images: class folders, train/val/test folders of class folders, or a CSV of paths."""

import unicodedata
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from autoformer.errors import AutoFormerError, has_controls
from components.prepare_data.kaggle_imagenet import labelled_val, tree_of
from components.prepare_data.label_table import read_label_table
from components.prepare_data.listing import (
    SPLIT_NAMES,
    SPLIT_OF,
    LeftOut,
    alike,
    files_below,
    folders_in,
    is_image,
    loose_images,
    unreadable,
)

_TABLES = (".csv", ".tsv")
_LETTERS = 2  # class names up to this length may differ only by case: a and A, Co and CO


class SourceImage(NamedTuple):
    path: Path
    label: str
    split: str  # "" if the source has none


class Source(NamedTuple):
    root: Path  # folder of all paths
    layout: str  # description of the layout
    images: list[SourceImage]  # in the order of their paths
    ignored: int  # files without an image's suffix
    notes: tuple[str, ...] = ()  # sentences on images left out and on spellings merged

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(sorted({image.label for image in self.images}))

    def name_of(self, image: SourceImage) -> str:
        """The path relative to the root, in a tenth of the time of `relative_to`."""
        name, root = str(image.path), f"{str(self.root).rstrip('/')}/"
        return name[len(root) :] if name.startswith(root) else image.path.relative_to(self.root).as_posix()


def discover(path: Path) -> Source:
    """List the labelled images at `path` without opening them.

    Raises:
        AutoFormerError: the path does not exist, a class has no image or is not in train, there are fewer than two
            classes, a name is not UTF-8, or a CSV is malformed or names files outside its folder.
    """
    if path.is_dir():
        source = _read_folder(path)
    elif path.suffix.lower() in _TABLES and path.is_file():
        source = _read_csv(path)
    elif path.exists():
        raise AutoFormerError(f"{path}: neither a folder nor a .csv file; give a folder of class folders, or a CSV")
    else:
        raise AutoFormerError(f"{path}: no such folder or CSV file")
    _check_names(source, path)
    source = _with_one_spelling(source)
    _check(source, path)
    return source


def _read_folder(place: Path) -> Source:
    root, left_out = tree_of(place), LeftOut()
    below = folders_in(root, left_out)
    are_splits = _are_splits(root, below)
    splits = {SPLIT_OF[folder.name.lower()]: folder for folder in below} if are_splits else {"": root}
    images, ignored, empty = [], 0, []
    try:
        for split in (name for name in ("", *SPLIT_NAMES) if name in splits):
            found, others = _read_split(splits[split], root, split, left_out)
            images += found
            ignored += others
            if not found and f"{splits[split].name}" not in left_out.loose:
                empty.append(f"{splits[split].name}: holds no images, and is not used")
        if are_splits:
            left_out.add_loose(root, root)
    except OSError as error:
        raise unreadable(error) from None
    if not images:
        raise _nothing_found(root)
    used = {image.split for image in images}
    names = ", ".join(splits[name].name for name in SPLIT_NAMES if name in used)
    layout = f"{names} folders of class folders" if are_splits else "class folders"
    return Source(root, layout, sorted(images, key=_by_parts), ignored, (*left_out.notes(), *empty))


def _read_split(folder: Path, root: Path, split: str, left_out: LeftOut) -> tuple[list[SourceImage], int]:
    """The images of the class folders in a folder, and the number of other files."""
    images, ignored = [], 0
    for class_folder in folders_in(folder, left_out if split else None):
        files, label = list(files_below(class_folder, left_out)), class_folder.name
        below = len(str(class_folder)) + 1
        found = [class_folder / file.path[below:] for file in files if is_image(file.name)]
        others = LeftOut() if not found else left_out
        others.add_others([Path(file.path) for file in files if not is_image(file.name)], root)
        if not found:
            seen = "".join(f" ({note})" for note in others.others())
            raise AutoFormerError(f"{class_folder}: a class folder without images{seen}; fill it or remove it")
        images += [SourceImage(file, label, split) for file in found]
        ignored += len(files) - len(found)
    labelled = labelled_val(folder) if split == "val" and not images else {}
    images += [SourceImage(file, label, split) for label, files in labelled.items() for file in files]
    if not labelled:
        left_out.add_loose(folder, root)
    return images, ignored


def _by_parts(image: SourceImage) -> str:
    """Sorts as the path does, part by part, in a tenth of its time."""
    return str(image.path).replace("/", "\0")


def _nothing_found(root: Path) -> AutoFormerError:
    loose = len(loose_images(root))
    tables = sorted(item.name for item in root.iterdir() if item.suffix.lower() in _TABLES)
    hint = f"; {loose} images lie in it directly: sort them into a folder for each class" if loose else ""
    if tables:
        hint += f"{', or' if loose else ';'} name the table if it holds path and label: DATA={root / tables[0]}"
    return AutoFormerError(f"{root}: no class folders with images in it{hint}")


def _are_splits(root: Path, below: list[Path]) -> bool:
    """Whether the folders are splits, by their names. `train` can also be a class, for example beside `bus`.

    Raises `AutoFormerError` for an ambiguous mixture of both.
    """
    named = [SPLIT_OF.get(folder.name.lower(), "") for folder in below]
    if "train" not in named or (len(below) > 1 and not {"val", "test"} & set(named)):
        return False
    for folder, split in zip(below, named, strict=True):
        if not split:
            raise AutoFormerError(
                f"{folder}: neither train, val nor test, beside a folder '{below[named.index('train')].name}'; "
                "move it elsewhere, or, if all of them are classes, rename the other"
            )
        if named.count(split) > 1:
            raise AutoFormerError(f"{folder}: two folders mean the split '{split}' in {root}; keep one of them")
    return True


def _read_csv(file: Path) -> Source:
    table = read_label_table(file)
    root, left_out = file.parent.resolve(), LeftOut()
    named: dict[Path, set[str]] = {}
    for row in table.rows:
        names = named.setdefault(row.path.parent, set())
        if row.path.name in names:
            name = row.path.relative_to(root)
            raise AutoFormerError(f"{file}, line {row.line}: names {name} twice; an image has one label and one split")
        names.add(row.path.name)
    for folder, names in sorted(named.items()):
        left_out.add_unnamed(folder, root, names)
    images = []
    while table.rows:  # a million rows and as many images would be in memory together
        row = table.rows.pop()
        images.append(SourceImage(row.path, row.label, row.split))
    images.sort(key=_by_parts)
    layout = f"CSV with the columns {table.columns}"
    return Source(root, layout, images, 0, (*table.notes, *left_out.notes()))


def _with_one_spelling(source: Source) -> Source:
    """Merge spellings of one class: use the most frequent spelling, in composed Unicode."""
    counts = Counter(image.label for image in source.images)
    spellings: dict[str, Counter[str]] = {}
    for label, count in counts.items():
        name = unicodedata.normalize("NFC", label)
        spellings.setdefault(name if len(name) <= _LETTERS else alike(name), Counter())[label] += count
    name_of: dict[str, str] = {}
    notes: list[str] = []
    for labels in spellings.values():
        best = unicodedata.normalize("NFC", min(labels, key=lambda label: (-labels[label], label)))
        name_of |= dict.fromkeys(labels, best)
        if len(labels) > 1:
            how = "case or spaces" if len({unicodedata.normalize("NFC", label) for label in labels}) > 1 else "Unicode"
            notes.append(f"{len(labels)} spellings of '{best}' differ by {how} alone, and are one class")
    images = [
        image if name_of[image.label] == image.label else image._replace(label=name_of[image.label])
        for image in source.images
    ]
    return source._replace(images=images, notes=(*source.notes, *sorted(notes)))


def _check_names(source: Source, path: Path) -> None:
    if not source.images:
        raise AutoFormerError(f"{path}: names no images")
    for image in source.images:
        for name in (image.label, source.name_of(image)):
            if has_controls(name):
                raise AutoFormerError(f"{path}: {name!a} has control characters or is not in UTF-8; rename it")


def _check(source: Source, path: Path) -> None:
    if len(source.classes) < 2:
        raise AutoFormerError(f"{path}: one class only, '{source.classes[0]}'; a classifier needs two or more")
    splits = {image.split for image in source.images}
    if "" in splits and len(splits) > 1:
        raise AutoFormerError(f"{path}: some images have a split and some have none; give it for all or for none")
    trained = {image.label for image in source.images if image.split in ("", "train")}
    for split in ("val", "test"):
        unknown = {image.label for image in source.images if image.split == split} - trained
        if unknown:
            raise AutoFormerError(f"{path}: the class '{min(unknown)}' is in {split} but not in train")
    if "train" not in splits and "" not in splits:
        raise AutoFormerError(f"{path}: no image is in the split 'train'")
