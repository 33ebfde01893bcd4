"""Tables whose paths begin at another folder than their own: beside images/, above, or on another computer."""

from pathlib import Path

import pytest

from autoformer.errors import AutoFormerError
from components.prepare_data.sources import discover

LABELS = ("cat", "dog", "cat", "dog")


def table(folder: Path, written: str, files: str, there: tuple[int, ...] = (0, 1, 2, 3)) -> Path:
    """A CSV beside files; {n} is the number of an image, {c} its class."""
    for n in there:
        file = folder / files.format(n=n, c=LABELS[n])
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    rows = [f"{written.format(n=n, c=label)},{label}" for n, label in enumerate(LABELS)]
    (folder / "labels.csv").write_text("\n".join(["path,label", *rows]))
    return folder / "labels.csv"


@pytest.mark.parametrize(
    ("written", "files"),
    [
        ("{n}.jpg", "images/{n}.jpg"),
        ("{n}", "images/{n}.jpg"),  # Kaggle's image_id
        ("{c}/{n}.jpg", "img/{c}/{n}.jpg"),
        ("data/own/{c}/{n}.jpg", "{c}/{n}.jpg"),
        ("data/own/images/{n}.jpg", "images/{n}.jpg"),
        (r"own\{c}\{n}.jpg", "deep/down/{c}/{n}.jpg"),
    ],
)
def test_one_move_of_all_paths_finds_the_images_and_is_reported(written: str, files: str, tmp_path: Path) -> None:
    source = discover(table(tmp_path / "own", written, files))
    assert {(source.name_of(image), image.label) for image in source.images} == {
        (files.format(n=n, c=label), label) for n, label in enumerate(LABELS)
    }
    first = source.notes[-1]
    assert first == (
        f"no path of the CSV is there as written: {files.format(n=0, c='cat')} is taken for "
        f"{written.format(n=0, c='cat')}, and so on"
    )


@pytest.mark.parametrize(
    ("written", "files"),
    [
        ("/home/alice/own/images/{n}.jpg", "images/{n}.jpg"),
        (r"C:\Users\Bob\own\{c}\{n}.jpg", "deep/down/{c}/{n}.jpg"),
        ("../images/{n}.jpg", "images/{n}.jpg"),
    ],
)
def test_paths_that_lead_out_are_refused_with_the_path_that_is_meant(written: str, files: str, tmp_path: Path) -> None:
    meant = files.format(n=0, c="cat")
    with pytest.raises(AutoFormerError, match=rf"line 2: .* lies outside the folder of the CSV; write {meant}$"):
        discover(table(tmp_path / "own", written, files))


def test_a_single_image_that_is_missing_is_not_looked_for_elsewhere(tmp_path: Path) -> None:
    """An image of the same name in another folder has another label."""
    file = table(tmp_path, "{c}/{n}.jpg", "{c}/{n}.jpg", there=(0, 1, 2))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "3.jpg").touch()
    assert "dog/3.jpg" in [discover(file).name_of(image) for image in discover(file).images]


def test_two_folders_that_fit_are_a_question_and_not_an_answer(tmp_path: Path) -> None:
    table(tmp_path, "{n}.jpg", "small/{n}.jpg")
    source = discover(table(tmp_path, "{n}.jpg", "large/{n}.jpg"))
    assert [source.name_of(image) for image in source.images] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]


def test_most_images_decide_where_some_are_missing(tmp_path: Path) -> None:
    source = discover(table(tmp_path, "{n}.jpg", "train/{n}.jpg", there=(1, 2, 3)))
    assert [source.name_of(image) for image in source.images] == [f"train/{n}.jpg" for n in range(4)]
