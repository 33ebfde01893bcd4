"""Pictures from outside: named formats, no other program, regular files, bounded memory, metadata decides nothing."""

import base64
import io
import os
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image, PngImagePlugin
from user_images import class_folders, noise

from autoformer.bounds import BOUNDS
from autoformer.errors import AutoFormerError
from autoformer.images import opening
from autoformer.images.pixels import image_size, open_image, to_channels
from commands import predict
from commands.own_images import propose_space
from components.prepare_data import class_folders as trees
from components.prepare_data.pack import pack
from components.prepare_data.pack_card import read_pack, unreadable_of
from components.prepare_data.tars import HashedStream
from runtime.tracking import served_model

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
# Formats that Pillow identifies and the list does not name.
UNWANTED = {
    "EPS": EPS,
    "EPS behind a DOS header": struct.pack("<IIIIIIIH", 0xC6D3D0C5, 32, len(EPS), 0, 0, 0, 0, 0xFFFF) + b"\0\0" + EPS,
    "WMF": b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<4hH", 0, 0, 100, 100, 72) + b"\0" * 6 + b"\x01\0\t\0" + b"\0" * 40,
    "FITS": b"".join(f"{card:80s}".encode() for card in (
        "SIMPLE  =                    T", "BITPIX  =                    8", "NAXIS   =                    2",
        "NAXIS1  =                    4", "NAXIS2  =                    4", "END")).ljust(2880) + b"\0" * 16,
    "XPM": b'/* XPM */\nstatic char *x[] = {\n"1 1 1 1",\n"a c #000000",\n"a"\n};\n',
    "ICO": b"",
    "PCX": b"",
    "SGI": b"",
    "TGA": b"",
    "DDS": b"",
}  # fmt: skip
UNWANTED |= {kind: b"" for kind in ("IM", "MSP", "SPIDER")}


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def unwanted(kind: str) -> bytes:
    mode = {"MSP": "1", "SPIDER": "F"}.get(kind, "RGB")
    return UNWANTED[kind] or saved(Image.new(mode, (16, 16)), kind)


@pytest.mark.parametrize("kind", UNWANTED)
def test_a_format_that_is_not_on_the_list_is_refused_whatever_its_name(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    file.write_bytes(unwanted(kind))
    for source in (file, file.read_bytes()):
        for read in (open_image, image_size):
            with pytest.raises(AutoFormerError, match="not an image that can be read") as error:
                read(source)
            assert "\n" not in str(error.value)


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that appears if a Ghostscript is started."""
    trace, folder = tmp_path / "started", tmp_path / "bin"
    folder.mkdir()
    for name in ("gs", "gswin32c", "djpeg"):
        (folder / name).write_text(f"#!/bin/sh\ntouch {trace}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return trace


def test_the_served_model_refuses_them_as_errors_of_the_request() -> None:
    with pytest.raises(MlflowException, match="not an image that can be read") as error:
        served_model._Request().image({"image": base64.b64encode(EPS).decode()})
    assert error.value.error_code == "INVALID_PARAMETER_VALUE"
    side = int((BOUNDS.served_image_bytes / opening.FORMATS["PNG"]) ** 0.5) + 10  # a command reads it
    content = big_png(side, side, 8, 0)
    assert image_size(content) == (side, side)
    with pytest.raises(MlflowException, match="PNG file may have 19 million pixels"):
        served_model._Request().image({"image": base64.b64encode(content).decode()})
    with pytest.raises(MlflowException, match="top: expected at least 1 class, found 0"):
        served_model.ServedModel().predict(None, pd.DataFrame(), {"top": 0})


def test_no_program_is_started_for_a_picture(planted: Path, tmp_path: Path) -> None:
    source = class_folders(tmp_path / "photos", 3, 3)
    (source / "a" / "x.png").write_bytes(EPS)
    subprocess.run(["gs"], check=True)
    assert planted.exists()  # the trap works
    planted.unlink()
    propose_space(source)
    folder = pack(source, tmp_path / "packs", 10, 3, 50.0, lambda *_: None)
    assert [row["source"] for row in unreadable_of(folder)] == ["a/x.png"]
    with pytest.raises(AutoFormerError):
        open_image(EPS, 10)
    assert not planted.exists()


@pytest.mark.parametrize("kind", opening.FORMATS)
def test_every_format_on_the_list_is_read(kind: str) -> None:
    image = noise(1, 40, 30)
    assert to_channels(open_image(saved(image, kind)), 3).size == image_size(saved(image, kind)) == (40, 30)


@pytest.fixture(params=["pipe", "device"])
def endless(request: pytest.FixtureRequest) -> Callable[[Path], Path]:
    """Makes a file whose reading never ends."""

    def make(path: Path) -> Path:
        os.mkfifo(path) if request.param == "pipe" else path.symlink_to("/dev/zero")
        return path

    return make


def test_pipes_and_devices_behind_the_name_of_a_picture_or_an_archive_are_refused(
    endless: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUTOFORMER_WORK", str(tmp_path / "work"))
    file = endless(tmp_path / "x.png")
    with pytest.raises(AutoFormerError, match=r"x\.png: a pipe or a device"):
        open_image(file)
    assert predict.main([str(file)]) == 2
    assert "x.png: a pipe or a device" in capsys.readouterr().err
    with pytest.raises(AutoFormerError, match="a pipe or a device"), HashedStream(file):
        pass
    source = class_folders(tmp_path / "photos", 3, 3)
    endless(source / "a" / "x.png")
    folder = pack(source, tmp_path / "packs", 10, 3, 50.0, lambda *_: None)
    assert [row["reason"] for row in unreadable_of(folder)] == ["a pipe or a device, not a file; remove it"]
    assert read_pack(folder).unreadable == 1
    for split in ("train", "val"):
        class_folders(tmp_path / "tree" / split, 2, 2)
    endless(tmp_path / "tree" / "train" / "a" / "x.png")
    with pytest.raises(AutoFormerError, match=r"x\.png: a pipe or a device"):
        trees.read(tmp_path / "tree")


def big_png(width: int, height: int, depth: int, colour: int) -> bytes:
    """A black PNG of a few hundred kilobytes at most, whatever its size."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    packer = zlib.compressobj(9)
    row = b"\0" * (1 + width * channels * depth // 8)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)),
        (b"IDAT", pixels),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def chunk(kind: bytes, data: bytes, checksum: int | None = None) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(
        ">I", zlib.crc32(kind + data) if checksum is None else checksum
    )  # fmt: skip


@pytest.mark.parametrize(
    ("content", "limit"),
    [
        (big_png(13_300, 13_300, 16, 0), "PNG file may have 52 million pixels"),
        (saved(Image.new("L", (9_000, 9_000)), "JPEG", progressive=True), "JPEG file may have 39 million pixels"),
        (saved(Image.new("L", (6_500, 6_500)), "WEBP", method=0), "WEBP file may have 28 million pixels"),
    ],
    ids=["PNG", "progressive JPEG", "WEBP"],
)
def test_a_picture_too_large_for_memory_is_refused_by_its_header(content: bytes, limit: str) -> None:
    assert len(content) < 1_000_000
    for read in (open_image, image_size):
        with pytest.raises(AutoFormerError, match=limit):
            read(content)


def test_a_progressive_jpeg_of_endless_scans_is_refused() -> None:
    content = saved(Image.new("L", (2_000, 2_000)), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    repeated = content[:last] + content[last:-2] * 300 + content[-2:]
    with pytest.raises(AutoFormerError, match="scans takes too long to decode"):
        open_image(repeated)
    assert open_image(content).size == (2_000, 2_000)


def in_three_scans(side: int) -> bytes:
    """A baseline JPEG with a scan for each colour, which libjpeg decodes as it does a progressive one: as a whole."""
    colour, grey = (saved(Image.new(mode, (16, 16)), "JPEG", subsampling=0) for mode in ("RGB", "L"))
    size, first = colour.index(b"\xff\xc0") + 5, colour.index(b"\xff\xda")
    head = colour[:size] + struct.pack(">HH", side, side) + colour[size + 4 : first]
    data = grey[grey.index(b"\xff\xda") + 10 : -2]
    scans = (b"\xff\xda\0\x08\1" + bytes([number]) + b"\0\0\x3f\0" + data for number in (1, 2, 3))
    return head + b"".join(scans) + b"\xff\xd9"


def test_a_baseline_jpeg_of_several_scans_has_the_limits_of_a_progressive_one() -> None:
    with pytest.raises(AutoFormerError, match="JPEG file may have 39 million pixels"):
        open_image(in_three_scans(7_000))
    content = in_three_scans(2_000)
    with pytest.raises(AutoFormerError, match="scans takes too long to decode"):
        open_image(content[:-2] + content[content.index(b"\xff\xda") : -2] * 300 + content[-2:])
    assert open_image(in_three_scans(16)).size == (16, 16)
    assert open_image(saved(Image.new("RGB", (7_000, 7_000)), "JPEG"), 8).size  # of one scan


def tiff(*tags: tuple[int, int, int, int], data: bytes = b"") -> bytes:
    """`tags`: number, type, count, value or offset."""
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags))
    return head + b"".join(struct.pack("<HHLL", *tag) for tag in sorted(tags)) + bytes(4) + data


LONG, RAW = 4, 7
PLAIN = ((256, LONG, 1, 100), (257, LONG, 1, 100), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1))
SHARED = tiff(*((number, RAW, 200_000, 8) for number in range(1, 8_000)), data=bytes(200_000))
STRIPS = tiff(*PLAIN, (273, LONG, 200_000, 200), (278, LONG, 1, 1), data=bytes(900_000))
TILES = tiff(*PLAIN, (322, LONG, 1, 1), (323, LONG, 1, 1), (324, 1, 200_000, 200), data=bytes(900_000))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (SHARED, "its tags share their bytes"),
        (STRIPS, "its tag 273 has 200,000 numbers"),
        (TILES, "its tag 324 has 200,000 numbers"),
    ],
    ids=["tags that share their bytes", "strips", "tiles"],
)
def test_tags_of_a_tiff_that_expand_are_refused(content: bytes, what: str) -> None:
    with pytest.raises(AutoFormerError, match=f"damaged image .{what}") as error:
        open_image(content)
    assert str(error.value).startswith("image of ")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_exif_whose_tags_share_their_bytes_is_left_out(kind: str) -> None:
    if kind == "JPEG":  # in many segments, which Pillow joins
        parts = [SHARED[at : at + 65_000] for at in range(0, len(SHARED), 65_000)]
        heads = (b"\xff\xe1" + struct.pack(">H", len(part) + 8) + b"Exif\0\0" for part in parts)
        jpeg = saved(noise(4, 30, 20), "JPEG")
        segments = [head + part for head, part in zip(heads, parts, strict=True)]
        content = jpeg[:2] + b"".join(segments) + jpeg[2:]
    else:
        content = saved(noise(4, 30, 20), kind, exif=SHARED)
    tracemalloc.start()
    try:
        assert open_image(content).size == (30, 20)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000  # the tags would be 1.6 GB
    finally:
        tracemalloc.stop()


def test_an_image_file_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(saved(noise(1, 30, 20), "PNG"))
    os.truncate(tmp_path / "x.png", 2**33)
    with pytest.raises(AutoFormerError, match=r"x\.png: an image file above 256 MB; make it smaller"):
        open_image(tmp_path / "x.png")


def test_each_reader_may_set_a_lower_limit() -> None:
    content = saved(Image.new("L", (100, 100)), "PNG")
    assert open_image(content, most_bytes=90_000).size == (100, 100)
    with pytest.raises(AutoFormerError, match="100 x 100 pixels is too large"):
        open_image(content, most_bytes=89_999)


def test_tiles_larger_than_their_image_count() -> None:
    tags = {256: 64, 257: 64, 258: 8, 259: 1, 262: 1, 277: 1, 322: 16_000, 323: 16_000, 324: 8, 325: 9}
    entries = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags.items())
    content = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + b"\0" * 4
    with pytest.raises(AutoFormerError, match="too large"):
        open_image(content)


@pytest.mark.parametrize(("depth", "colour"), [(8, 6), (16, 0), (8, 2)])
def test_the_largest_legal_picture_takes_half_a_gigabyte(depth: int, colour: int, tmp_path: Path) -> None:
    side = int((opening.MOST_BYTES / opening.FORMATS["PNG"]) ** 0.5)
    (tmp_path / "big.png").write_bytes(big_png(side, side, depth, colour))
    code = (
        "import re, sys; from pathlib import Path; from autoformer.images.pixels import model_pixels, open_image\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) / 1024\n"
        "before = peak(); pixels = model_pixels(open_image(Path(sys.argv[1])), 3, 64)\n"
        "assert len(set(pixels.flat)) == 1; print(peak() - before)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "big.png")], capture_output=True, text=True, check=True
    )
    assert 100 < float(run.stdout) < 500  # MiB


def test_transparent_pictures_are_composed_strip_by_strip_to_the_same_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (57, 41, 4), dtype=np.uint8)
    image = Image.fromarray(pixels)
    whole = Image.alpha_composite(Image.new("RGBA", image.size, (128, 128, 128)), image)
    for strip in (1, 200, 2**20):
        monkeypatch.setattr("autoformer.images.pixels._STRIP_PIXELS", strip)
        for channels, mode in ((1, "L"), (3, "RGB")):
            found = to_channels(image, channels)
            assert np.array_equal(np.asarray(found), np.asarray(whole.convert(mode))) and not found.info


LARGE = zlib.compress(bytes(range(256)) * 8192)  # 2 MiB
METADATA = {
    "profile above 1 MiB": chunk(b"iCCP", b"x\0\0" + LARGE),
    "text above 1 MiB": chunk(b"zTXt", b"Comment\0\0" + LARGE),
    "international text above 1 MiB": chunk(b"iTXt", b"Comment\0\1\0\0\0" + LARGE),
    "wrong checksum of a text": chunk(b"tEXt", b"Comment\0hello", 0),
    "wrong checksum of a resolution": chunk(b"pHYs", b"\0" * 9, 0),
    "resolution cut short": chunk(b"pHYs", b"\0"),
    "gamma cut short": chunk(b"gAMA", b"\0"),
    "profile of an unknown method": chunk(b"iCCP", b"x\0\7" + LARGE),
}


@pytest.mark.parametrize("place", ["before the pixels", "after the pixels"])
@pytest.mark.parametrize("kind", METADATA)
def test_metadata_of_a_png_does_not_decide_whether_sound_pixels_are_read(kind: str, place: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    png, at = saved(noise(3, 30, 20), "PNG", exif=exif), 33
    if place == "after the pixels":
        at = len(png) - 12
    file = tmp_path / "x.png"
    file.write_bytes(png[:at] + METADATA[kind] + png[at:])
    for source in (file, file.read_bytes()):
        assert np.array_equal(np.asarray(open_image(source)), np.asarray(open_image(png)))
        assert image_size(source) == (30, 20)
    assert open_image(file).size == (20, 30)  # turned by its EXIF orientation


def test_damaged_pixels_stay_damage_beside_odd_metadata() -> None:
    png = saved(noise(3, 30, 20), "PNG")
    with pytest.raises(AutoFormerError, match="damaged image"):
        open_image(png[:33] + METADATA["text above 1 MiB"] + png[33:-200])


ORIENTED = struct.pack("<HHLHH", 0x0112, 3, 1, 6, 0)
EXIF = {  # the entries of the first directory behind its count -> whether the orientation can be read
    "resolution as bytes": (2, ORIENTED + struct.pack("<HHL4s", 0x011B, 7, 4, b"72\0\0"), True),
    "maker note outside": (2, ORIENTED + struct.pack("<HHLL", 0x927C, 7, 60_000, 4000), True),
    "directory outside": (2, ORIENTED + struct.pack("<HHLL", 0x8769, 4, 1, 99_999), True),
    "unknown field type": (2, ORIENTED + struct.pack("<HHL4s", 0x0131, 99, 4, b"abcd"), True),
    "orientation as text": (1, struct.pack("<HHL4s", 0x0112, 2, 4, b"6\0\0\0"), False),
    "orientation without value": (1, struct.pack("<HHLL", 0x0112, 3, 0, 6), False),
    "orientation 9": (1, struct.pack("<HHLHH", 0x0112, 3, 1, 9, 0), False),
    "cut short": (9, ORIENTED[:5], False),
    "nothing": (0, b"", False),
}


@pytest.mark.parametrize("kind", EXIF)
def test_of_exif_only_the_orientation_counts(kind: str) -> None:
    count, entries, turned = EXIF[kind]
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", count) + entries
    content = with_segment(0xE1, exif + b"\0" * 4 * turned)
    assert open_image(content).size == ((20, 30) if turned else (30, 20))


def with_segment(marker: int, data: bytes) -> bytes:
    jpeg = saved(noise(4, 30, 20), "JPEG")
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data + jpeg[2:]


def test_damage_in_any_application_segment_of_a_jpeg_leaves_its_pixels() -> None:
    rng = np.random.default_rng(0)
    heads = (
        b"MPF\0II*\0\x08\0\0\0",
        b"MPF\0",
        b"Photoshop 3.0\x008BIM",
        b"ICC_PROFILE\0",
        b"Exif\0\0II*\0\x08\0\0\0",
        b"",
    )
    for marker in (*range(0xE1, 0xEE), 0xEF, 0xFE):
        for head in heads:
            tail = rng.integers(0, int(rng.choice([3, 256])), int(rng.integers(0, 60)), dtype=np.uint8).tobytes()
            assert open_image(with_segment(marker, head + tail), upright=False).size == (30, 20), (marker, head, tail)


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_an_orientation_in_xmp_alone_turns_nothing(kind: str) -> None:
    """Tools that turn the pixels and drop EXIF leave it there."""
    if kind == "JPEG":
        content = with_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP)
    elif kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", XMP.decode())
        content = saved(noise(4, 30, 20), "PNG", pnginfo=info)
    else:
        content = saved(noise(4, 30, 20), kind, **({"xmp": XMP} if kind == "WEBP" else {"tiffinfo": {700: XMP}}))
    assert open_image(content).size == (30, 20)


@pytest.mark.parametrize("key", [b"", b"\1", b"\0" * 5, b"\0" * 7])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_transparent_colour_of_a_png_that_can_be_none_is_ignored(mode: str, key: bytes) -> None:
    png = saved(noise(5, 30, 20).convert(mode), "PNG")
    chunk = struct.pack(">I", len(key)) + b"tRNS" + key + struct.pack(">I", zlib.crc32(b"tRNS" + key))
    image = open_image(png[:33] + chunk + png[33:])
    assert np.array_equal(np.asarray(to_channels(image, 3)), np.asarray(open_image(png).convert("RGB")))


def test_a_jpeg_whose_segment_of_adobe_is_cut_short_is_read() -> None:
    assert open_image(with_segment(0xEE, b"Adobe")).size == (30, 20)


@pytest.mark.parametrize("settings", [{}, {"progressive": True}, {"subsampling": 2, "quality": 20}])
def test_a_jpeg_that_lacks_the_marker_of_its_end_is_read_and_one_that_lacks_pixels_is_not(
    settings: dict[str, Any],
) -> None:
    jpeg = saved(noise(6, 64, 48), "JPEG", **settings)
    assert np.array_equal(np.asarray(open_image(jpeg[:-2])), np.asarray(open_image(jpeg)))
    for cut in (4, 8, 40, 200):
        with pytest.raises(AutoFormerError, match="a damaged image"):
            open_image(jpeg[:-cut])
