"""Find a user's labelled images: class folders, train/val/test folders of class folders, or a CSV of paths."""

import csv
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from autoformer.bounds import BOUNDS
from autoformer.errors import AutoFormerError

_FORMATS = "jpg jpeg jpe jfif png webp bmp gif tif tiff ppm pgm pbm pnm jp2 heic heif avif"
SUFFIXES = frozenset(f".{suffix}" for suffix in _FORMATS.split(" "))
SPLIT_NAMES = ("train", "val", "test")
SPLIT_OF = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLIT_OF |= dict.fromkeys(("val", "valid", "validation", "dev"), "val")
PATH_COLUMNS = ("path", "file", "filename", "file_name", "image", "filepath")
LABEL_COLUMNS = ("label", "class", "class_name", "category")


class SourceImage(NamedTuple):
    path: Path
    label: str
    split: str  # "" where the source names none


class Source(NamedTuple):
    root: Path  # the folder that all paths lie in
    layout: str  # in words
    images: list[SourceImage]  # in the order of their paths
    ignored: int  # files without the name of an image

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(sorted({image.label for image in self.images}))

    def name_of(self, image: SourceImage) -> str:
        return image.path.relative_to(self.root).as_posix()


def discover(path: Path) -> Source:
    """List the labelled images at `path`, without opening any.

    Raises:
        AutoFormerError: nothing is there, a class has no image or is not in train, there are fewer than two classes, a
            name is not UTF-8, or a CSV is malformed or names files outside its folder.
    """
    if path.is_dir():
        source = _read_folder(path)
    elif path.suffix.lower() == ".csv" and path.is_file():
        source = _read_csv(path)
    elif path.exists():
        raise AutoFormerError(f"{path}: neither a folder nor a .csv file; give a folder of class folders, or a CSV")
    else:
        raise AutoFormerError(f"{path}: no such folder or CSV file")
    _check(source, path)
    return source


def _read_folder(root: Path) -> Source:
    below = folders_in(root)
    splits = {SPLIT_OF[folder.name.lower()]: folder for folder in below if folder.name.lower() in SPLIT_OF}
    if _are_splits(root, below):
        layout = f"{', '.join(splits[name].name for name in SPLIT_NAMES if name in splits)} folders of class folders"
    else:
        layout, splits = "class folders", {"": root}
    images, ignored = [], 0
    try:
        for split, folder in splits.items():
            for class_folder in folders_in(folder):
                files = [Path(file.path) for file in files_below(class_folder)]
                found = [file for file in files if file.suffix.lower() in SUFFIXES]
                if not found:
                    raise AutoFormerError(f"{class_folder}: a class folder without images; fill it or remove it")
                images += [SourceImage(file, class_folder.name, split) for file in found]
                ignored += len(files) - len(found)
    except OSError as error:
        raise _unreadable(error) from None
    if not images:
        loose = sum(file.suffix.lower() in SUFFIXES for file in root.iterdir() if file.is_file())
        hint = f"; {loose} images lie in it directly: sort them into a folder for each class" if loose else ""
        raise AutoFormerError(f"{root}: no class folders with images in it{hint}")
    return Source(root, layout, sorted(images), ignored)


def _are_splits(root: Path, below: list[Path]) -> bool:
    """Whether the folders are splits, by their names; a train may also be a class, beside a bus.

    Raises `AutoFormerError` for a mixture that nobody means to be classes side by side.
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


def folders_in(folder: Path) -> list[Path]:
    """The visible folders directly in a folder, sorted."""
    try:
        return sorted(item for item in folder.iterdir() if item.is_dir() and not _is_hidden(item.name))
    except OSError as error:
        raise _unreadable(error) from None


def files_below(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """All visible files below a folder. Linked folders are not followed: a link could make a circle."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_hidden(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from files_below(entry.path)
            elif not (entry.is_symlink() and os.path.isdir(entry.path)):  # noqa: PTH112 (a million paths are slow)
                yield entry


def _unreadable(error: OSError) -> AutoFormerError:
    return AutoFormerError(f"{error.filename}: cannot be read ({error.strerror}); change its permissions or move it")


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX")) or name in ("Thumbs.db", "desktop.ini")


def _read_csv(file: Path) -> Source:
    root = file.parent.resolve()
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            path, label, split = _columns(file, reader.fieldnames or [])
            images = [
                _read_row(f"{file}, line {number}", root, row[path], row[label], row[split] if split else "")
                for number, row in enumerate(reader, start=2)
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise AutoFormerError(f"{file}: not readable as CSV in UTF-8 ({error})") from None
    twice = [image for image, count in Counter(image.path for image in images).items() if count > 1]
    if twice:
        raise AutoFormerError(f"{file}: names {twice[0].relative_to(root)} twice; an image has one label and one split")
    return Source(root, f"CSV with the columns {path} and {label}", sorted(images), 0)


def _columns(file: Path, header: Sequence[str]) -> tuple[str, str, str | None]:
    if len(header) > BOUNDS.csv_columns:
        raise AutoFormerError(f"{file}: {len(header)} columns, more than {BOUNDS.csv_columns}; keep path and label")
    by_name = {name.strip().lower(): name for name in header if name}
    path = next((by_name[name] for name in PATH_COLUMNS if name in by_name), None)
    label = next((by_name[name] for name in LABEL_COLUMNS if name in by_name), None)
    if path is None or label is None:
        raise AutoFormerError(
            f"{file}: its first line must name a column 'path' and a column 'label' (and may name 'split'); "
            f"it has: {', '.join(map(str, header)) or 'nothing'}"
        )
    return path, label, by_name.get("split")


def _read_row(where: str, root: Path, path: str | None, label: str | None, split: str | None) -> SourceImage:
    """The image that a line names. It must lie in the CSV's folder, even behind links."""
    if not path or not path.strip() or "\0" in path:
        raise AutoFormerError(f"{where}: no path")
    file = Path(os.path.normpath(root / path.strip()))
    if not _is_inside(file, root):
        raise AutoFormerError(f"{where}: {path} lies outside the folder of the CSV; move the images into it")
    label, split = (label or "").strip(), (split or "").strip().lower()
    if not label:
        raise AutoFormerError(f"{where}: no label")
    if split and split not in SPLIT_OF:
        raise AutoFormerError(f"{where}: split '{split}' is none of train, val, test")
    return SourceImage(file, label, SPLIT_OF.get(split, ""))


def _is_inside(file: Path, root: Path) -> bool:
    """Whether a path lies below `root`, also behind links. Folders are looked up once: 100,000 rows name few."""
    if os.path.islink(file) and not Path(os.path.realpath(file)).is_relative_to(root):  # noqa: PTH114 (pathlib raises)
        return False
    return file == root or _is_folder_inside(file.parent, root)


@lru_cache(10_000)
def _is_folder_inside(folder: Path, root: Path) -> bool:
    return folder.is_relative_to(root) and Path(os.path.realpath(folder)).is_relative_to(root)


def _check(source: Source, path: Path) -> None:
    if not source.images:
        raise AutoFormerError(f"{path}: names no images")
    for image in source.images:
        name = f"{source.name_of(image)}{image.label}"
        if not name.isascii() and (written := name.encode(errors="backslashreplace").decode()) != name:
            raise AutoFormerError(f"{path}: {written} has a name that is not in UTF-8; rename it")
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
