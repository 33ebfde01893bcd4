"""Splits of images whose classes differ in size, on small tables computed by hand."""

from collections import Counter
from random import Random

import numpy as np
import pytest

from autoformer.errors import AutoFormerError
from autoformer.images.splits import Shares, split_by_share

SHARES = Shares(search_percent=20, test_percent=10)


def split(
    labels: str,
    contents: str = "",
    shares: Shares = SHARES,
    splits: str = "",
    seed: int = 0,
) -> tuple[dict[str, list[int]], tuple[str, ...]]:
    """One letter per image: class, content (all different by default), split (t, v, s for test, or -)."""
    classes = sorted(set(labels))
    checksums = np.array(list(contents) if contents else [f"image {number}" for number in range(len(labels))])
    of_split = np.array(list(splits or "t" * len(labels)))
    free, val, test = (np.flatnonzero(of_split == letter) for letter in "tvs")
    parts, notes = split_by_share(
        np.array([classes.index(label) for label in labels]), checksums, classes, free, val, test, shares, Random(seed)
    )
    return {name: rows.tolist() for name, rows in parts.items()}, notes


def of_class(labels: str, rows: list[int]) -> dict[str, int]:
    return dict(Counter(labels[row] for row in rows))


def test_each_class_gives_its_share() -> None:
    """20 % and 10 % of 40, 10 and 5: 8 and 4, 2 and 1, 1 and, since it is at least one, 1."""
    labels = "a" * 40 + "b" * 10 + "c" * 5
    parts, notes = split(labels)
    assert of_class(labels, parts["search"]) == {"a": 8, "b": 2, "c": 1}
    assert of_class(labels, parts["test"]) == {"a": 4, "b": 1, "c": 1}
    assert of_class(labels, parts["train"]) == {"a": 28, "b": 7, "c": 3}
    assert sorted(row for rows in parts.values() for row in rows) == list(range(55)) and notes == ()
    assert parts["train"] == sorted(parts["train"])  # in the order of delivery


def test_the_seed_draws() -> None:
    labels = "a" * 40 + "b" * 40
    assert split(labels, seed=1) == split(labels, seed=1) != split(labels, seed=2)


@pytest.mark.parametrize("split_name", ["search", "test"])
def test_a_prefix_has_about_the_shares_of_the_whole(split_name: str) -> None:
    """Within one image of each class, for every prefix."""
    labels = "a" * 400 + "b" * 100 + "c" * 60
    rows = split(labels, shares=Shares(30, 30))[0][split_name]
    whole = of_class(labels, rows)
    assert whole == {"a": 120, "b": 30, "c": 18}
    for end in range(1, len(rows)):
        found = of_class(labels, rows[:end])
        for label, images in whole.items():
            assert abs(found.get(label, 0) - images * end / len(rows)) <= 1, (end, found)


def test_given_splits_are_kept() -> None:
    """Nothing is drawn: search is val, test is test, although class b is in neither."""
    parts, notes = split("aaaabbb", splits="ttvsttt")
    assert parts == {"train": [0, 1, 4, 5, 6], "search": [2], "test": [3]} and notes == ()


def test_a_missing_split_is_drawn_from_the_training_images() -> None:
    labels, splits = "a" * 12 + "b" * 12, ("t" * 10 + "ss") * 2
    parts, _ = split(labels, splits=splits)
    assert sorted(parts["test"]) == [10, 11, 22, 23]
    assert of_class(labels, parts["search"]) == {"a": 2, "b": 2} and len(parts["train"]) == 16
    assert not set(parts["search"]) & set(parts["test"])
    splits = ("t" * 10 + "vv") * 2
    parts, _ = split(labels, splits=splits)
    assert sorted(parts["search"]) == [10, 11, 22, 23] and of_class(labels, parts["test"]) == {"a": 1, "b": 1}


def test_an_image_that_is_also_in_a_later_split_is_left_out() -> None:
    """Content x is in train, val and test: it tests. Content y is in train and val: it searches."""
    parts, notes = split("aaaabbbb", contents="1xxx2yy3", splits="ttvstvts")
    assert parts["train"] == [0, 4]  # row 1 is an x, row 6 a y
    assert parts["search"] == [5]  # row 2 is an x
    assert sorted(parts["test"]) == [3, 7]
    assert notes == ("3 images were left out of train or search: the same image is in a later split too",)


def test_copies_stay_together_in_one_split() -> None:
    """Ten images of a class, eight of one content: each split has one of the three contents, and none is in two."""
    labels, contents = "a" * 10 + "b" * 10, "xxxxxxxx12" + "abcdefghij"
    for seed in range(5):
        parts, _ = split(labels, contents, Shares(10, 10), seed=seed)
        held = [row for row in parts["search"] + parts["test"] if labels[row] == "a"]
        of_split = [{contents[row] for row in parts[name]} for name in ("train", "search", "test")]
        assert len(held) == 2 and not set.intersection(*of_split)
        assert not (of_split[0] & of_split[1] or of_split[0] & of_split[2] or of_split[1] & of_split[2])


def test_one_image_under_two_classes_is_noted_and_never_held_out() -> None:
    labels, contents = "aaaabbbb", "1234" + "1567"
    parts, notes = split(labels, contents)
    assert notes == ("1 image is there under two classes or more: one of the labels is wrong",)
    assert {0, 4} <= set(parts["train"])


def test_splits_are_disjoint_by_content() -> None:
    """Many copies, within and across classes and given splits: no content is in two of the parts."""
    rng = np.random.default_rng(0)
    for seed in range(30):
        labels = "".join(rng.choice(list("ab"), 60))
        contents = "".join(rng.choice([chr(65 + number) for number in range(50)], 60))
        splits = "".join(rng.choice(list("ttttvs"), 60)) if seed % 2 else ""
        try:
            parts, _ = split(labels, contents, splits=splits, seed=seed)
        except AutoFormerError:
            continue
        held = {name: {contents[row] for row in rows} for name, rows in parts.items()}
        assert not held["train"] & held["search"] and not held["train"] & held["test"]
        assert not held["search"] & held["test"]


@pytest.mark.parametrize(
    ("labels", "contents", "splits", "parts"),
    [
        ("aaaabb", "", "", ["class 'b' has 2 different images", "at least 3"]),
        ("aaaabbb", "", "tttvttv", []),  # val given: two of b are enough to train on and to test
        ("aaaab", "", "tttst", ["class 'b' has 1 different image ", "at least 2"]),
        ("aaaabbbb", "1234xxxx", "", ["class 'b' has 1 different image "]),  # copies all: nothing to hold out
        ("aaaabbccc", "", "", ["class 'b' has 2"]),
        (
            "aaaabbcddd",
            "",
            "",
            ["2 classes have too few different images", "hold out: b 2, c 1; each takes at least 3"],
        ),
        ("aaab", "x123", "vsss", ["hold out: a 0, b 0; each takes at least 1"]),
        ("aabbxx", "123411", "ttttvs", ["all images of the val split are in the test split too"]),
    ],
)
def test_all_classes_with_too_few_images_are_named(labels: str, contents: str, splits: str, parts: list[str]) -> None:
    if not parts:
        assert split(labels, contents, splits=splits)
        return
    with pytest.raises(AutoFormerError) as error:
        split(labels, contents, splits=splits)
    assert all(part in str(error.value) for part in parts), error.value
