"""A flat val/ with a table of its labels: Kaggle's ImageNet (ILSVRC/Data/CLS-LOC), and Tiny ImageNet."""

from collections.abc import Container
from pathlib import Path

from autoformer.bounds import BOUNDS
from autoformer.errors import AutoFormerError
from autoformer.reading import lines_of, read_bytes
from components.prepare_data.listing import NO_CLASS, alike, folders_in, loose_images
from runtime.common.tables import read_table

SOLUTION = "LOC_val_solution.csv"
ANNOTATIONS = "val_annotations.txt"  # of Tiny ImageNet, in val/
_TREES = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")


def tree_of(place: Path) -> Path:
    """The folder with train/ and val/; `place` may be the folder that Kaggle's archive was unpacked to."""
    return next((place / inside for inside in _TREES if (place / inside).is_dir()), place)


def labelled_val(val: Path) -> dict[str, list[Path]]:
    """Class -> images of a flat val/, from a table in it or in a folder above; empty without a table.

    Raises `AutoFormerError` if the table lacks an image.
    """
    if (val / ANNOTATIONS).is_file():
        images = flat_folder(val, ()) or val
        return _by_class(images, val / ANNOTATIONS, _annotated(val / ANNOTATIONS))
    above = val.resolve().parents[:5]
    table = next((folder / SOLUTION for folder in above if (folder / SOLUTION).is_file()), None)
    if table is None or folders_in(val) or not loose_images(val):
        return {}
    rows = read_table(table)
    return _by_class(
        val, table, {row.get("ImageId", ""): row.get("PredictionString", "").split(" ")[0] for row in rows}
    )


def flat_folder(split: Path, classes: Container[str]) -> Path | None:
    """The folder of a split's images if they are in no class folder, such as `test/images`.

    `classes`: normal forms (`listing.alike`) of the classes of train.
    """
    below = folders_in(split)
    if len(below) != 1 or folders_in(below[0]):
        return None
    name = alike(below[0].name)
    return below[0] if name in NO_CLASS and name not in classes else None


def _annotated(table: Path) -> dict[str, str]:
    """Image, without suffix -> class. The other columns are boxes."""
    text = read_bytes(table, BOUNDS.csv_bytes).decode("utf-8", "replace")
    cells = [line.rstrip("\r\n").split("\t") for line in lines_of(text)]
    return {Path(line[0]).stem: line[1].strip() for line in cells if len(line) > 1}


def _by_class(folder: Path, table: Path, class_of: dict[str, str]) -> dict[str, list[Path]]:
    classes: dict[str, list[Path]] = {}
    for name in loose_images(folder):
        label = class_of.get(Path(name).stem)
        if not label:
            raise AutoFormerError(f"{table}: names no class of {folder / name}; download it again")
        classes.setdefault(label, []).append(folder / name)
    return dict(sorted(classes.items()))
