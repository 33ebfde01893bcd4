"""Copies are one image: they go to one split, whatever they are called and whichever classes have them."""

import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from user_images import class_folders, noise, write_images

from autoformer.errors import AutoFormerError
from autoformer.images.splits import Shares, split_by_share
from components.prepare_data import packed
from components.prepare_data.pack import pack
from components.prepare_data.pack_card import read_pack
from components.prepare_data.splitting import split
from runtime.common.sections import PrepareData
from runtime.common.tables import read_table

SHARES = Shares(15, 15)
NONE = np.array([], dtype=np.int64)


def shared(contents: list[list[int]], seed: int = 0) -> tuple[dict[str, list[tuple[int, int]]], tuple[str, ...]]:
    """split -> (label, content) of its rows, for the numbers of the contents of each class."""
    labels = np.array([label for label, mine in enumerate(contents) for _ in mine], np.int32)
    checksums = np.array([str(content) for mine in contents for content in mine])
    names = "abcdefgh"[: len(contents)]
    rows = np.arange(len(labels))
    parts, notes = split_by_share(labels, checksums, names, rows, NONE, NONE, SHARES, random.Random(seed))
    return {name: [(int(labels[r]), int(checksums[r])) for r in part] for name, part in parts.items()}, notes


TWICE = [[*range(12), *range(12)], [*range(100, 112), *range(100, 112)]]
CASES = {
    "every image twice": TWICE,
    "one class twice": [[*range(12)], [*range(100, 112)], [*range(200, 212)] * 2],
    "a class of three, each three times": [[0, 1, 2] * 3, [*range(100, 120)]],
    "all of a class in a larger one": [[*range(24)], [*range(12)], [*range(100, 110)]],
    "all of a class in one before it": [[*range(100, 110)], [*range(12)], [*range(24)]],
    "two classes of the same images": [[*range(12)], [*range(12)]],
}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("contents", CASES.values(), ids=CASES.keys())
def test_classes_of_copies_are_split_and_no_image_is_in_two_splits(contents: list[list[int]], seed: int) -> None:
    parts, _ = shared(contents, seed)
    images = {name: {content for _, content in part} for name, part in parts.items()}
    assert not images["train"] & images["test"] and not images["train"] & images["search"]
    assert not images["search"] & images["test"]
    assert set().union(*images.values()) == {content for mine in contents for content in mine}  # none is lost
    for name in ("search", "test"):
        assert max(Counter(parts[name]).values()) == 1  # each image counts once
    for name, part in parts.items():
        assert {label for label, _ in part} == set(range(len(contents))), name  # every class is in every split


def test_shares_are_those_of_the_different_images() -> None:
    """15 % of 12 images is 2, however often each is there; the copies of those are reported."""
    parts, notes = shared(TWICE)
    assert {name: len(part) for name, part in parts.items()} == {"train": 2 * 2 * 8, "search": 4, "test": 4}
    assert notes == ("8 copies of images of search and test were left out: each is there once",)


@pytest.mark.parametrize("contents", [[[0, 1] * 9, [*range(100, 120)]], [[7] * 40, [*range(100, 120)]]])
def test_a_class_of_too_few_different_images_is_refused(contents: list[list[int]]) -> None:
    with pytest.raises(
        AutoFormerError, match=r"class 'a' has (2 different images|1 different image) .* it takes at least 3"
    ):
        shared(contents)


def test_without_copies_the_split_is_a_draw_of_each_class_in_turn() -> None:
    parts, notes = shared([[*range(20)], [*range(100, 140)]])
    rng, wanted = random.Random(0), []
    for rows, count in (([*range(20)], 3), ([*range(100, 140)], 6)):
        rng.shuffle(rows)
        wanted += rows[: -count - 1 : -1]
    assert sorted(content for _, content in parts["test"]) == sorted(wanted) and notes == ()


def test_copies_and_contradictions_of_a_users_folder_are_named(tmp_path: Path) -> None:
    """The same bytes, and the same pixels in another file format; the same picture in two classes."""
    source = class_folders(tmp_path / "src", 12, 12)
    for number in range(12):
        (source / "a" / f"copy of {number:03d}.png").write_bytes((source / "a" / f"{number:03d}.png").read_bytes())
        noise(1000 + number).save(source / "b" / f"{number:03d}.tif")
    (source / "b" / "wrong.png").write_bytes((source / "a" / "000.png").read_bytes())
    folder = pack(source, tmp_path, 10, 3, 0.0, lambda what, done, total: None)
    notes = read_pack(folder).notes
    assert (
        "25 images repeat the pixels of another, such as a/000.png = a/copy of 000.png: copies stay in one" in notes[0]
    )
    assert "1 image with equal pixels in two classes or more, such as a/000.png = b/wrong.png: one of" in notes[1]
    delivered = packed.read(folder)
    splits = split(delivered, PrepareData(), seed=0)
    source_of = {row["checksum"]: Path(row["source"]).stem[-3:] for row in read_table(folder / "index.csv")}
    assert len(source_of) == 24
    images = {name: {c.decode() for c in splits.rows[name].checksums} for name in ("train", "search", "test")}
    assert not images["train"] & images["test"] and not images["train"] & images["search"]
    assert notes[0] in delivered.notes  # so on the card of the data set


def test_small_and_dominant_classes_are_named(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src", 3, 20, 21, 70)
    folder = pack(source, tmp_path, 10, 3, 0.0, lambda what, done, total: None)
    few, dominant = read_pack(folder).notes
    assert few.startswith("1 of 4 classes has fewer than 20 images: a 3; their accuracy")
    assert dominant.startswith("class 'd' is 61 % of all images")
    write_images(source / "a", 30, seed=40)
    for number in range(50):
        (source / "d" / f"{number:03d}.png").unlink()
    assert read_pack(pack(source, tmp_path, 10, 3, 0.0, lambda what, done, total: None)).notes == ()


@pytest.mark.parametrize("split_name", ["val", "test"])
def test_classes_that_a_split_of_the_source_lacks_are_named(split_name: str, tmp_path: Path) -> None:
    class_folders(tmp_path / "src" / "train", 20, 20, 20)
    class_folders(tmp_path / "src" / split_name, 20, 0, 20)
    shutil.rmtree(tmp_path / "src" / split_name / "b", ignore_errors=True)
    notes = read_pack(pack(tmp_path / "src", tmp_path, 10, 3, 0.0, lambda what, done, total: None)).notes
    assert [note for note in notes if f"1 of 3 classes has no image in {split_name}: b; what" in note]


def scenes(count: int, seed: int = 5) -> list[Image.Image]:
    """Pictures with large and small shapes, as photographs have."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize(
            (240, 200), Image.Resampling.BICUBIC
        )
        fine = Image.fromarray(rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)).resize((240, 200))
        found.append(Image.blend(coarse, fine, 0.2))
    return found


WAYS = {
    "JPEG": lambda image, file: image.save(file.with_suffix(".jpg"), quality=80),
    "WebP": lambda image, file: image.save(file.with_suffix(".webp"), quality=80),
    "half the size": lambda image, file: image.resize((120, 100)).save(file),
    "turned by EXIF": lambda image, file: image.rotate(90, expand=True).save(file.with_suffix(".jpg"), exif=turned()),
}


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize("way", WAYS)
def test_images_in_another_format_size_or_quality_are_reported_as_copies_that_look_alike(
    way: str, tmp_path: Path
) -> None:
    root = tmp_path / "src"
    for number, image in enumerate(scenes(16)):
        folder = root / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{number:02d}.png")
        if number < 4:
            WAYS[way](image, folder / f"{number:02d}-again.png")
    (near,) = [note for note in pack_notes(root, tmp_path) if "like another" in note]
    name = {"half the size": "00-again.png", "WebP": "00-again.webp"}.get(way, "00-again.jpg")
    assert near.startswith("4 images look like another in another format, size or quality, such as a/")
    assert f"a/{name}" in near and "a/00.png" in near and "keep one of each" in near and "another class" not in near


def test_a_copy_that_looks_alike_in_another_class_is_counted(tmp_path: Path) -> None:
    root = tmp_path / "src"
    for number, image in enumerate(scenes(12)):
        (root / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        image.save(root / "ab"[number % 2] / f"{number}.png")
    scenes(1)[0].save(root / "b" / "other.jpg", quality=90)
    (near,) = [note for note in pack_notes(root, tmp_path) if "like another" in note]
    assert near.startswith("1 image looks like another") and ", 1 of them in another class: " in near


@pytest.mark.parametrize("kind", ["drawings", "one scene", "photographs"])
def test_different_images_of_one_kind_are_no_copies(kind: str, tmp_path: Path) -> None:
    """Thin drawings, many pictures of nearly one look, and photographs."""
    root = tmp_path / "src"
    rng, still = np.random.default_rng(0), scenes(1)[0]
    for number, scene in enumerate(scenes(40, seed=9)):
        folder = root / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image = scene
        if kind == "drawings":
            image = Image.new("RGB", (240, 200), "white")
            at = rng.integers(20, 180, 4).tolist()
            ImageDraw.Draw(image).line(at, fill="black", width=6)
        elif kind == "one scene":  # of a fixed camera: each with another object in it
            image = still.copy()
            x, y = rng.integers(0, 150, 2).tolist()
            ImageDraw.Draw(image).ellipse((x, y, x + 70, y + 50), fill=tuple(rng.integers(0, 256, 3).tolist()))
        image.save(folder / f"{number}.png")
    assert [note for note in pack_notes(root, tmp_path) if "like another" in note] == []


def pack_notes(root: Path, place: Path) -> tuple[str, ...]:
    return read_pack(pack(root, place / "packs", 73, 3, 0, lambda what, done, total: None)).notes
