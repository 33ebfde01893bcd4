"""Packs: what a user's images become, the same bytes each time, whole however often the packing was interrupted."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import unicodedata
import zlib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_steps import contents
from s3_data import prepared, upload
from s3_server import S3Server
from user_images import class_folders, noise, write_images

from autoformer.errors import AutoFormerError
from autoformer.images.split_files import hash_split
from components.prepare_data import pack as packing
from components.prepare_data.pack import pack, slug, title_of
from components.prepare_data.pack_card import read_pack, unreadable_of
from components.prepare_data.png import _stored, encode_png
from components.prepare_data.readers import read_delivered
from components.prepare_data.splitting import split
from components.prepare_data.tar_writer import Tar
from runtime.common.config import ROOT
from runtime.common.sections import PrepareData
from runtime.common.tables import read_table


def quiet(what: str, done: int, total: int) -> None:
    pass


def packed(source: Path, place: Path, side: int = 10, channels: int = 3, percent: float = 0.0) -> Path:
    return pack(source, place, side, channels, percent, quiet)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "SHARD_IMAGES", 5)


def test_a_pack_holds_every_image_upright_at_one_size(tmp_path: Path) -> None:
    source = tmp_path / "My photos"
    for number, (width, height) in enumerate([(12, 10), (30, 20), (20, 60), (5, 5)]):
        (source / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        noise(number, width, height).save(source / "ab"[number % 2] / f"{number}.png")
    (source / "a" / "notes.txt").write_text("no image")
    folder = packed(source, tmp_path / "packs")
    card, rows = read_pack(folder), read_table(folder / "index.csv")
    assert folder.name == f"my-photos-{card.hash[:8]}" and card.name == "my-photos"
    assert (card.classes, card.counts, card.splits) == (("a", "b"), {"a": 2, "b": 2}, {"": 4})
    assert (card.shorter_side, card.channels, card.unreadable, card.ignored) == (10, 3, 0, 1)
    assert card.median_size == (20, 20)  # widths 5 12 20 30, heights 5 10 20 60: the upper of the middle two
    assert [row["source"] for row in rows] == ["a/0.png", "a/2.png", "b/1.png", "b/3.png"]
    sizes = [Image.open(io.BytesIO(member_of(folder, row))).size for row in rows]
    assert sizes == [(12, 10), (10, 30), (15, 10), (10, 10)]
    whole = np.array(Image.open(io.BytesIO(member_of(folder, rows[0]))))
    assert (whole == np.array(noise(0))).all()  # nothing to resize: the pixels as they were


def member_of(folder: Path, row: dict[str, str]) -> bytes:
    """The bytes that a row of the index points to."""
    start = int(row["offset"])
    return (folder / row["archive"]).read_bytes()[start : start + int(row["size"])]


def test_the_tars_are_those_that_webdataset_streams(tmp_path: Path) -> None:
    """A sample is consecutive members of one stem: NAME.png, NAME.cls. Offsets lead to the same bytes."""
    folder = packed(class_folders(tmp_path / "src", 4, 3), tmp_path)
    card, rows = read_pack(folder), read_table(folder / "index.csv")
    assert sorted(card.archives) == ["images-00000.tar", "images-00001.tar"]
    samples = []
    for name, checksum in card.archives.items():
        assert sha256((folder / name).read_bytes()).hexdigest() == checksum
        with tarfile.open(folder / name) as tar:
            members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
        samples += [(name, *pair) for pair in zip(members[::2], members[1::2], strict=True)]
    assert len(samples) == 7
    for number, (row, (archive, image, label)) in enumerate(zip(rows, samples, strict=True)):
        assert (archive, image[0], label[0]) == (row["archive"], f"{number:08d}.png", f"{number:08d}.cls")
        assert image[1] == member_of(folder, row) and sha256(image[1]).hexdigest() == row["checksum"]
        assert card.classes[int(label[1])] == row["label"] == row["source"][0]


def test_equal_images_give_equal_packs_wherever_they_lie(tmp_path: Path) -> None:
    first = packed(class_folders(tmp_path / "1" / "src", 4, 3), tmp_path / "packs")
    again = packed(class_folders(tmp_path / "2" / "src", 4, 3), tmp_path / "others")
    assert first.name == again.name and contents(first) == contents(again)
    before = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    assert packed(tmp_path / "1" / "src", tmp_path / "packs") == first  # and is packed once
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == before


def other_image(source: Path) -> None:
    noise(500).save(source / "a" / "000.png")


def other_label(source: Path) -> None:
    (source / "a" / "000.png").rename(source / "b" / "zzz.png")


def other_split(source: Path) -> None:
    (source / "labels.csv").write_text(
        (source / "labels.csv").read_text().replace("b/000.png,b,val", "b/000.png,b,test")
    )


def one_more(source: Path) -> None:
    write_images(source / "c", 1, seed=7)


@pytest.mark.parametrize("change", [other_image, other_label, one_more])
def test_changed_images_are_packed_anew(change: Callable[[Path], None], tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src", 4, 3)
    first = packed(source, tmp_path)
    kept = contents(first)
    change(source)
    assert packed(source, tmp_path) != first and contents(first) == kept


def test_another_split_is_packed_anew(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src", 2, 2)
    lines = ["path,label,split", "a/000.png,a,train", "b/001.png,b,train", "a/001.png,a,val", "b/000.png,b,val"]
    (source / "labels.csv").write_text("\n".join(lines))
    first = packed(source / "labels.csv", tmp_path)
    assert read_pack(first).splits == {"train": 2, "val": 2} and read_pack(first).name.endswith("-labels")
    other_split(source)
    again = packed(source / "labels.csv", tmp_path)
    assert again != first and read_pack(again).splits == {"test": 1, "train": 2, "val": 1}


@pytest.mark.parametrize("how", [{"side": 8}, {"channels": 1}])
def test_another_size_or_colour_is_packed_anew(how: dict[str, int], tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src", 2, 2)
    assert packed(source, tmp_path, **how) != packed(source, tmp_path)


CHILD = """
import os, signal, sys
from pathlib import Path
from components.prepare_data import pack as packing
packing.SHARD_IMAGES = 5
def watch(what, done, total):
    if what == "packing" and done == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
packing.pack(Path(sys.argv[1]), Path(sys.argv[2]), 10, 3, 0.0, watch)
"""


@pytest.mark.parametrize("killed_at", [2, 7, 13])
def test_a_killed_packing_goes_on_to_the_same_bytes(killed_at: int, tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src", 8, 6)
    place = tmp_path / "packs"
    command = [sys.executable, "-c", CHILD, str(source), str(place), str(killed_at)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    (work,) = (path for path in place.iterdir() if path.is_dir())
    assert work.name.startswith(".src-") and not (work / "dataset.json").exists()  # hidden, and no pack
    kept = {tar.name: tar.stat().st_ino for tar in work.glob("*.tar")}
    assert len(kept) == killed_at // 5
    assert any(work.glob(".*.tmp"))  # of the tar at which it was killed
    folder = packed(source, place)
    assert contents(folder) == contents(packed(source, tmp_path / "undisturbed"))
    assert list(place.iterdir()) == [folder]
    assert {name: (folder / name).stat().st_ino for name in kept} == kept  # not packed again


def test_one_packing_at_a_time(tmp_path: Path) -> None:
    """The second one is refused while the first is at work, which ends as if nothing had been."""
    source, seen = class_folders(tmp_path / "src", 4, 4), []

    def second(what: str, done: int, total: int) -> None:
        if what == "packing" and done == 3 and not seen:
            with pytest.raises(AutoFormerError, match="another run is at work in this packing") as error:
                packed(source, tmp_path / "packs")
            seen.append(error)

    folder = pack(source, tmp_path / "packs", 10, 3, 0.0, second)
    assert seen and contents(folder) == contents(packed(source, tmp_path / "undisturbed"))


def spoiled(root: Path) -> Path:
    """20 images, of which two cannot be read."""
    source = class_folders(root / "src", 12, 6)
    (source / "a" / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    Image.new("L", (60_000, 1)).save(source / "b" / "strip.png")
    return source


def test_unreadable_images_are_named_and_counted(tmp_path: Path) -> None:
    folder = packed(spoiled(tmp_path), tmp_path, percent=10)  # 2 of 20: just the share
    card, rows = read_pack(folder), read_table(folder / "index.csv")
    assert card.unreadable == 2 and card.counts == {"a": 12, "b": 6} and len(rows) == 18
    refused = unreadable_of(folder)
    assert [row["source"] for row in refused] == ["a/broken.jpg", "b/strip.png"]
    assert "not an image" in refused[0]["reason"] and "60000 x 1 pixels is too narrow" in refused[1]["reason"]
    assert str(tmp_path) not in refused[0]["reason"]  # the same bytes wherever the images lie


def test_more_than_the_share_stops_and_the_report_names_them(tmp_path: Path) -> None:
    source, place = spoiled(tmp_path), tmp_path / "packs"
    with pytest.raises(AutoFormerError) as error:
        packed(source, place, percent=9.9)
    for part in ("2 of 20 images cannot be read (10.0 %)", "max_unreadable_percent = 9.9", "unreadable.csv"):
        assert part in str(error.value)
    (report,) = place.glob("*.csv")
    assert str(report) in str(error.value) and len(read_table(report)) == 2
    assert not any(file.name == "dataset.json" for file in place.rglob("*"))
    # what was packed is not packed again once the share is raised, and the report is gone with it
    assert packed(source, place, percent=10).is_dir() and not list(place.glob("*.csv"))


def test_a_class_without_a_readable_image_stops(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src", 12)
    (source / "b").mkdir()
    (source / "b" / "broken.png").write_bytes(b"")
    with pytest.raises(AutoFormerError, match=r"the class 'b' has no readable image; .*unreadable\.csv names"):
        packed(source, tmp_path, percent=50)


def test_a_file_that_is_gone_is_unreadable(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src", 3, 3)
    (source / "labels.csv").write_text("path,label\na/000.png,a\na/gone.png,a\nb/000.png,b\nb/..,b\n")
    folder = packed(source / "labels.csv", tmp_path, percent=50)
    assert {row["source"]: row["reason"] for row in unreadable_of(folder)} == {
        ".": "a folder, not an image; name the image files", "a/gone.png": "no such file",
    }  # fmt: skip


def test_names_of_classes_may_be_anything(tmp_path: Path) -> None:
    names = ("Käse & Brot", "two\nlines", '猫, "quoted"')
    for number, name in enumerate(names):
        write_images(tmp_path / "src" / name, 2, seed=number)
    folder = packed(tmp_path / "src", tmp_path)
    assert read_pack(folder).counts == dict.fromkeys(sorted(names), 2)
    assert sorted({row["label"] for row in read_table(folder / "index.csv")}) == sorted(names)


@pytest.mark.parametrize("there", ["folder", "file", "other pack"])
def test_what_has_the_packs_name_is_not_touched(there: str, tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src", 2, 2)
    folder = packed(source, tmp_path / "packs")
    if there == "other pack":
        other = packed(class_folders(tmp_path / "2" / "src", 3, 2), tmp_path / "packs")
        shutil.rmtree(folder)
        other.rename(folder)
    else:
        shutil.rmtree(folder)
        if there == "folder":
            folder.mkdir()
            (folder / "holiday.jpg").write_bytes(b"precious")
        else:
            folder.write_bytes(b"precious")
    before = contents(tmp_path / "packs")
    with pytest.raises(AutoFormerError, match="holds something else than these images, packed; remove that folder"):
        packed(source, tmp_path / "packs")
    assert contents(tmp_path / "packs") == before


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("My Photos (2024)", "my-photos-2024"),
        ("Größe né", "grosse-ne"),
        ("a" * 40, "a" * 40),
        ("x_y", "x-y"),
    ],
)
def test_a_name_for_folders_and_the_registry(text: str, name: str) -> None:
    assert slug(text) == name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("фото", "照片"),
        ("фото 1", "照片 1"),
        ("а-birds", "б-birds"),
        ("a" * 60, "a" * 61),
        ("..", "猫"),
        ("鸟", "鱼"),
        ("C", "C++"),
        ("C++", "C#"),
        ("\U0001f431 photos", "\U0001f436 photos"),
        ("photos", "photos+"),
        ("a&b", "a b"),
    ],
)
def test_two_names_that_lose_letters_or_signs_stay_different(one: str, other: str) -> None:
    assert slug(one) != slug(other)
    for text in (one, other):
        name = slug(text)
        assert name == slug(name) and len(name) <= 40 and re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
        assert name == slug(unicodedata.normalize("NFD", text))


def test_two_tables_of_one_file_name_in_different_folders_have_different_names(tmp_path: Path) -> None:
    for folder in ("birds", "cars"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "labels.csv").touch()
    assert title_of(tmp_path / "birds" / "labels.csv") == "birds-labels"
    assert title_of(tmp_path / "cars" / "labels.csv") == "cars-labels"
    assert title_of(tmp_path / "birds") == "birds"


def test_threads_do_not_change_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = class_folders(tmp_path / "src", 9, 9)
    made = []
    for cores in (1, 7):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        made.append(contents(packed(source, tmp_path / str(cores))))
    assert made[0] == made[1]


def test_a_large_pack_in_s3_is_read_in_place(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOFORMER_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("AUTOFORMER_TRACKING", "off")
    monkeypatch.setattr("runtime.storage.data.WHOLE_GB", 1e-6)
    folder = packed(class_folders(tmp_path / "src", 8, 8), tmp_path / "packs", side=32)
    uri, setting = upload(s3, folder, f"large-pack/{folder.name}"), "prepare_data.test_percent=20"
    from_s3 = prepared(uri, tmp_path / "from-s3", setting)
    assert from_s3 == prepared(folder, tmp_path / "from-disk", setting)
    assert not list((tmp_path / "work").rglob("images-*.tar"))


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("size", [(1, 1), (7, 1), (1, 7), (31, 20)])
def test_a_packed_png_holds_the_very_pixels(mode: str, size: tuple[int, int]) -> None:
    shape = (*size[::-1], 3) if mode == "RGB" else size[::-1]
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with Image.open(io.BytesIO(encode_png(Image.fromarray(pixels)))) as decoded:
        decoded.verify()
    with Image.open(io.BytesIO(encode_png(Image.fromarray(pixels)))) as decoded:
        assert (decoded.mode, decoded.size) == (mode, size) and np.array_equal(np.asarray(decoded), pixels)


def test_photographs_are_stored_and_drawings_compressed() -> None:
    """Deflate takes ten times as long for a photograph, and gains little."""
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 40, (256, 300, 3), dtype=np.uint8))
    drawing = Image.new("RGB", (300, 256), "white")
    drawing.paste("navy", (40, 30, 200, 150))
    for image, most, least in ((noisy, 1.01, 1.0), (drawing, 0.02, 0.0)):
        size = len(encode_png(image)) / len(image.tobytes())
        assert least <= size <= most


def test_a_tar_is_the_one_that_tarfile_writes(tmp_path: Path) -> None:
    members = [
        ("00000000.png", b"x" * 700),
        ("00000000.cls", b"1"),
        ("00000001.png", b""),
        ("00000002.png", b"y" * 512),
    ]
    with tarfile.open(tmp_path / "theirs.tar", "w", format=tarfile.USTAR_FORMAT) as theirs:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            theirs.addfile(member, io.BytesIO(content))
    with (tmp_path / "ours.tar").open("wb") as file:
        ours = Tar(file)
        offsets = [ours.add(name, content) for name, content in members]
        digest = ours.end()
    written = (tmp_path / "ours.tar").read_bytes()
    assert written == (tmp_path / "theirs.tar").read_bytes() and sha256(written).hexdigest() == digest
    assert [written[at : at + len(content)] for at, (_, content) in zip(offsets, members, strict=True)] == [
        content for _, content in members
    ]


@pytest.mark.parametrize("size", [0, 1, 65_533, 65_534, 65_535, 131_068, 131_069, 131_070, 262_144])
def test_stored_bytes_are_a_zlib_stream_of_them(size: int) -> None:
    """Around the ends of blocks, of which the first holds the filter of the first row, too."""
    content = bytes(range(256)) * (size // 256 + 1)
    stream = b"".join(_stored(b"\x00", memoryview(content)[:size]))
    assert zlib.decompress(stream) == b"\x00" + content[:size]


def test_the_same_images_packed_at_two_sizes_are_known_to_be_the_same_test_images(tmp_path: Path) -> None:
    """What the champion's gate compares by; copies within a class are drawn as one at either size."""
    source = class_folders(tmp_path / "src", 12, 9)
    shutil.copy(source / "a" / "001.png", source / "a" / "copy.png")

    def found(side: int) -> tuple[str | None, str]:
        splits = split(read_delivered(packed(source, tmp_path / f"packs-{side}", side), "mine"), PrepareData(), 0)
        test = splits.rows["test"]
        return splits.originals, hash_split(test.checksums, test.labels)

    (originals, rows), (again, other_rows) = found(8), found(11)
    assert originals == again is not None and rows != other_rows
    noise(77).save(source / "a" / "000.png")
    write_images(source / "b", 9, seed=5)
    assert found(11)[0] != originals
