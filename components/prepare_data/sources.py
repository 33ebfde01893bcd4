"""Find a user's labelled images: class folders, train/val/test folders of class folders, or a CSV of paths."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from autoformer.errors import AutoFormerError, has_controls, quantity
from components.prepare_data.class_spellings import doubtful_classes, meant, one_spelling
from components.prepare_data.inner_folders import folders_of_classes, inner_notes, inner_splits
from components.prepare_data.kaggle_imagenet import flat_folder, labelled_val, tree_of
from components.prepare_data.label_table import read_label_table
from components.prepare_data.listing import (
    SPLIT_NAMES,
    LeftOut,
    alike,
    files_below,
    folders_in,
    is_image,
    is_system,
    loose_images,
    unreadable,
)
from components.prepare_data.split_names import split_folders
from runtime.common.spelling import hint

_TABLES = (".csv", ".tsv")
_CONVERT = (
    ((".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"), "unpack it, and give the folder"),
    ((".xlsx", ".xls", ".ods", ".numbers"), "save the table as 'CSV UTF-8', and give that file"),
    ((".txt", ".tab", ".dat"), "give a folder of class folders, or, if it holds path and label, call it .csv"),
)


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
        do = next((do for suffixes, do in _CONVERT if path.name.lower().endswith(suffixes)), "")
        do = do or "give a folder of class folders, or a CSV"
        raise AutoFormerError(f"{path}: neither a folder nor a .csv file; {do}")
    else:
        raise AutoFormerError(f"{path}: no such folder or CSV file{hint(path)}")
    _check_names(source, path)
    source = _with_one_spelling(source)
    _check(source, path)
    return source


def _read_folder(place: Path) -> Source:
    root, left_out = tree_of(place), LeftOut()
    below = folders_in(root, left_out)
    splits = split_folders(root, below)
    are_splits = bool(splits)
    splits = splits or {"": root}
    images: list[SourceImage] = []
    ignored, empty = 0, []
    try:
        for split in (name for name in ("", *SPLIT_NAMES) if name in splits):
            classes = {alike(label) for label in {image.label for image in images}}
            found, others = _read_split(splits[split], root, split, classes, left_out)
            images += found
            ignored += others
            if not found and not any((root / loose).is_relative_to(splits[split]) for loose in left_out.loose):
                empty.append(f"{splits[split].name}: holds no images, and is not used")
        if are_splits:
            left_out.add_loose(root, root)
    except OSError as error:
        raise unreadable(error) from None
    if not images:
        raise _nothing_found(root)
    used = {image.split for image in images}
    names = ", ".join(splits[name].relative_to(root).as_posix() for name in SPLIT_NAMES if name in used)
    layout = f"{names} folders of class folders" if are_splits else "class folders"
    source = Source(root, layout, sorted(images, key=_by_parts), ignored, (*left_out.notes(), *empty))
    return source if are_splits else _with_inner_folders(source)


def _with_inner_folders(source: Source) -> Source:
    """Take train, val and test in the class folders as splits; note other folders in them that look like classes."""
    inner = folders_of_classes([(image.label, source.name_of(image)) for image in source.images])
    split_of = inner_splits(inner)
    if not split_of:
        return source._replace(notes=(*source.notes, *inner_notes(inner, source.root)))
    images = [image._replace(split=split_of[source.name_of(image).split("/", 2)[1]]) for image in source.images]
    return source._replace(layout=f"class folders of {', '.join(split_of)} folders", images=images)


def _read_split(
    folder: Path, root: Path, split: str, classes: set[str], left_out: LeftOut
) -> tuple[list[SourceImage], int]:
    """The images of the class folders in a folder, and the number of other files.

    `classes`: normal forms of the classes of train, if this is another split.
    """
    if split == "val" and (labelled := labelled_val(folder)):
        return [SourceImage(file, label, split) for label, files in labelled.items() for file in files], 0
    left_out.add_loose(folder, root)
    if classes and (flat := flat_folder(folder, classes)):
        left_out.add_loose(flat, root)
        return [], 0
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
    return images, ignored


def _by_parts(image: SourceImage) -> str:
    """Sorts as the path does, part by part, in a tenth of its time."""
    return str(image.path).replace("/", "\0")


def _nothing_found(root: Path) -> AutoFormerError:
    loose = len(loose_images(root))
    lying = quantity(loose, "image lies", "images lie")
    hint = f"; {lying} in it directly: sort images into a folder for each class" if loose else ""
    return AutoFormerError(f"{root}: no class folders with images in it{hint}{_table_hint(root, loose > 0)}")


def _table_hint(root: Path, further: bool = False) -> str:
    """The first table in a folder, as what could be meant. `further`: the end of a list of remedies."""
    tables = sorted(item.name for item in root.iterdir() if item.suffix.lower() in _TABLES and not is_system(item.name))
    if not tables:
        return ""
    return f"{', or' if further else ';'} name the table if it holds path and label: DATA={root / tables[0]}"


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
    """Merge spellings of one class, and note classes that may be one."""
    name_of, notes = one_spelling(Counter(image.label for image in source.images))
    images = [
        image if name_of[image.label] == image.label else image._replace(label=name_of[image.label])
        for image in source.images
    ]
    doubtful = doubtful_classes({name_of[image.label] for image in source.images})
    return source._replace(images=images, notes=(*source.notes, *notes, *doubtful))


def _check_names(source: Source, path: Path) -> None:
    if not source.images:
        raise AutoFormerError(f"{path}: names no images")
    for image in source.images:
        for name in (image.label, source.name_of(image)):
            if has_controls(name):
                raise AutoFormerError(f"{path}: {name!a} has control characters or is not in UTF-8; rename it")


def _check(source: Source, path: Path) -> None:
    if len(source.classes) < 2:
        hint = _table_hint(path, further=True) if path.is_dir() else ""
        raise AutoFormerError(f"{path}: one class only, '{source.classes[0]}'; a classifier needs two or more{hint}")
    splits = {image.split for image in source.images}
    if "" in splits and len(splits) > 1:
        raise AutoFormerError(f"{path}: some images have a split and some have none; give it for all or for none")
    trained = {image.label for image in source.images if image.split in ("", "train")}
    for split in ("val", "test"):
        unknown = {image.label for image in source.images if image.split == split} - trained
        if unknown:
            raise AutoFormerError(
                f"{path}: the class '{min(unknown)}' is in {split} but not in train{meant(min(unknown), trained)}"
            )
    if "train" not in splits and "" not in splits:
        raise AutoFormerError(f"{path}: no image is in the split 'train'")
