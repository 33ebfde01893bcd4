"""Which files count as a user's images and classes, and that whatever is left out is reported with its number."""

import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from autoformer.errors import AutoFormerError
from components.prepare_data.sources import Source, discover


def lay(root: Path, *files: str) -> Path:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name, encoding="utf-8")
    return root


def names(source: Source) -> list[str]:
    return [source.name_of(image) for image in source.images]


USERS = ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/2.jpg")


@pytest.mark.parametrize(
    "folder",
    [
        "@eaDir", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot", ".@__thumb", "@tmp", "$RECYCLE.BIN",
        "System Volume Information", "lost+found", "FOUND.000", "__MACOSX", ".Trash-1000", ".Trashes", ".AppleDouble",
        ".Spotlight-V100", ".thumbnails", "Network Trash Folder", "__pycache__", ".ipynb_checkpoints", ".git",
        "node_modules", "_vti_cnf", "Lightroom Previews.lrdata", "~snapshot", "RECYCLER",
        "Photos Library.photoslibrary", "[Originals]", "files_trashbin", "@Transcode", "Backups.backupdb",
    ],
)  # fmt: skip
def test_a_folder_of_a_system_or_tool_is_neither_a_class_nor_of_one(folder: str, tmp_path: Path) -> None:
    root = lay(tmp_path, *USERS, f"{folder}/x.jpg", f"cat/{folder}/1.jpg/XL.jpg", f"dog/deep/{folder}/2.jpg")
    (root / "dog" / "empty" / folder).mkdir(parents=True)
    source = discover(root)
    assert names(source) == [*USERS] and source.ignored == 0
    assert source.notes == (f"3 images in names of a system or tool left out: {folder} 3",)


@pytest.mark.parametrize("folder", ["@eaDir", "lost+found", "$RECYCLE.BIN", ".ipynb_checkpoints"])
def test_an_empty_folder_of_a_system_stops_nothing(folder: str, tmp_path: Path) -> None:
    for place in (tmp_path / "train", tmp_path / "val"):
        (lay(place, *USERS) / folder).mkdir()
    (tmp_path / folder).mkdir()
    assert discover(tmp_path).notes == () and discover(tmp_path / "train").notes == ()


@pytest.mark.parametrize(
    "file", ["Thumbs.db", "ehthumbs.db", "desktop.ini", ".DS_Store", "Icon\r", ".picasa.ini", "ZbThumbnail.info"]
)
def test_a_file_of_a_system_is_not_counted(file: str, tmp_path: Path) -> None:
    source = discover(lay(tmp_path, *USERS, f"cat/{file}", file))
    assert (names(source), source.ignored, source.notes) == ([*USERS], 0, ())


@pytest.mark.parametrize(
    ("file", "note"),
    [
        ("cat/._1.jpg", "1 image in names of a system or tool left out: ._… 1"),
        ("cat/..png", "1 image in names of a system or tool left out: ..png 1"),
        ("cat/.jpg", "1 image in names of a system or tool left out: .jpg 1"),
        ("cat/SYNOPHOTO_THUMB_XL.jpg", "1 image in names of a system or tool left out: SYNOPHOTO_THUMB_XL.jpg 1"),
        ("cat/thumbs/1.jpg", "1 image in names of a system or tool left out: thumbs 1"),
        ("cat/_thumb/1.jpg", "1 image in names of a system or tool left out: _thumb 1"),
        ("cat/1-150x150.jpg", "1 image left out, smaller copies by their names: 1-150x150.jpg"),
        ("cat/1_thumb.png", "1 image left out, smaller copies by their names: 1_thumb.png"),
        ("cat/thumb_1.png", "1 image left out, smaller copies by their names: thumb_1.png"),
        ("cat/1-scaled.jpg", "1 image left out, smaller copies by their names: 1-scaled.jpg"),  # WordPress
        ("cat/1-e1612345678901.jpg", "1 image left out, smaller copies by their names: 1-e1612345678901.jpg"),
        ("cat/1@2x.jpg", "1 image left out, smaller copies by their names: 1@2x.jpg"),
        ("cat/1_small.jpg", "1 image left out, smaller copies by their names: 1_small.jpg"),
        ("cat/AlbumArtSmall.jpg", "1 image in names of a system or tool left out: AlbumArtSmall.jpg 1"),
        ("cat/.IMG_1.HEIC.icloud", "1 image in iCloud alone, left out: IMG_1.HEIC; download them in the Finder"),
        ("cat/TN-1.jpg", "1 image left out, smaller copies by their names: TN-1.jpg"),
    ],
)
def test_smaller_copies_that_tools_make_are_no_images_of_their_own(file: str, note: str, tmp_path: Path) -> None:
    """Else a copy of a test image would be trained on."""
    source = discover(lay(tmp_path, *USERS, file))
    assert names(source) == [*USERS] and source.notes == (note,)


@pytest.mark.parametrize("label", ["thumbs", "recycled", "#1", "@home", "$5", "trash", "found", "_other", "~x"])
def test_classes_with_names_near_those_of_systems_stay_classes(label: str, tmp_path: Path) -> None:
    source = discover(
        lay(tmp_path, *USERS, f"{label}/1.jpg", f"{label}/photo-2x.jpg", f"{label}/a_small.jpg", f"{label}/b@2x.jpg")
    )
    assert label in source.classes and source.notes == ()


@pytest.mark.parametrize("split", ["test", "val", "Validation"])
def test_a_split_without_class_folders_is_reported_and_not_named_as_used(split: str, tmp_path: Path) -> None:
    root = lay(tmp_path, *(f"train/{name}" for name in USERS), *(f"{split}/{n}.png" for n in range(9)))
    source = discover(root)
    assert source.layout == "train folders of class folders" and {image.split for image in source.images} == {"train"}
    assert source.notes == (
        f"{split}: 9 images in no class folder, so without a label, left out: 0.png, 1.png, 2.png, …",
    )


def test_an_empty_split_is_reported(tmp_path: Path) -> None:
    (lay(tmp_path, *(f"train/{name}" for name in USERS)) / "val").mkdir()
    source = discover(tmp_path)
    assert source.layout == "train folders of class folders"
    assert source.notes == ("val: holds no images, and is not used",)


def test_images_beside_class_folders_and_behind_linked_folders_are_reported(tmp_path: Path) -> None:
    root = lay(tmp_path / "a", *USERS, "x.jpg", "y.PNG")
    (root / "cat" / "more").symlink_to(lay(tmp_path / "b", "1.jpg"))
    assert discover(root).notes == (
        ".: 2 images in no class folder, so without a label, left out: x.jpg, y.PNG",
        f"linked folders are not followed: {root / 'cat' / 'more'}",
    )
    splits = lay(tmp_path / "c", *(f"{s}/{n}" for s in ("train", "val") for n in USERS), "val/x.jpg", "z.jpg")
    assert [note.partition(":")[0] for note in discover(splits).notes] == ["val", "."]


def test_images_that_a_csv_does_not_name_are_reported(tmp_path: Path) -> None:
    root = lay(tmp_path, *USERS, "cat/3.jpg", "other/1.jpg")
    (root / "labels.csv").write_text("path,label\ncat/1.jpg,cat\ncat/2.jpg,cat\ndog/1.jpg,dog\ndog/2.jpg,dog\n")
    assert discover(root / "labels.csv").notes == ("cat: 1 image that the CSV does not name left out: 3.jpg",)


def test_flat_images_beside_a_table_lead_to_the_table(tmp_path: Path) -> None:
    root = lay(tmp_path, "1.jpg", "2.jpg", "labels.csv")
    with pytest.raises(AutoFormerError, match=r"2 images lie in it directly.*, or name the table .*DATA=.*labels\.csv"):
        discover(root)


NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("folders", "classes"),
    [
        ((NFC, NFD, "tea"), {NFC: 2, "tea": 1}),  # as Linux and macOS write it
        (("Cat", "cat", "dog"), {"Cat": 2, "dog": 1}),
        (("big  cat", "big cat", "dog"), {"big  cat": 2, "dog": 1}),
        ((NFD.upper(), NFC, "tea"), {NFC.upper(): 2, "tea": 1}),
        (("a", "A"), {"a": 1, "A": 1}),  # letters to tell apart
        (("Co", "CO"), {"Co": 1, "CO": 1}),
    ],
)
def test_folders_that_people_read_as_one_name_are_one_class(
    folders: tuple[str, ...], classes: dict[str, int], tmp_path: Path
) -> None:
    source = discover(lay(tmp_path, *(f"{folder}/1.jpg" for folder in folders)))
    assert Counter(image.label for image in source.images) == classes
    assert len(source.notes) == len(folders) - len(classes)  # one sentence for each name with two spellings


@pytest.mark.parametrize("other", [NFD, "CAFÉ", "Café ", "cafe\u0301"])
def test_a_class_has_one_name_in_all_splits(other: str, tmp_path: Path) -> None:
    root = lay(tmp_path, *(f"train/{label}/{n}.jpg" for label in (NFC, "tea") for n in range(2)))
    source = discover(lay(root, f"val/{other}/1.jpg", "val/tea/1.jpg"))
    assert source.classes == (NFC, "tea") and len(source.notes) == 1 and "are one class" in source.notes[0]
