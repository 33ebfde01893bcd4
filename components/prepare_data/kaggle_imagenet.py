"""Kaggle's layout of ImageNet: ILSVRC/Data/CLS-LOC, with a flat val/ and a table of its labels."""

from pathlib import Path

from autoformer.errors import AutoFormerError
from components.prepare_data.listing import SPLIT_OF, loose_images
from runtime.common.tables import read_table

SOLUTION = "LOC_val_solution.csv"
_TREES = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")


def tree_of(place: Path) -> Path:
    """The folder with train/ and val/; `place` may be the folder that Kaggle's archive was unpacked to."""
    return next((place / inside for inside in _TREES if (place / inside).is_dir()), place)


def labelled_val(val: Path) -> dict[str, list[Path]]:
    """Class -> images of a flat val/, from the solution table in a folder above; empty without a table.

    Raises `AutoFormerError` if the table lacks an image.
    """
    if SPLIT_OF.get(val.name.lower()) != "val":
        return {}
    above = val.resolve().parents[:5]
    table = next((folder / SOLUTION for folder in above if (folder / SOLUTION).is_file()), None)
    names = loose_images(val) if table else []
    if table is None or not names:
        return {}
    class_of = {row.get("ImageId", ""): row.get("PredictionString", "").split(" ")[0] for row in read_table(table)}
    classes: dict[str, list[Path]] = {}
    for name in names:
        label = class_of.get(Path(name).stem)
        if not label:
            raise AutoFormerError(f"{table}: names no class of {val / name}; download it again")
        classes.setdefault(label, []).append(val / name)
    return dict(sorted(classes.items()))
