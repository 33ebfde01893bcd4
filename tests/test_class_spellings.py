"""Class names as people read them: unseen characters, widths, look-alikes, missing and several labels."""

from pathlib import Path

import pytest

from autoformer.errors import AutoFormerError
from components.prepare_data import class_folders
from components.prepare_data.class_spellings import doubtful_classes, one_spelling
from components.prepare_data.sources import discover


@pytest.mark.parametrize(
    "other",
    ["cat\u200b", "\u200ecat", "\ufeffcat", "c\u00adat", "ｃａｔ", "cat\u00a0", "CAT"],
    ids=["zero width", "direction", "BOM", "soft hyphen", "wide", "no-break", "case"],
)
def test_names_that_look_the_same_are_one_class(other: str) -> None:
    for often, seldom in (("cat", other), (other, "cat")):
        name_of, notes = one_spelling({often: 3, seldom: 1, "dog": 4})
        assert len({name_of["cat"], name_of[other]}) == 1 and name_of["dog"] == "dog" and len(notes) == 1
        assert "\u200b" not in name_of[other] and "\u200e" not in name_of[other]


def test_signs_that_mean_something_keep_two_classes() -> None:
    labels = ["x²", "x2", "№1", "C", "C++", "mi", "mï", "\U0001f469\u200d\U0001f52c", "\U0001f469"]
    name_of, notes = one_spelling(dict.fromkeys(labels, 1))
    assert name_of == dict(zip(labels, labels, strict=True)) and notes == []


@pytest.mark.parametrize(
    ("classes", "note"),
    [
        (["big cat", "big_cat"], "the classes 'big cat', 'big_cat' differ by little"),
        (["1", "1.0", "2"], "the classes '1', '1.0' differ by little"),
        (["01", "1"], "the classes '01', '1' differ by little"),
        (["“cat”", "cat"], "the classes 'cat', '“cat”' differ by little"),
        (["cat", "c\u0430t"], "differ by little"),  # a Cyrillic letter
        (["cat", "dog", "nan"], "the class 'nan' is called as programs write a missing label"),
        (["NULL", "dog"], "the class 'NULL' is called as programs write a missing label"),
        (["cat", "dog", "cat|dog"], r"classes that seem to be several labels of an image: cat\|dog"),
    ],
)
def test_doubtful_classes_are_named(classes: list[str], note: str) -> None:
    (found,) = doubtful_classes(classes)
    assert found.startswith(note.replace("\\", "")) or note in found


@pytest.mark.parametrize(
    "classes", [["C", "C++", "C#"], ["1", "10", "1.5"], ["salt & pepper", "salt"], ["a", "b"], ["x²", "x2"]]
)
def test_classes_that_differ_are_no_doubt(classes: list[str]) -> None:
    assert doubtful_classes(classes) == []


def test_a_class_that_train_calls_by_another_name_is_refused_with_that_name(tmp_path: Path) -> None:
    for folder in ("train/golden_retriever", "train/cat", "val/golden retriever", "val/cat"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "1.png").touch()
    for read in (discover, class_folders.read):
        with pytest.raises(AutoFormerError, match=r"golden retriever.*; 'golden_retriever' differs by little: give it"):
            read(tmp_path)
