"""Class folders read where they lie: against ImageFolder, and read once only."""

import os
import shutil
import unicodedata
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets
from user_images import noise, write_images

from autoformer.errors import AutoFormerError
from autoformer.images.archives import EncodedImages
from autoformer.images.card import read_card
from autoformer.images.split_files import write_split
from autoformer.images.split_images import load_images
from components.prepare_data import class_folders
from components.prepare_data.readers import read_delivered, read_to_test
from components.prepare_data.sources import discover
from components.prepare_data.step import prepare, write_prepared
from runtime.common.sections import PrepareData

WNIDS = ("n01440764", "n01443537", "n02007558")


@pytest.fixture(autouse=True)
def _work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOFORMER_WORK", str(tmp_path / "work"))


def tree(root: Path, classes: tuple[str, ...] = WNIDS, train: int = 3, val: int = 2) -> Path:
    for number, name in enumerate(classes):
        write_images(root / "train" / name, train, seed=number)
        write_images(root / "val" / name, val, seed=10 + number)
    noise(7).save(root / "train" / classes[0] / "0_first.JPEG")
    return root


def data_folder(tmp_path: Path, location: Path) -> Path:
    """A data folder that says where the tree is."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "source.yaml").write_text(f"location: {location}\n")
    return data


def test_rows_are_what_imagefolder_reads(tmp_path: Path) -> None:
    root = tree(tmp_path / "imagenet")
    data = data_folder(tmp_path, root)
    assert class_folders.is_mine(data) and not class_folders.is_mine(tmp_path)
    found = class_folders.read(data)
    encoded = EncodedImages(data, found.rows, 3)
    for split in ("train", "val"):
        twin = torchvision.datasets.ImageFolder(root / split)
        here = np.flatnonzero(found.splits == split)
        assert [str(root / name) for name in found.rows.archives[here]] == [path for path, _ in twin.samples]
        assert found.rows.labels[here].tolist() == twin.targets
        assert list(found.classes) == twin.classes
        for index, (image, _) in zip(here.tolist(), twin, strict=True):
            assert encoded.image(index).tobytes() == image.tobytes()
            assert sha256(encoded.read(index)).hexdigest().encode() == found.rows.checksums[index]
    assert (found.files, found.archives, found.upright, found.title) == (True, {}, False, "ImageNet")


def test_an_image_that_was_changed_since_is_noticed_when_it_is_read(tmp_path: Path) -> None:
    root = tree(tmp_path / "imagenet")
    found = class_folders.read(root)
    encoded = EncodedImages(root, found.rows, 3, verify=True)
    assert encoded.read(1) == (root / found.rows.archives[1]).read_bytes()
    content = bytearray((root / found.rows.archives[1]).read_bytes())
    content[-1] ^= 1
    (root / found.rows.archives[1]).write_bytes(content)
    with pytest.raises(AutoFormerError, match=r"n01440764/00.\.png: another image than the one that was indexed"):
        encoded.read(1)
    assert encoded.read(2)


def test_splits_and_card_of_a_tree(tmp_path: Path) -> None:
    """The whole way: prepare, write, and what a later step reads of it; the archive of a row is a file."""
    data = data_folder(tmp_path, tree(tmp_path / "imagenet", train=6))
    prepared = prepare(data, read_delivered(data, "imagenet-1k"), PrepareData(search_images=3), seed=0)
    paths = {name: tmp_path / f"{name}.parquet" for name in prepared.splits}
    write_prepared(prepared, tmp_path / "card.json", paths)
    card = read_card(tmp_path / "card.json")
    assert (card.files, card.archives, card.counts["test"], card.mean[0]) == (True, {}, 6, 0.485)
    images = load_images(paths["test"], data, card, image_size=8, name="test")
    assert images.pixels.shape == (6, 3, 8, 8) and images.labels.tolist() == [0, 0, 1, 1, 2, 2]
    outside = prepared.splits["test"]._replace(archives=np.array(["../a.png"] * 6, dtype=object))
    write_split(paths["test"], outside)
    with pytest.raises(AutoFormerError, match=r"'\.\./a\.png' lies outside the data folder"):
        load_images(paths["test"], data, card, image_size=8)


def test_folders_that_are_no_synsets_are_photographs_to_be_turned(tmp_path: Path) -> None:
    found = class_folders.read(tree(tmp_path / "pets", ("cat", "dog")))
    assert (found.upright, found.title, found.classes) == (True, "pets", ("cat", "dog"))


def test_one_split_alone(tmp_path: Path) -> None:
    """The classes are those of train all the same, whose images are not read."""
    root = tree(tmp_path / "imagenet")
    for file in (root / "train").rglob("*.png"):
        file.write_bytes(b"")
    found = class_folders.read(root, ("val",))
    assert found.classes == WNIDS and set(found.splits) == {"val"} and len(found.rows.labels) == 6


def test_a_class_is_read_again_only_where_it_has_changed(tmp_path: Path) -> None:
    """The index remembers: bytes that change behind its back, under the same name, size and time, are not seen."""
    root = tree(tmp_path / "imagenet")
    first = class_folders.read(root).rows.checksums.tolist()
    changed = sorted((root / "train").rglob("*.png"))
    for file in (changed[0], changed[-1]):
        status, content = file.stat(), file.read_bytes()
        file.write_bytes(content[:-1] + b"x")
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert class_folders.read(root).rows.checksums.tolist() == first
    os.utime(changed[-1])
    again = class_folders.read(root).rows
    different = [name for name, a, b in zip(again.archives, again.checksums, first, strict=True) if a != b]
    assert different == [changed[-1].relative_to(root).as_posix()]


def test_damaged_and_foreign_trees_are_refused_in_one_line(tmp_path: Path) -> None:
    root = tree(tmp_path / "imagenet")
    (root / "val" / "n99999999").mkdir()
    with pytest.raises(AutoFormerError, match=r"val/n99999999: a class that train does not have"):
        class_folders.read(root)
    (root / "train" / "n99999999").mkdir()
    with pytest.raises(AutoFormerError, match=r"n99999999: a class folder without images; fill it or remove it"):
        class_folders.read(root)
    link = root / "train" / WNIDS[0] / "broken.png"
    link.symlink_to(tmp_path / "gone.png")
    (root / "val" / "n99999999").rmdir()
    (root / "train" / "n99999999").rmdir()
    with pytest.raises(AutoFormerError, match=r"broken\.png: cannot be read \(No such file"):
        class_folders.read(root)
    lonely = tmp_path / "lonely"
    write_images(lonely / "train" / "cat", 1)
    with pytest.raises(AutoFormerError, match="lonely: fewer than two classes"):
        class_folders.read(lonely)
    (tmp_path / "pack").mkdir()
    assert not class_folders.is_mine(tmp_path / "pack") and not class_folders.is_mine(tmp_path / "nowhere")


def flat(root: Path, split: str, images: int = 3) -> Path:
    """Class folders in train, and a split without any."""
    for number, name in enumerate(WNIDS):
        write_images(root / "train" / name, 2, seed=number)
    for number in range(images):
        (root / split).mkdir(exist_ok=True)
        noise(50 + number).save(root / split / f"ILSVRC2012_{split}_{number + 1:08d}.JPEG")
    return root


@pytest.mark.parametrize("read", [class_folders.read, lambda root: read_to_test(root, "x")])
def test_a_val_folder_without_class_folders_is_refused_in_one_line(read: Any, tmp_path: Path) -> None:
    root = flat(tmp_path / "imagenet", "val")
    assert class_folders.is_mine(root)
    with pytest.raises(
        AutoFormerError, match=r"val: 3 images lie in no class folder; sort images into val/<class>/"
    ) as e:
        read(root)
    assert "\n" not in str(e.value)


def test_images_that_are_found_and_not_used_are_reported(tmp_path: Path) -> None:
    """A test/ without labels, images beside the class folders, thumbnails of a NAS."""
    root = flat(tmp_path / "imagenet", "test")
    noise(90).save(root / "train" / "loose.png")
    write_images(root / "train" / WNIDS[0] / "@eaDir" / "000.png", 2, seed=40)
    (root / "train" / WNIDS[0] / "raw.NEF").touch()
    (root / "train" / WNIDS[0] / "no-suffix").write_bytes(b"\xff\xd8\xff\xe0")
    found = class_folders.read(root)
    assert set(found.splits) == {"train"} and len(found.rows.labels) == 6
    assert found.source == "class folders (train)"
    assert [note.split(" left out")[0] for note in found.notes] == [
        "2 images in names of a system or tool",
        "files of formats that are not read",
        "1 image by content, not by name,",
        "train: 1 image in no class folder, so without a label,",
        "test: 3 images in no class folder, so without a label,",
    ]


@pytest.mark.parametrize("place", ["ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "."])
def test_imagenet_as_kaggle_delivers_it(place: str, tmp_path: Path) -> None:
    """val/ has no class folders; LOC_val_solution.csv, which lies above, names the class of each image."""
    flat(tmp_path / "kaggle" / place, "val", images=6)
    names = [f"ILSVRC2012_val_{number + 1:08d}" for number in range(6)]
    lines = [f"{name},{WNIDS[2 - number % 3]} 1 2 3 4 {WNIDS[0]} 5 6 7 8 " for number, name in enumerate(names)]
    (tmp_path / "kaggle" / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "\n".join(lines))
    found = class_folders.read(tmp_path / "kaggle")
    here = found.splits == "val"
    files = [Path(name).stem for name in found.rows.archives[here]]
    assert dict(zip(files, found.rows.labels[here].tolist(), strict=True)) == {
        name: 2 - number % 3 for number, name in enumerate(names)
    }
    assert (found.classes, found.title, found.notes) == (WNIDS, "ImageNet", ())
    encoded = EncodedImages(tmp_path / "kaggle", found.rows, 3, verify=True)
    assert len([encoded.read(index) for index in range(len(encoded))]) == 12
    assert read_to_test(tmp_path / "kaggle", "x").classes == WNIDS
    own = discover(tmp_path / "kaggle")
    assert len([image for image in own.images if image.split == "val"]) == 6 and own.classes == WNIDS
    (tmp_path / "kaggle" / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "\n".join(lines[1:]))
    with pytest.raises(AutoFormerError, match=r"LOC_val_solution\.csv: names no class of .*val_00000001\.JPEG"):
        class_folders.read(tmp_path / "kaggle")


@pytest.mark.parametrize("folder", ["val/val", "val/images", "validation", "eval"])
def test_a_split_alone_has_its_class_folders_where_archives_put_them(folder: str, tmp_path: Path) -> None:
    for number, name in enumerate(WNIDS):
        write_images(tmp_path / "imagenet" / folder / name, 2, seed=number)
    found = read_to_test(tmp_path / "imagenet", "x")
    assert found.classes == WNIDS and len(found.rows.labels) == 6 and found.source == f"class folders ({folder})"


def test_splits_of_a_tree_under_other_names(tmp_path: Path) -> None:
    for split in ("ILSVRC2012_img_train", "ILSVRC2012_img_val"):
        for number, name in enumerate(WNIDS):
            write_images(tmp_path / split / name, 1, seed=number)
    assert (
        class_folders.is_mine(tmp_path) and class_folders.read(tmp_path).splits.tolist() == ["train"] * 3 + ["val"] * 3
    )


def test_two_folders_of_one_split_are_refused_and_none_is_left_out_unsaid(tmp_path: Path) -> None:
    for split in ("train", "val", "valid"):
        for number, name in enumerate(WNIDS):
            write_images(tmp_path / split / name, 1, seed=number)
    with pytest.raises(AutoFormerError, match="val and valid mean the same split; keep one of them"):
        class_folders.read(tmp_path)


@pytest.mark.parametrize(("given", "meant"), [("imagenet/val", "imagenet"), (".", "imagenet")])
def test_one_split_and_the_folder_around_are_refused_with_the_tree(given: str, meant: str, tmp_path: Path) -> None:
    tree(tmp_path / "imagenet")
    for read in (read_to_test, read_delivered):
        with pytest.raises(AutoFormerError, match=rf"no data set of its own; did you mean {tmp_path / meant}\?$"):
            read(tmp_path / given, "x")


@pytest.mark.parametrize("split", ["val", "test"])
def test_reading_one_split_needs_that_one_alone(split: str, tmp_path: Path) -> None:
    for number, name in enumerate(WNIDS):
        write_images(tmp_path / "imagenet" / split / name, 2, seed=number)
    found = read_to_test(tmp_path / "imagenet", "x")
    assert found.classes == WNIDS and set(found.splits) == {split} and len(found.rows.labels) == 6
    with pytest.raises(AutoFormerError, match="imagenet: no folder train, which holds the classes"):
        class_folders.read(tmp_path / "imagenet")


def test_a_class_has_one_name_in_all_splits_whatever_its_unicode_form_or_case(tmp_path: Path) -> None:
    nfc, nfd = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    for number, name in enumerate((f"train/{nfd}", "train/Tea", f"val/{nfc}", "val/tea")):
        write_images(tmp_path / "menu" / name, 1, seed=number)
    found = class_folders.read(tmp_path / "menu")
    assert found.classes == ("Tea", nfc)
    assert dict(zip(found.rows.archives.tolist(), found.rows.labels.tolist(), strict=True)) == {
        "train/Tea/000.png": 0, f"train/{nfd}/000.png": 1, f"val/{nfc}/000.png": 1, "val/tea/000.png": 0,
    }  # fmt: skip
    write_images(tmp_path / "menu" / "train" / nfc, 1, seed=9)
    with pytest.raises(AutoFormerError, match="two spellings of 'café' differ by their Unicode form alone"):
        class_folders.read(tmp_path / "menu")


def test_classes_of_train_that_differ_by_case_stay_two(tmp_path: Path) -> None:
    for number, name in enumerate(("train/a", "train/A", "val/a", "val/A")):
        write_images(tmp_path / "letters" / name, 1, seed=number)
    found = class_folders.read(tmp_path / "letters")
    assert found.classes == ("A", "a") and found.rows.labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("kept", [0, 1])
def test_to_evaluate_alone_a_train_folder_that_is_not_used_may_be_empty_or_a_part(kept: int, tmp_path: Path) -> None:
    root = tree(tmp_path / "imagenet")
    for name in WNIDS[kept:]:
        shutil.rmtree(root / "train" / name)
    found = read_to_test(root, "x")
    assert found.classes == WNIDS and found.rows.labels.tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(AutoFormerError, match=r"a class that train does not have|holds no class folders"):
        class_folders.read(root)


@pytest.mark.parametrize("name", ["a\x1b[31m", "a\rb", "a\u202eb", os.fsdecode(b"\xff")])
def test_a_class_whose_name_a_terminal_would_obey_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(AutoFormerError, match="has control characters in its name; rename it") as error:
        class_folders.read(tree(tmp_path, (*WNIDS, name)))
    assert str(error.value).isprintable()


def test_an_image_whose_name_is_not_utf_8_is_one_line(tmp_path: Path) -> None:
    noise(1).save(tree(tmp_path) / "train" / WNIDS[0] / os.fsdecode(b"\xff.png"))
    with pytest.raises(AutoFormerError, match=f"an image of '{WNIDS[0]}' has a name that is not in UTF-8; rename it"):
        class_folders.read(tmp_path)
