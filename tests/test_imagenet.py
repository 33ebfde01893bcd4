"""ImageNet's archives, small ones in the real layout: what is found in them, held against `tarfile` and Pillow."""

import io
import os
import tarfile
from hashlib import md5, sha256
from pathlib import Path

import numpy as np
import pytest
from imagenet_archives import CLASSES, ORDER, TRUTH, encoded, tar_of, train_files, val_files, write_archives
from imagenet_archives import write_source as write_source_file
from PIL import Image

from autoformer.errors import AutoFormerError
from autoformer.files import hash_file
from autoformer.hash_cache import HashCache
from autoformer.images.archives import EncodedImages, EncodedSplit
from autoformer.images.pixels import model_pixels
from autoformer.images.source import SourceArchive, read_source
from autoformer.images.split_images import load_images, read_rows
from benchmarks.index import devkit
from commands import deliver
from commands.plan import read_sample
from components.prepare_data import imagenet
from components.prepare_data.delivered import IMAGENET_STATISTICS, Delivered
from components.prepare_data.imagenet import DEVKIT, PUBLISHED, TRAIN, VAL, Published
from components.prepare_data.readers import read_delivered
from components.prepare_data.step import SPLITS, prepare, write_prepared
from runtime.common.config import load_config
from runtime.common.sections import PrepareData

SECTION = PrepareData(search_images=3)


@pytest.fixture(autouse=True)
def _work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOFORMER_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("AUTOFORMER_TRACKING", "off")


def folders(tmp: Path, published: Published) -> Path:
    """The data folder of the archives in `tmp/archives`."""
    write_source_file(tmp / "data", tmp / "archives", published)
    return tmp / "data"


def read(tmp: Path) -> Delivered:
    published = write_archives(tmp / "archives")
    return imagenet.read(folders(tmp, published), published)


def by_tarfile(folder: Path) -> list[tuple[str, int, int, str, str]]:
    """(archive, offset, size, checksum, name) of every image, found by another program, with seeking."""
    found = []
    with tarfile.open(folder / TRAIN) as outer:
        for one in outer:
            inside = outer.extractfile(one)
            assert inside is not None
            with tarfile.open(fileobj=io.BytesIO(inside.read())) as inner:
                for image in inner:
                    content = inner.extractfile(image)
                    assert content is not None
                    checksum = sha256(content.read()).hexdigest()
                    found.append((TRAIN, one.offset_data + image.offset_data, image.size, checksum, image.name))
    with tarfile.open(folder / VAL) as tar:
        for image in tar:
            content = tar.extractfile(image)
            assert content is not None
            found.append((VAL, image.offset_data, image.size, sha256(content.read()).hexdigest(), image.name))
    return found


def test_the_index_is_what_tarfile_finds(tmp_path: Path) -> None:
    delivered = read(tmp_path)
    rows, expected = delivered.rows, by_tarfile(tmp_path / "archives")
    assert len(expected) == 21 and delivered.splits.tolist() == ["train"] * 15 + ["val"] * 6
    columns = (rows.archives, rows.offsets, rows.sizes, rows.checksums.astype(str))
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == [row[:4] for row in expected]
    number_of = {number: wnid for wnid, (number, _) in CLASSES.items()}
    wnids = [name[:9] for *_, name in expected[:15]] + [number_of[number] for number in TRUTH]
    assert [ORDER[label] for label in rows.labels] == wnids
    assert delivered.classes == ("n01440764 tench", "n02119789 kit fox", "n03400231 frying pan")
    assert delivered.archives == {name: hash_file(tmp_path / "archives" / name) for name in (TRAIN, VAL, DEVKIT)}
    assert delivered.image_size is None and not delivered.upright


def test_val_alone_needs_no_training_archive(tmp_path: Path) -> None:
    published = write_archives(tmp_path / "archives")
    data = folders(tmp_path, published)
    whole = imagenet.read(data, published)
    (tmp_path / "archives" / TRAIN).unlink()
    assert imagenet.is_mine(data) and imagenet.is_mine(tmp_path / "archives")  # `source.yaml` may be missing
    val = imagenet.read(data, published, ("val", "test"))
    here = whole.splits == "val"
    assert all(np.array_equal(a, b[here]) for a, b in zip(val.rows, whole.rows, strict=True))
    assert val.splits.tolist() == ["val"] * 6 and set(val.archives) == {VAL, DEVKIT}


def test_val_images_in_another_order_keep_their_labels(tmp_path: Path) -> None:
    files = val_files(TRUTH)
    published = write_archives(tmp_path / "archives", val=dict(reversed(files.items())))
    delivered = imagenet.read(folders(tmp_path, published), published)
    label_of = {sha256(content).hexdigest(): number for content, number in zip(files.values(), TRUTH, strict=True)}
    numbers = {label: CLASSES[wnid][0] for label, wnid in enumerate(ORDER)}
    for checksum, label in zip(delivered.rows.checksums[15:].astype(str), delivered.rows.labels[15:], strict=True):
        assert label_of[checksum] == numbers[label]


def test_splits_are_drawn_from_train_and_val_tests(tmp_path: Path) -> None:
    """A train image that is a val image too is trained on by nobody; one that is there twice is not for search."""
    train, val = train_files(), val_files(TRUTH)
    train[ORDER[0]]["n01440764_1.JPEG"] = next(iter(val.values()))
    train[ORDER[1]]["n02119789_1.JPEG"] = train[ORDER[1]]["n02119789_10.JPEG"]
    published = write_archives(tmp_path / "archives", train, val)
    data = folders(tmp_path, published)
    prepared = prepare(data, read_delivered_as(data, published), PrepareData(search_images=6), 0)
    card, splits = prepared.card, prepared.splits
    assert card.counts == {"train": 10, "search": 6, "test": 6, "train_full": 16}
    assert np.bincount(splits["search"].labels).tolist() == [2, 2, 2]
    contents = {name: set(rows.checksums.tolist()) for name, rows in splits.items()}
    assert not contents["train"] & contents["search"] and not contents["train_full"] & contents["test"]
    assert contents["train_full"] == contents["train"] | contents["search"]
    assert splits["train_full"].offsets.tolist() == sorted(splits["train_full"].offsets)  # in the order of the archive
    assert "1 training image left out (also in test), 2 kept out of search" in card.notes[0]
    assert (card.mean, card.std) == IMAGENET_STATISTICS


def read_delivered_as(data: Path, published: Published) -> Delivered:
    assert imagenet.is_mine(data)
    return imagenet.read(data, published)


def test_later_steps_read_the_images_out_of_the_archives(tmp_path: Path) -> None:
    published = write_archives(tmp_path / "archives")
    data = folders(tmp_path, published)
    prepared = prepare(data, imagenet.read(data, published), SECTION, 0)
    paths = {name: tmp_path / "splits" / f"{name}.parquet" for name in SPLITS}
    write_prepared(prepared, tmp_path / "splits" / "card.json", paths)
    sources = {sha256(content).hexdigest(): content for content in val_files(TRUTH).values()}
    images = load_images(paths["test"], data, prepared.card, image_size=16, name="test")
    for pixels, checksum in zip(images.pixels, images.checksums, strict=True):
        assert (pixels == model_pixels(Image.open(io.BytesIO(sources[checksum])), 3, 16)).all()
    rows = read_rows(paths["train_full"], data, prepared.card, "train_full")
    read_back = EncodedImages(data, rows, 3, prepared.card.upright)
    assert [sha256(read_back.read(index)).hexdigest().encode() for index in range(15)] == rows.checksums.tolist()
    with pytest.raises(AutoFormerError, match="but the card's train split has"):
        read_rows(paths["train_full"], data, prepared.card, "train")


def odd_pictures() -> dict[str, bytes]:
    """A CMYK JPEG, a PNG with the ending of another, a grey JPEG, and one whose camera was held upright."""
    pixels = np.random.default_rng(5).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    picture, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = 6
    return {
        "n01440764_1.JPEG": encoded(picture.convert("CMYK"), "JPEG", quality=95),
        "n01440764_2.JPEG": encoded(picture, "PNG"),
        "n01440764_3.JPEG": encoded(picture.convert("L"), "JPEG"),
        "n01440764_4.JPEG": encoded(picture, "JPEG", exif=exif),
    }


def test_odd_pictures_decode_and_a_cameras_note_is_left_alone(tmp_path: Path) -> None:
    odd = odd_pictures()
    published = write_archives(tmp_path / "archives", train_files() | {ORDER[0]: odd})
    data = folders(tmp_path, published)
    delivered = imagenet.read(data, published)
    here = np.flatnonzero((delivered.rows.labels == 0) & (delivered.splits == "train"))
    encoded_images = EncodedImages(data, delivered.rows.take(here), 3, delivered.upright)
    assert [encoded_images.image(index).mode for index in range(4)] == ["RGB"] * 4
    assert [encoded_images.image(index).size for index in range(4)] == [(60, 40)] * 4  # the last one lies
    png = Image.open(io.BytesIO(odd["n01440764_2.JPEG"]))
    assert (np.asarray(encoded_images.image(1)) == np.asarray(png)).all()
    lying = Image.open(io.BytesIO(odd["n01440764_4.JPEG"]))
    assert (np.asarray(encoded_images.image(3)) == np.asarray(lying)).all()
    assert EncodedImages(data, delivered.rows.take(here), 3, upright=True).image(3).size == (40, 60)
    cmyk = Image.open(io.BytesIO(odd["n01440764_1.JPEG"])).convert("RGB")
    assert (np.asarray(encoded_images.image(0)) == np.asarray(cmyk)).all()


def settle(path: Path) -> None:
    """As if it had been written a minute ago."""
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns - 60 * 10**9))


def spoil(path: Path) -> None:
    """Change a byte of a picture; neither size, time nor inode tell."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[1100] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_an_archive_is_read_once_and_again_when_it_has_changed(tmp_path: Path) -> None:
    published = write_archives(tmp_path / "archives")
    data, train = folders(tmp_path, published), tmp_path / "archives" / TRAIN
    first = imagenet.read(data, published)
    spoil(train)  # which nobody sees who does not read
    second = imagenet.read(data, published)
    assert all((one == other).all() for one, other in zip(first.rows, second.rows, strict=True))
    train.touch()
    with pytest.raises(AutoFormerError, match=f"{TRAIN}: md5 is .* not {published.archives[TRAIN].md5} as published"):
        imagenet.read(data, published)


def reframed(published: Published, folder: Path, name: str, content: bytes, known: bool = True) -> Published:
    """Another archive in the place of one; `known`: with the md5 that it has."""
    (folder / name).write_bytes(content)
    archive = published.archives[name]
    if known:
        archive = SourceArchive(md5=md5(content).hexdigest(), bytes=len(content))
    return published._replace(archives={**published.archives, name: archive})


def flipped(content: bytes) -> bytes:
    return content[:1100] + bytes([content[1100] ^ 1]) + content[1101:]


def inner(folder: Path) -> dict[str, bytes]:
    """The members of the train archive."""
    with tarfile.open(folder / TRAIN) as tar:
        return {one.name: tar.extractfile(one).read() for one in tar}  # type: ignore[union-attr]


def without_sizes(published: Published) -> Published:
    archives = {name: SourceArchive(md5=archive.md5) for name, archive in published.archives.items()}
    return published._replace(archives=archives)


BAD = {
    "missing": (lambda p, f: (f / VAL).unlink() or p, [VAL, "no such archive", "ARCHIVES=…"]),
    "size": (lambda p, f: reframed(p, f, VAL, (f / VAL).read_bytes()[:-512], False), [VAL, "bytes, not", "published"]),
    "md5": (lambda p, f: reframed(p, f, VAL, flipped((f / VAL).read_bytes()), False), [VAL, "md5 is", "as published"]),
    "devkit's md5": (lambda p, f: reframed(p, f, DEVKIT, devkit([1] * 6, CLASSES), False), [DEVKIT]),
    "truncated": (
        lambda p, f: without_sizes(reframed(p, f, TRAIN, (f / TRAIN).read_bytes()[:9000])),
        [TRAIN, "ends within", "copy the archive again"],
    ),
    "truncated inside": (
        lambda p, f: reframed(p, f, TRAIN, tar_of({n: c[:3000] for n, c in inner(f).items()})),
        [TRAIN, "ends within", "copy the archive again"],
    ),
    "no tar": (lambda p, f: reframed(p, f, VAL, b"<html>" * 5000), [VAL, "no tar, or a damaged one, at byte 0"]),
    "fewer train images": (
        lambda p, f: p._replace(train_images=16), [TRAIN, "15 images, where 16 are published", "again"],
    ),
    "more val images": (lambda p, f: p._replace(val_images=5), [VAL, "6 images, where 5 are published"]),
    "a class too few": (
        lambda p, f: reframed(p, f, TRAIN, tar_of(dict(list(inner(f).items())[:2]))), [TRAIN, "2 classes, where 3"],
    ),
    "an unknown class": (
        lambda p, f: reframed(p, f, TRAIN, tar_of({"n00000001.tar": next(iter(inner(f).values()))})),
        [TRAIN, "'n00000001.tar' is no class"],
    ),
    "val names": (
        lambda p, f: reframed(p, f, VAL, tar_of({f"val_{n + 2:08d}.JPEG": b"x" * (n + 1) for n in range(6)})),
        [VAL, "not numbered from 1 to 6"],
    ),
    "val names without numbers": (
        lambda p, f: reframed(p, f, VAL, tar_of({f"{n}_a.JPEG": b"x" * (n + 1) for n in range(6)})),
        [VAL, "a name without a number"],
    ),
    "devkit of other things": (
        lambda p, f: reframed(p, f, DEVKIT, tar_of({"data/meta.mat": b"?"}, "w:gz")), [DEVKIT, "not the devkit"],
    ),
    "devkit that is no tar": (lambda p, f: reframed(p, f, DEVKIT, b"?" * 99), [DEVKIT, "not the devkit"]),
    "devkit with another class": (
        lambda p, f: reframed(p, f, DEVKIT, devkit(TRUTH, dict(list(CLASSES.items())[:2]))),
        [DEVKIT, "2 classes, not 3"],
    ),
    "labels too few": (
        lambda p, f: reframed(p, f, DEVKIT, devkit([1, 2], CLASSES)), [DEVKIT, "labels of 2 val images, not 6"],
    ),
    "labels of no class": (
        lambda p, f: reframed(p, f, DEVKIT, devkit([1, 2, 3, 1, 2, 99], CLASSES)),
        [DEVKIT, "no class has the number 99"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_other_archives_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    spoiled, parts = BAD[case]
    published = spoiled(write_archives(tmp_path / "archives"), tmp_path / "archives")
    data = folders(tmp_path, published)
    with pytest.raises(AutoFormerError) as error:
        imagenet.read(data, published)
    assert all(part in str(error.value) for part in parts) and "\n" not in str(error.value)
    kept = list((tmp_path / "work").rglob("index-*")) if case in ("md5", "size", "truncated") else []
    assert [file.name for file in kept if TRAIN in file.name or file.name.startswith(".")] == []


def test_source_yaml_with_another_md5_than_the_published_one(tmp_path: Path) -> None:
    published = write_archives(tmp_path / "archives")
    data = folders(tmp_path, published)
    with pytest.raises(AutoFormerError, match=r"names another ILSVRC2012_img_train\.tar than the official one"):
        read_delivered(data, "imagenet-1k")


def sparse_archives(tmp: Path) -> Path:
    """Archives of the published sizes, which hold a few images and then nothing, and take no room."""
    write_archives(tmp / "archives")
    for name, archive in PUBLISHED.archives.items():
        if archive.bytes:
            os.truncate(tmp / "archives" / name, archive.bytes)
    return tmp / "archives"


def test_make_data_says_where_the_archives_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archives, data = sparse_archives(tmp_path), tmp_path / "data"
    given = ["--dataset", "imagenet-1k", "--data", str(data), "--archives"]
    assert deliver.main([*given, str(archives)]) == 0
    source = read_source(data)
    assert source.location == archives and source.archives == PUBLISHED.archives
    assert [path.name for path in data.iterdir()] == ["source.yaml"] and imagenet.is_mine(data)
    for folder, part in ((tmp_path / "gone", "gone: no such folder"), (data, f"{TRAIN}: no such archive")):
        capsys.readouterr()
        assert deliver.main([*given, str(folder)]) == 2
        told = capsys.readouterr()
        assert part in told.err and told.err.count("\n") == 1
    os.truncate(archives / VAL, 10**6)
    assert deliver.main([*given, str(archives)]) == 2
    assert "1,000,000 bytes, not 6,744,924,160 as published" in capsys.readouterr().err


@pytest.mark.parametrize("missing", [TRAIN, VAL])
def test_the_archive_of_one_split_is_enough_and_the_other_is_named(
    missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archives, data = sparse_archives(tmp_path), tmp_path / "data"
    (archives / missing).unlink()
    given = ["--dataset", "imagenet-1k", "--data", str(data), "--archives", str(archives)]
    assert deliver.main(given) == 0 and f"{missing} is not there" in capsys.readouterr().out
    assert read_source(data).archives == PUBLISHED.archives and imagenet.is_mine(data)
    (archives / DEVKIT).unlink()
    assert deliver.main(given) == 2 and f"{DEVKIT}: no such archive" in capsys.readouterr().err


def test_a_plan_looks_at_a_few_images_only(tmp_path: Path) -> None:
    deliver.link_imagenet(sparse_archives(tmp_path), tmp_path / "data")
    settings = ["dataset=imagenet-1k", "space.num_classes=1000", "prepare_data.search_images=10000"]
    card, images, counts = read_sample(load_config("photos", settings), tmp_path / "data")
    assert counts == {"train": 1_271_167, "search": 10_000, "test": 50_000, "train_full": 1_281_167}
    assert isinstance(images, EncodedSplit) and len(card.classes) == 1000
    first = next(iter(train_files()[next(iter(CLASSES))].values()))
    assert images.pictures.read(0) == first and len(images.labels) == 15


def test_checksums_of_archives_are_remembered_until_they_change(tmp_path: Path) -> None:
    file, place = tmp_path / "archive.tar", tmp_path / "known" / "checksums.jsonl"
    file.write_bytes(bytes(5000))
    known = HashCache(place, min_bytes=1000)
    assert known(file) == hash_file(file) and not place.exists()  # it was changed just now, and may be again
    settle(file)
    true = known(file)
    assert true == hash_file(file) and place.read_text().count("\n") == 1
    spoil(file)
    assert HashCache(place, min_bytes=1000)(file) == true != hash_file(file)  # not read again
    assert HashCache(place)(file) == hash_file(file)  # a small one always is
    with place.open("a") as lines:
        lines.write('{"file": ["x", 1\nnull\n{"sha256": "a"}\n')
    settle(file)
    assert known(file) == hash_file(file) != true  # another time: another file
    assert known(file) == hash_file(file) and place.read_text().count("\n") == 5
