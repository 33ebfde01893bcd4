"""The official transfer sets, a few images large: every row against another program's reading of the same files."""

import gzip
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets
from transfer_archives import cifar, cifar_binary, harmful_pickle, make, mat, md5s, python2_pickle, write_tar
from user_images import write_images

from autoformer.errors import AutoFormerError
from autoformer.images.archives import EncodedImages
from autoformer.images.card import DatasetCard, read_card
from autoformer.images.split_images import load_images, read_archive, read_rows
from commands.deliver import PUBLISHED, copy_verified, main
from components.prepare_data import cifar as cifar_reader
from components.prepare_data import class_folders, photo_sets, webdataset
from components.prepare_data.delivered import Delivered
from components.prepare_data.readers import read_delivered
from components.prepare_data.step import prepare, write_prepared
from runtime.common.sections import PrepareData

READERS: dict[str, Any] = {
    "cifar-10": cifar_reader,
    "cifar-100": cifar_reader,
    "flowers-102": photo_sets,
    "oxford-iiit-pets": photo_sets,
    "stanford-cars": photo_sets,
}
Seen = list[tuple[bytes, int]]  # of each image: its pixels in RGB, and its label


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision has the md5 sums of the whole files, which these are not, so they are passed over."""
    for module in (torchvision.datasets.cifar, torchvision.datasets.flowers102):
        monkeypatch.setattr(module, "check_integrity", lambda *_: True)


def delivered(name: str, tmp_path: Path) -> Path:
    downloads = make(name, tmp_path / "downloads")
    copy_verified(downloads, tmp_path / "data", md5s(downloads))
    return tmp_path / "data"


def seen(data: Path, found: Delivered, split: str) -> Seen:
    """What our rows point at."""
    rows = found.rows.take(np.flatnonzero(found.splits == split))
    if found.encoding == "raw":
        content = {name: read_archive(data / name) for name in found.archives}
        pixels = [
            np.frombuffer(content[str(archive)][offset : offset + size], np.uint8).reshape(3, 32, 32).transpose(1, 2, 0)
            for archive, offset, size in zip(rows.archives, rows.offsets, rows.sizes, strict=True)
        ]
        images = [image.tobytes() for image in pixels]
    else:
        encoded = EncodedImages(data, rows, 3)
        images = [encoded.image(index).tobytes() for index in range(len(encoded))]
    return list(zip(images, rows.labels.tolist(), strict=True))


def unpacked(downloads: Path, folder: Path, *names: str) -> None:
    for name in names:
        with tarfile.open(downloads / name) as tar:
            tar.extractall(folder, filter="data")


def torchvision_twin(name: str, downloads: Path, root: Path, split: str) -> tuple[Seen, Any]:
    """torchvision's own reading of the unpacked files."""
    sets = torchvision.datasets
    found: Any
    if name.startswith("cifar"):
        unpacked(downloads, root, *(file.name for file in downloads.iterdir()))
        found = (sets.CIFAR100 if name == "cifar-100" else sets.CIFAR10)(root, train=split == "train")
    elif name == "flowers-102":
        unpacked(downloads, root / "flowers-102", "102flowers.tgz")
        for file in downloads.glob("*.mat"):
            (root / "flowers-102" / file.name).write_bytes(file.read_bytes())
        found = sets.Flowers102(root, split)
    elif name == "oxford-iiit-pets":
        unpacked(downloads, root / "oxford-iiit-pet", "images.tar.gz", "annotations.tar.gz")
        found = sets.OxfordIIITPet(root, "trainval" if split == "train" else split)
    else:
        unpacked(downloads, root / "stanford_cars", "cars_train.tgz", "cars_test.tgz", "car_devkit.tgz")
        labels = "cars_test_annos_withlabels.mat"
        (root / "stanford_cars" / labels).write_bytes((downloads / labels).read_bytes())
        found = sets.StanfordCars(root, split)
    return [(image.convert("RGB").tobytes(), int(label)) for image, label in found], found.classes


@pytest.mark.parametrize("name", READERS)
def test_every_row_is_what_torchvision_reads(name: str, tmp_path: Path) -> None:
    data = delivered(name, tmp_path)
    reader = READERS[name]
    assert reader.is_mine(data) and not reader.is_mine(tmp_path)
    found = reader.read(data)
    splits = {"train", "val", "test"} if name == "flowers-102" else {"train", "test"}
    assert set(found.splits.tolist()) == splits
    for split in splits:
        twin, classes = torchvision_twin(name, tmp_path / "downloads", tmp_path / "twin", split)
        ours = seen(data, found, split)
        assert sorted(ours) == sorted(twin)
        assert len({image for image, _ in ours}) == len(ours) > 1
        assert list(found.classes) == list(classes)
    assert set(found.archives) == set(found.rows.archives.tolist())


@pytest.mark.parametrize("fine", [False, True])
def test_the_binary_version_of_cifar(fine: bool, tmp_path: Path) -> None:
    """Each record against the bytes that the tar holds, one at a time."""
    archive = cifar_binary(tmp_path, fine)
    found = cifar_reader.read(tmp_path)
    expected = {"train": [], "test": []}  # type: Any
    with tarfile.open(archive) as tar:
        for info in tar:
            if info.name.endswith(".bin"):
                file = tar.extractfile(info)
                while label := file.read(1 + fine):  # type: ignore[union-attr]
                    planes = np.frombuffer(file.read(3072), np.uint8).reshape(3, 32, 32)  # type: ignore[union-attr]
                    image = planes.transpose(1, 2, 0).tobytes()
                    expected["test" if "test" in info.name else "train"].append((image, label[-1]))
    assert {split: seen(tmp_path, found, split) for split in expected} == expected
    assert found.classes == ("apple", "bear", "chair")
    archive.write_bytes(gzip.compress(gzip.decompress(archive.read_bytes()).replace(b".bin", b".bon")))
    with pytest.raises(AutoFormerError, match=r"holds no|not readable as a tar"):
        cifar_reader.read(tmp_path)


def test_rows_of_an_archive_that_was_uncompressed_are_what_tarfile_finds(tmp_path: Path) -> None:
    data = delivered("flowers-102", tmp_path)
    rows = photo_sets.read(data).rows
    content = (data / "102flowers.tar").read_bytes()
    with tarfile.open(tmp_path / "downloads" / "102flowers.tgz") as tar:
        files = sorted(tar.extractfile(info).read() for info in tar)  # type: ignore[union-attr]
    assert sorted(content[o : o + s] for o, s in zip(rows.offsets, rows.sizes, strict=True)) == files


# --- from there on it is a data set as any other ---


def prepared(data: Path, section: PrepareData, tmp_path: Path) -> tuple[DatasetCard, dict[str, Path]]:
    made = prepare(data, read_delivered(data, "any"), section, seed=0)
    paths = {name: tmp_path / f"{name}.parquet" for name in made.splits}
    write_prepared(made, tmp_path / "card.json", paths)
    return read_card(tmp_path / "card.json"), paths


def test_cifar_goes_into_memory_as_it_is(tmp_path: Path) -> None:
    data = delivered("cifar-10", tmp_path)
    card, paths = prepared(data, PrepareData(search_images=3), tmp_path)
    assert card.counts == {"train": 32, "search": 3, "test": 7, "train_full": 35} and card.image_size == 32
    images = load_images(paths["test"], data, card, name="test")
    twin, _ = torchvision_twin("cifar-10", tmp_path / "downloads", tmp_path / "twin", "test")
    pixels = [image.transpose(1, 2, 0).tobytes() for image in images.pixels]
    assert sorted(zip(pixels, images.labels.tolist(), strict=True)) == sorted(twin)
    train = load_images(paths["train"], data, card)
    np.testing.assert_allclose(card.mean, train.pixels.mean(axis=(0, 2, 3)) / 255)


def test_flowers_trains_on_its_train_and_val_images_together(tmp_path: Path) -> None:
    """One, one and two images of each class here, where the real set has ten, ten and the rest."""
    labels = np.tile(np.arange(1, 103), 4)
    numbers = np.arange(1, len(labels) + 1).reshape(4, 102)
    splits = {"trnid": numbers[2], "valid": numbers[0], "tstid": numbers[[1, 3]].reshape(-1)}
    data = tmp_path / "data"
    write_tar(data / "102flowers.tar", {f"jpg/image_{n:05d}.jpg": b"%d" % n for n in range(1, len(labels) + 1)})
    (data / "imagelabels.mat").write_bytes(mat(labels=labels))
    (data / "setid.mat").write_bytes(mat(**splits))
    card, paths = prepared(data, PrepareData(), tmp_path)
    assert card.counts == {"train": 102, "search": 102, "test": 204, "train_full": 204}
    assert card.mean == (0.485, 0.456, 0.406)  # what the models that are moved to it were fed with
    content = (data / "102flowers.tar").read_bytes()
    rows = read_rows(paths["train_full"], data, card, "train_full")
    names = {int(content[o : o + s]) for o, s in zip(rows.offsets, rows.sizes, strict=True)}
    assert names == {*splits["trnid"].tolist(), *splits["valid"].tolist()}


# --- the door ---


def test_what_is_delivered_is_the_same_each_time(tmp_path: Path) -> None:
    data = delivered("stanford-cars", tmp_path)
    first = {file.name: file.read_bytes() for file in data.iterdir()}
    assert sorted(first) == ["car_devkit.tgz", "cars_test.tar", "cars_test_annos_withlabels.mat", "cars_train.tar"]
    (data / "cars_test.tar").write_bytes(b"damaged")
    copy_verified(tmp_path / "downloads", data, md5s(tmp_path / "downloads"))
    assert {file.name: file.read_bytes() for file in data.iterdir()} == first


@pytest.mark.parametrize("name", READERS)
def test_other_files_than_the_published_ones_are_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    downloads = make(name, tmp_path / "downloads")
    assert set(md5s(downloads)) == set(PUBLISHED[name])
    arguments = ["--dataset", name, "--archives", str(downloads), "--data", str(tmp_path / "data")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "as published; download it again" in error and error.count("\n") == 1
    assert not list((tmp_path / "data").iterdir())


def test_a_missing_and_a_truncated_download(tmp_path: Path) -> None:
    downloads = make("flowers-102", tmp_path / "downloads")
    sums = md5s(downloads)
    whole = (downloads / "102flowers.tgz").read_bytes()
    for content, message in ((whole[:-20], "ends too early"), (b"<html>" + whole, "not readable as gzip")):
        (downloads / "102flowers.tgz").write_bytes(content)
        with pytest.raises(AutoFormerError, match=message):
            copy_verified(downloads, tmp_path / "data", sums)
    (downloads / "102flowers.tgz").unlink()
    with pytest.raises(AutoFormerError, match=r"holds no 102flowers\.tgz; put the official files there"):
        copy_verified(downloads, tmp_path / "data", sums)
    assert not (tmp_path / "data").exists() or not list((tmp_path / "data").iterdir())


# --- what is damaged, missing or foreign ---


def cifar_with(folder: Path, **changes: bytes) -> Path:
    """CIFAR-10 with one member replaced."""
    with tarfile.open(cifar(folder)) as tar:
        files = {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
    files |= {f"cifar-10-batches-py/{name}": content for name, content in changes.items()}
    write_tar(folder / "cifar-10-python.tar.gz", {name: c for name, c in files.items() if c}, "w:gz")
    return folder


def pixels(images: int) -> np.ndarray:
    return np.zeros((images, 3072), np.uint8)


def damaged_cifar(folder: Path) -> Iterator[tuple[Path, str]]:
    yield cifar_with(folder / "0", test_batch=b""), "holds no cifar-10-batches-py/test_batch"
    yield cifar_with(folder / "1", test_batch=b"no pickle"), "test_batch is not readable"
    for number, (values, message) in enumerate(
        [
            ({"labels": [0, 1], "data": pixels(1)}, "other pixels than 2 images of 32 x 32"),
            ({"labels": [0], "data": np.zeros((1, 100), np.uint8)}, "other pixels than 1 image "),
            ({"labels": [9], "data": pixels(1)}, "labels do not fit its 3 classes"),
            ({"data": pixels(1)}, "no pixels or no labels"),
        ],
        start=2,
    ):
        yield cifar_with(folder / str(number), test_batch=python2_pickle(**values)), message
    file = cifar(folder / "9")
    file.write_bytes(file.read_bytes()[:-100])
    yield folder / "9", "not readable as gzip"


def test_a_damaged_cifar_is_refused_in_one_line(tmp_path: Path) -> None:
    for folder, message in damaged_cifar(tmp_path):
        with pytest.raises(AutoFormerError, match=message):
            cifar_reader.read(folder)


def test_no_code_runs_out_of_a_pickle(tmp_path: Path) -> None:
    written = tmp_path / "ran"
    data = cifar_with(tmp_path / "data", test_batch=harmful_pickle(f"touch {written}"))
    with pytest.raises(AutoFormerError, match=f"it asks for {os.system.__module__}.system"):
        cifar_reader.read(data)
    assert not written.exists()


def test_a_missing_or_damaged_list_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = delivered("flowers-102", tmp_path / "flowers")
    with monkeypatch.context() as patch:
        patch.setattr(torchvision.datasets.flowers102, "check_integrity", torchvision.datasets.utils.check_integrity)
        with pytest.raises(AutoFormerError, match=r"imagelabels\.mat or setid\.mat: not as published; `make data`"):
            photo_sets.read(data)
    (data / "setid.mat").write_bytes(mat(trnid=np.array([1, 2])))
    with pytest.raises(AutoFormerError, match=r"setid\.mat: not as published \('valid'\)"):
        photo_sets.read(data)
    (data / "imagelabels.mat").write_bytes(b"no matrix")
    with pytest.raises(AutoFormerError, match=r": not as published \(Mat file appears to be truncated\)"):
        photo_sets.read(data)
    (data / "imagelabels.mat").unlink()
    with pytest.raises(AutoFormerError, match=r"imagelabels\.mat: no such file"):
        photo_sets.read(data)

    data = delivered("oxford-iiit-pets", tmp_path / "pets")
    write_tar(data / "annotations.tar.gz", {"annotations/trainval.txt": b"Abyssinian_100 1 1 1"}, "w:gz")
    with pytest.raises(AutoFormerError, match=r"annotations\.tar\.gz: not as .*: 'annotations/test\.txt'\)"):
        photo_sets.read(data)
    lists = {f"annotations/{name}.txt": b"Abyssinian_100 1 1" for name in ("trainval", "test")}
    write_tar(data / "annotations.tar.gz", lists, "w:gz")
    with pytest.raises(AutoFormerError, match=r"annotations\.tar\.gz: not as published \(not enough values"):
        photo_sets.read(data)

    write_tar(data / "annotations.tar.gz", lists | {"../../outside": b"x"}, "w:gz")
    with pytest.raises(AutoFormerError, match=r"annotations\.tar\.gz: not as published \(.*outside the destination"):
        photo_sets.read(data)

    data = delivered("stanford-cars", tmp_path / "cars")
    (data / "cars_test_annos_withlabels.mat").write_bytes(mat(annotations=np.array([1, 2])))
    with pytest.raises(AutoFormerError, match=r"cars_test_annos_withlabels\.mat: not as published"):
        photo_sets.read(data)
    (data / "car_devkit.tgz").write_bytes(b"")
    with pytest.raises(AutoFormerError, match=r"car_devkit\.tgz: not as published"):
        photo_sets.read(data)


def test_a_listed_photograph_that_is_not_there_is_named(tmp_path: Path) -> None:
    data = delivered("oxford-iiit-pets", tmp_path / "pets")
    whole = (data / "images.tar").read_bytes()
    (data / "images.tar").write_bytes(whole[:1500])
    with pytest.raises(AutoFormerError, match=r"images\.tar: not readable as a plain tar"):
        photo_sets.read(data)
    write_tar(data / "images.tar", {"images/Abyssinian_2.jpg": b"x"})
    with pytest.raises(AutoFormerError, match=r"holds no Abyssinian_100\.jpg"):
        photo_sets.read(data)
    data = delivered("stanford-cars", tmp_path / "cars")
    kind = [("fname", object), ("class", int)]
    annotations = np.array([("00001.jpg", 1), ("00002.jpg", 3)], dtype=kind)
    (data / "cars_test_annos_withlabels.mat").write_bytes(mat(annotations=annotations))
    with pytest.raises(AutoFormerError, match=r"the label of 00002\.jpg lies outside the 2 classes"):
        photo_sets.read(data)
    (data / "cars_test.tar").unlink()
    with pytest.raises(AutoFormerError, match=r"cars_test\.tar: no such archive"):
        photo_sets.read(data)


def test_folders_and_shards_are_named_and_stay_where_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree, shards = tmp_path / "tree", tmp_path / "shards"
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            write_images(tree / split / label, 1, seed=len(split) + len(label))
    write_tar(shards / "train-0.tar", {"a.jpg": b"x", "a.cls": b"0"})
    for folder, reader in ((tree, class_folders), (shards, webdataset)):
        data = tmp_path / "data" / folder.name
        assert main(["--dataset", "pets", "--archives", str(folder), "--data", str(data)]) == 0
        assert [file.name for file in data.iterdir()] == ["source.yaml"]
        assert reader.is_mine(data)
    capsys.readouterr()
    assert main(["--dataset", "flower-102", "--archives", str(tmp_path), "--data", str(tmp_path / "d")]) == 2
    error = capsys.readouterr().err
    assert "neither train/ and val/ with class folders nor WebDataset shards" in error
    assert "did you mean 'flowers-102'?" in error and not (tmp_path / "d").exists()
