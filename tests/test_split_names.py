"""Splits under the names and in the places that data sets give them; else a network learns to tell splits apart."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoformer.errors import AutoFormerError
from components.prepare_data import class_folders
from components.prepare_data.sources import Source, discover
from components.prepare_data.split_names import splits_of


def lay(root: Path, *folders: str) -> Path:
    """Two classes in each folder."""
    for folder in folders:
        for label in ("cat", "dog"):
            (root / folder / label).mkdir(parents=True)
            (root / folder / label / "1.png").write_text(folder)
    return root


def counts(source: Source) -> Counter[tuple[str, str]]:
    return Counter((image.split, image.label) for image in source.images)


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["training_set", "test_set"], ["train", "test"]),
        (["trainval", "Test Images"], ["train", "test"]),
        (["train", "eval"], ["train", "test"]),
        (["trainset", "testset"], ["train", "test"]),
        (["TrainData", "ValData"], ["train", "val"]),
        (["seg_train", "seg_test"], ["train", "test"]),
        (["ILSVRC2012_img_train", "ILSVRC2012_img_val"], ["train", "val"]),
        (["train2017", "val2017"], ["train", "val"]),
        (["train_station", "test_tube"], ["", ""]),
        (["bullet train", "bus"], ["", ""]),
        (["train_test", "other"], ["", ""]),
        (["trainers", "testudo"], ["", ""]),
        (["dog_train", "cat_train"], ["", ""]),
    ],
)
def test_a_folder_is_a_split_by_the_words_of_its_name(names: list[str], splits: list[str]) -> None:
    assert splits_of(names) == splits


@pytest.mark.parametrize(
    "folders",
    [
        ("training_set", "test_set"),
        ("seg_train/seg_train", "seg_test/seg_test"),  # as archives unpack
        ("train/images", "test/images"),
    ],
)
def test_class_folders_below_splits_of_any_usual_name(folders: tuple[str, ...], tmp_path: Path) -> None:
    source = discover(lay(tmp_path, *folders))
    assert counts(source) == Counter({(s, c): 1 for s in ("train", "test") for c in ("cat", "dog")})
    assert source.layout == f"{', '.join(folders)} folders of class folders" and source.notes == ()


@pytest.mark.parametrize("folders", [("val", "test"), ("valid_set", "testing")])
def test_splits_without_one_to_train_on_are_no_classes(folders: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(AutoFormerError, match="hold class folders, but there is no train beside them; rename"):
        discover(lay(tmp_path, *folders))


def test_splits_in_the_class_folders_are_splits(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        for split in ("train", "test"):
            (tmp_path / label / split / "deep").mkdir(parents=True)
            (tmp_path / label / split / "deep" / "1.png").write_text(label)
    source = discover(tmp_path)
    assert counts(source) == Counter({(s, c): 1 for s in ("train", "test") for c in ("cat", "dog")})
    assert source.layout == "class folders of test, train folders"


@pytest.mark.parametrize("folders", [("images", "masks"), ("original", "augmented"), ("fold1", "fold2", "fold3")])
def test_folders_of_the_same_folders_are_named_as_doubtful_classes(folders: tuple[str, ...], tmp_path: Path) -> None:
    source = discover(lay(tmp_path, *folders))
    assert source.classes == tuple(sorted(folders))
    assert source.notes == (
        f"the class folders {', '.join(sorted(folders))} hold the same folders, cat, dog, which count as parts of one "
        f"class: if they are the classes, give DATA={tmp_path / min(folders)}",
    )


def test_a_class_called_train_that_holds_folders_alone_is_named_as_doubtful(tmp_path: Path) -> None:
    lay(tmp_path, "train")
    (tmp_path / "unlabeled").mkdir()
    (tmp_path / "unlabeled" / "1.png").touch()
    (note,) = discover(tmp_path).notes
    assert note.startswith("the class folder 'train' has the name of a split") and str(tmp_path / "train") in note


def test_folders_below_classes_that_are_no_classes_are_no_doubt(tmp_path: Path) -> None:
    for name in ("cat/2023/1.png", "cat/2024/1.png", "dog/2024/1.png", "dog/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert discover(tmp_path).notes == ()


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)


def test_tiny_imagenet_has_its_labels_of_val_in_a_table_and_none_of_test(tmp_path: Path) -> None:
    for number, label in enumerate(("n01", "n02")):
        picture(tmp_path / "train" / label / "images" / f"{label}_0.JPEG", number)
        picture(tmp_path / "val" / "images" / f"val_{number}.JPEG", 10 + number)
        picture(tmp_path / "test" / "images" / f"test_{number}.JPEG", 20 + number)
    (tmp_path / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t0\t9\t9\nval_1.JPEG\tn01\t0\t0\t9\t9\n")
    source, note = discover(tmp_path), "test/images: 2 images in no class folder, so without a label, left out"
    assert {(image.path.name, image.label) for image in source.images if image.split == "val"} == {
        ("val_0.JPEG", "n02"), ("val_1.JPEG", "n01"),
    }  # fmt: skip
    assert counts(source).total() == 4 and source.notes[0].startswith(note)
    in_place = class_folders.read(tmp_path)
    assert dict(zip(in_place.rows.archives, in_place.rows.labels.tolist(), strict=True)) == {
        "train/n01/images/n01_0.JPEG": 0, "train/n02/images/n02_0.JPEG": 1,
        "val/images/val_0.JPEG": 1, "val/images/val_1.JPEG": 0,
    }  # fmt: skip
    assert in_place.notes[0].startswith(note)
    (tmp_path / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t0\t9\t9\n")
    with pytest.raises(AutoFormerError, match=r"val_annotations\.txt: names no class of .*val_1\.JPEG"):
        discover(tmp_path)
