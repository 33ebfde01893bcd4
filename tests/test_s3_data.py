"""Data in S3, against the same on disk: the same index, splits, card, batches and weights, byte for byte."""

import json
import pickle
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faulty_proxy import Fault, FaultyProxy
from imagenet_archives import write_archives
from run_steps import contents
from s3_data import SPACE, prepare_argv, prepared, shards, source, upload
from s3_server import S3Server
from transfer_archives import cifar, md5s
from user_images import class_folders

from autoformer.errors import AutoFormerError
from autoformer.images.archives import EncodedImages, EncodedSplit
from autoformer.images.card import read_card
from autoformer.images.pixels import model_pixels
from autoformer.images.source import archive_folder, read_source
from autoformer.images.split_images import load_images, read_rows
from autoformer.images.streaming import StreamedPixels
from autoformer.images.training_loader import training_loader
from autoformer.recipe import Augmentation, Recipe
from commands import deliver
from components.prepare_data import imagenet, step
from components.prepare_data.pack import pack
from components.train_supernet.step import main as train_supernet
from pipeline.local import _data_location
from runtime.common.sections import PrepareData
from runtime.storage import connect
from runtime.storage.archives import S3Archives
from runtime.storage.data import find_archives, hash_data, open_data
from runtime.storage.errors import ChangedError
from runtime.storage.objects import delete_folder, list_objects


@pytest.fixture(autouse=True)
def _work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3: S3Server) -> None:
    monkeypatch.setenv("AUTOFORMER_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("AUTOFORMER_TRACKING", "off")
    monkeypatch.setenv("AUTOFORMER_STAGING_GB", "0.1")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Of a folder of the bucket that is this test's own."""
    return str(request.node.name)


# --- prepare_data ---


def images_of_a_user(root: Path) -> Path:
    return pack(class_folders(root / "src", 8, 8), root / "packs", 32, 3, 0.0, lambda *_: None)


WHOLE = {
    "cifar": (lambda root: cifar(root / "cifar-10").parent, ("dataset=cifar-10", "prepare_data.search_percent=20")),
    "pack": (images_of_a_user, ("prepare_data.test_percent=20",)),
    "folders": (
        lambda root: class_folders(root / "mine" / "train", 8, 8) and class_folders(root / "mine" / "val", 4, 4).parent,
        (),
    ),
    "shards": (lambda root: shards(root / "shards"), ()),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_small_data_come_to_the_disk_and_are_read_as_ever(
    kind: str, name: str, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, settings = WHOLE[kind]
    folder = make(tmp_path)
    uri = upload(s3, folder, f"{name}/{folder.name}")
    assert prepared(uri, tmp_path / "from-s3", *settings) == prepared(folder, tmp_path / "from-disk", *settings)
    data = open_data(uri)
    assert data.remote is None and data.folder.name == folder.name
    assert contents(data.folder) == contents(folder)


@pytest.mark.parametrize("dataset", ["fashion-mnist", "mine"])
def test_a_wrong_folder_is_named_by_its_address_and_not_by_its_copy(
    dataset: str, name: str, s3: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("no images")
    place = upload(s3, tmp_path / "other", "other")
    assert step.main(prepare_argv(place, tmp_path / "out", [f"dataset={dataset}"])) == 2
    printed = capsys.readouterr().err
    assert place in printed and str(tmp_path / "work") not in printed


def test_the_marks_of_folders_are_no_files(name: str, s3: S3Server, tmp_path: Path) -> None:
    """Consoles, and tools that copy folders, make an empty object of each folder."""
    folder = class_folders(tmp_path / "mine" / "train", 8, 8).parent
    uri = upload(s3, folder, f"{name}/mine")
    without = hash_data(uri)
    for mark in ("", "train/", *(f"train/{kind.name}/" for kind in (folder / "train").iterdir()), "empty/"):
        connect().put_object(Bucket=s3.bucket, Key=f"{name}/mine/{mark}", Body=b"")
    assert hash_data(uri) == without
    assert contents(open_data(uri).folder) == contents(folder)
    delete_folder(uri)
    assert list_objects(uri) == []


def test_shards_are_indexed_where_they_lie(name: str, s3: S3Server, tmp_path: Path) -> None:
    folder = shards(tmp_path / "mine")
    data = source(tmp_path / "linked" / "mine", upload(s3, folder, name))
    from_disk = prepared(folder, tmp_path / "from-disk")
    assert prepared(data, tmp_path / "from-s3") == from_disk
    connect().put_object(Bucket=s3.bucket, Key=f"{name}/source.yaml", Body=b"location: .\n")
    assert prepared(s3.uri(name), tmp_path / "all-in-s3").keys() == from_disk.keys()
    opened = open_data(s3.uri(name))
    assert str(opened.remote) == s3.uri(name) and [file.name for file in opened.folder.iterdir()] == ["source.yaml"]


def test_what_is_large_stays_where_it_is(
    name: str, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tars of a prefix that holds nothing else, and what lies beside them."""
    monkeypatch.setattr("runtime.storage.data.WHOLE_GB", 1e-6)
    folder = shards(tmp_path / "mine")
    (folder / "classes.txt").write_text("cat\ndog\n")
    uri = upload(s3, folder, f"{name}/mine")
    assert prepared(uri, tmp_path / "from-s3") == prepared(folder, tmp_path / "from-disk")
    found = open_data(uri)
    assert str(found.remote) == uri
    assert sorted(file.name for file in found.folder.iterdir()) == ["classes.txt", "source.yaml"]


@pytest.mark.parametrize("staging", ["0", "1"])
def test_imagenet_is_indexed_in_one_pass(
    staging: str, name: str, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOFORMER_STAGING_GB", staging)
    published = write_archives(tmp_path / "archives")
    monkeypatch.setattr(imagenet, "PUBLISHED", published)
    data = source(tmp_path / "linked", upload(s3, tmp_path / "archives", name))
    section = PrepareData(search_images=3)
    made = {}
    for place in (tmp_path / "archives", data):
        assert imagenet.is_mine(place)
        delivered = imagenet.read(place, published)
        out = tmp_path / f"of-{place.name}"
        step.write_prepared(
            step.prepare(place, delivered, section, 0), out / "card.json", {n: out / n for n in step.SPLITS}
        )
        made[place.name] = contents(out)
    assert made["archives"] == made["linked"]
    again = imagenet.read(data, published)  # out of the index that was kept
    assert np.array_equal(again.rows.checksums, delivered.rows.checksums)
    cache = S3Archives(s3.uri(name)).cache
    assert (cache is None) if staging == "0" else (cache is not None and not cache.missing())


def test_hashes_of_data_tell_them_apart(name: str, s3: S3Server, tmp_path: Path) -> None:
    uri = upload(s3, shards(tmp_path / "mine", 3), name)
    places = (uri, source(tmp_path / "linked", uri))
    first = list(map(hash_data, places))
    assert first == list(map(hash_data, places)) and hash_data(tmp_path / "mine") not in first
    connect().put_object(Bucket=s3.bucket, Key=f"{name}/train-0000.tar", Body=b"other")
    assert not set(first) & set(map(hash_data, places))


# --- training ---


class Linked:
    """Shards, once on disk and once in S3, and the splits that prepare_data made of them."""

    def __init__(self, s3: S3Server, name: str, tmp: Path) -> None:
        self.disk, self.out = shards(tmp / "mine"), tmp / "splits"
        self.data = source(tmp / "linked" / "mine", upload(s3, self.disk, name))
        prepared(self.disk, self.out)
        self.card = read_card(self.out / "card.json")

    def images(self, data: Path, split: str = "train") -> EncodedSplit:
        opened = open_data(data)
        rows = read_rows(self.out / f"{split}.parquet", opened.folder, self.card, split, reader=opened.remote)
        pictures = EncodedImages(opened.folder, rows, 3, self.card.upright, reader=opened.remote)
        return EncodedSplit(pictures, rows.labels.astype(np.int64))


@pytest.fixture
def linked(name: str, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Linked:
    monkeypatch.setenv("AUTOFORMER_STAGING_GB", "0")
    return Linked(s3, name, tmp_path)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_from_s3_are_those_from_the_disk(linked: Linked, workers: int) -> None:
    augmentation = Augmentation(crop_scale=(0.3, 1.0), flip=True, fast=True, repeats=3)
    recipe = Recipe(epochs=1, batch_size=6, learning_rate=1, augmentation=augmentation)

    def batches(data: Path, workers: int) -> Any:
        return training_loader(linked.images(data), recipe, 0, 32, (0.5,) * 3, 1, workers)

    here, there = batches(linked.disk, 0), batches(linked.data, workers)
    for number in (0, 1, 2, 5):
        assert torch.equal(here.batch(number).pixels, there.batch(number).pixels)
    there.close()


def test_images_in_memory_are_those_from_the_disk(linked: Linked) -> None:
    opened, split = open_data(linked.data), linked.out / "test.parquet"
    here = load_images(split, linked.disk, linked.card, image_size=32)
    there = load_images(split, opened.folder, linked.card, image_size=32, reader=opened.remote)
    assert np.array_equal(here.pixels, there.pixels) and here.checksums == there.checksums


def test_images_of_an_evaluation_are_those_from_the_disk(linked: Linked) -> None:
    def batches(data: Path) -> list[torch.Tensor]:
        pixels_of = partial(model_pixels, channels=3, image_size=32)
        return list(StreamedPixels(linked.images(data, "test").pictures, pixels_of, 3))

    assert all(map(torch.equal, batches(linked.data), batches(linked.disk)))


def test_the_reader_goes_along_with_pickles_and_forks(linked: Linked) -> None:
    pictures = linked.images(linked.data).pictures
    wanted = [pictures.read(index) for index in range(len(pictures))]
    pictures.prefetch(range(len(pictures)))  # on the way while the process forks
    assert read_all(pickle.loads(pickle.dumps(pictures))) == wanted
    with get_context("fork").Pool(1) as pool:
        assert pool.apply(read_all, (pictures,)) == wanted


def read_all(pictures: EncodedImages) -> list[bytes]:
    pictures.prefetch(range(0, len(pictures), 2))
    return [pictures.read(index) for index in range(len(pictures))]


def test_a_supernet_trains_to_the_same_bytes(linked: Linked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step itself, with its staging in a process of its own beside it."""
    monkeypatch.setenv("AUTOFORMER_STAGING_GB", "0.1")
    section = {
        "epochs": 1, "batch_size": 6, "learning_rate": 0.001, "score_images": 4,
        "augmentation": {"crop_scale": [0.3, 1.0], "flip": True, "fast": True},
    }  # fmt: skip
    config = {
        "name": "two",
        "seed": 0,
        "threads": 1,
        "device": "cpu",
        "dataset": "test",
        "space": SPACE,
        "train_supernet": section,
    }
    made = {}
    for place in (linked.disk, linked.data):
        out = tmp_path / f"of-{place.parent.name}"
        given = ["--config", json.dumps(config), "--data", str(place), "--card", str(linked.out / "card.json")]
        given += ["--train-split", str(linked.out / "train.parquet")]
        given += ["--search-split", str(linked.out / "search.parquet")]
        assert train_supernet([*given, "--out", str(out), "--record", str(tmp_path / "record.json")]) == 0
        made[place] = contents(out)
    assert made[linked.disk] == made[linked.data] and len(made[linked.disk]) >= 4


# --- what goes wrong is one line ---


def refused(linked: Linked, index: int | None = None) -> str:
    with pytest.raises(AutoFormerError) as caught:
        pictures = linked.images(linked.data).pictures
        if index is not None:
            pictures.read(index)
    return str(caught.value)


def key(linked: Linked, s3: S3Server, archive: str) -> dict[str, str]:
    uri = open_data(linked.data).remote.uri / archive
    return {"Bucket": s3.bucket, "Key": uri.key}


def test_an_archive_that_is_not_there(linked: Linked, s3: S3Server) -> None:
    connect().delete_object(**key(linked, s3, "train-0001.tar"))
    assert refused(linked) == f"{open_data(linked.data).remote}/train-0001.tar: no such archive; upload it, or " \
        "correct the location"  # fmt: skip


def test_an_archive_that_was_cut_off(linked: Linked, s3: S3Server) -> None:
    content = (linked.disk / "train-0000.tar").read_bytes()
    connect().put_object(**key(linked, s3, "train-0000.tar"), Body=content[:2000])
    assert refused(linked).endswith("an image lies outside train-0000.tar (2,000 bytes); run prepare_data again")


def test_another_archive_of_that_name(linked: Linked, s3: S3Server) -> None:
    content = bytes(reversed((linked.disk / "train-0000.tar").read_bytes()))
    connect().put_object(**key(linked, s3, "train-0000.tar"), Body=content)
    assert refused(linked, 0) == (
        "train-0000.tar: another image than the one that was indexed; put that back, or run prepare_data again"
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_an_archive_that_changes_while_it_is_read(linked: Linked, s3: S3Server, workers: int) -> None:
    recipe = Recipe(epochs=1, batch_size=6, learning_rate=1, augmentation=Augmentation(crop_scale=(0.3, 1.0)))
    batches = training_loader(linked.images(linked.data), recipe, 0, 32, (0.5,) * 3, 1, workers)
    for archive in ("train-0000.tar", "train-0001.tar"):
        connect().put_object(**key(linked, s3, archive), Body=(linked.disk / archive).read_bytes() + b"more")
    with pytest.raises(ChangedError) as caught:
        batches.batch(0)
    assert str(caught.value).endswith(
        ".tar: another object than when it was listed; run the same command again, or run prepare_data again"
    )
    assert len(str(caught.value)) < 250


PASSING = [
    Fault("answer", "GET", "SlowDown", times=1),
    Fault("answer", ".tar", "InternalError", times=1),
    *(Fault(kind, ".tar", times=2) for kind in ("reset", "reset in the body", "cut off", "corrupted")),
]


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: f"{fault.kind} {fault.code}".strip())
def test_what_passes_costs_no_image(linked: Linked, faulty: FaultyProxy, fault: Fault) -> None:
    """Bytes that come damaged are told by the row's checksum, and asked for again."""
    wanted = read_all(linked.images(linked.disk).pictures)
    faulty.faults = [replace(fault)]
    assert read_all(linked.images(linked.data).pictures) == wanted
    assert faulty.faults[0].times == 0


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("ExpiredToken", "the AWS credentials have expired"),
        ("AccessDenied", "access denied; these credentials lack s3:GetObject there"),
        ("SlowDown", "S3 has no capacity or is at fault (SlowDown), after all tries"),
    ],
)
def test_what_lasts_is_one_line(linked: Linked, faulty: FaultyProxy, code: str, told: str) -> None:
    faulty.faults = [Fault("answer", ".tar", code)]
    assert told in refused(linked, 0)


def test_an_empty_prefix_and_a_bucket_that_is_not_there(
    s3: S3Server, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for uri, told in (
        (s3.uri(name), f"{s3.uri(name)}: holds nothing; upload the data there, or name another place"),
        ("s3://no-such-bucket/data", "s3://no-such-bucket: there is no such bucket; make it, or correct its name"),
        ("s3://", "s3://: expected s3://bucket/folder"),
    ):
        assert step.main(prepare_argv(uri, tmp_path / "out")) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_more_than_the_disk_may_take(name: str, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOFORMER_STAGING_GB", "0.0001")
    uri = upload(s3, cifar(tmp_path / "cifar-10", images=40).parent, name)
    with pytest.raises(
        AutoFormerError, match=r"GB have to come to the local disk, where AUTOFORMER_STAGING_GB = 0.0001"
    ):
        open_data(uri)


def test_a_relative_folder_stays_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    assert archive_folder(Path("data")) == find_archives(Path("data")) == Path("data")
    source(Path("linked"), "elsewhere")
    assert find_archives(Path("linked")) == Path("linked/elsewhere")


def test_a_run_hands_the_place_on_as_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert _data_location("s3://bucket/images", "mine") == "s3://bucket/images"
    assert _data_location(Path(), "mine") == str(tmp_path)
    with pytest.raises(AutoFormerError, match="gone: no such folder; `make data"):
        _data_location("gone", "mine")


def test_the_library_reads_no_s3_by_itself(linked: Linked) -> None:
    with pytest.raises(AutoFormerError, match=r"source.yaml: the archives lie at s3://.*, which is no folder"):
        archive_folder(linked.data)
    assert S3Archives(str(open_data(linked.data).remote))("train-0000.tar", 10**9, 5) == b""


# --- `make data` ---


def test_official_archives_in_s3_are_named_or_brought(
    name: str, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = write_archives(tmp_path / "archives")
    large, small = upload(s3, tmp_path / "archives", f"{name}/large"), f"{name}/small"
    deliver.link_imagenet(large, tmp_path / "linked", published)
    stated = read_source(tmp_path / "linked")
    assert (stated.location, stated.archives) == (large, published.archives)
    wds = upload(s3, shards(tmp_path / "mine"), f"{name}/shards")
    assert deliver.fill_data_folder("mine", wds, tmp_path / "shards") == f"source.yaml, which names {wds}"
    archive = cifar(tmp_path / "downloaded")
    monkeypatch.setitem(deliver.PUBLISHED, "cifar-10", md5s(archive.parent))
    assert (
        deliver.fill_data_folder("cifar-10", upload(s3, archive.parent, small), tmp_path / "cifar-10") == archive.name
    )
    assert contents(tmp_path / "cifar-10") == contents(archive.parent)
