"""Pixels that a file states in an unusual way, made by hand: colour keys, inverted and signed values, thumbnails."""

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from test_pixel_rule import packed_of, pixels_of

from autoformer.errors import AutoFormerError
from autoformer.images.pixel_rule import PixelRule
from autoformer.images.pixels import DEFAULT, brightest, is_transparent, open_image, to_channels
from components.prepare_data.pack_card import read_pack, unreadable_of
from components.prepare_data.sources import discover

GREY, RGB, GREY_ALPHA, RGBA = 0, 2, 4, 6  # a PNG's colour types
WHITE_IS_ZERO, BLACK_IS_ZERO = 0, 1  # a TIFF's photometric interpretations


def png(values: Any, depth: int, colour: int, key: Sequence[int] = ()) -> bytes:
    """One row of pixels, each a value or several; `key`: the colour that is transparent."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    array = np.asarray(values)
    bits = "".join(f"{int(value):0{depth}b}" for value in array.reshape(-1))
    row = bytes(int(bits[at : at + 8].ljust(8, "0"), 2) for at in range(0, len(bits), 8))
    header = struct.pack(">IIBBBBB", len(array), 1, depth, colour, 0, 0, 0)
    transparent = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)) if key else b""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (chunk(b"IHDR", header), transparent, chunk(b"IDAT", zlib.compress(b"\0" + row)), chunk(b"IEND", b""))
    )


def tiff(array: np.ndarray, photometric: int = BLACK_IS_ZERO, sample_format: int = 1) -> bytes:
    """One row of grey pixels."""
    bits, data = array.dtype.itemsize * 8, array.tobytes()
    tags = {256: len(array), 257: 1, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: 1, 279: len(data),
            339: sample_format}  # fmt: skip
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + data


def grey(source: bytes, **rule: Any) -> list[int]:
    return np.asarray(to_channels(open_image(source), 1, PixelRule(background=7, **rule)))[0].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("depth", "values", "key", "expected"),
    [
        (1, [0, 1], 0, [7, 255]),
        (2, [0, 1, 2, 3], 1, [0, 7, 170, 255]),
        (2, [0, 1, 2, 3], 3, [0, 85, 170, 7]),
        (4, [0, 5, 10, 15], 10, [0, 85, 7, 255]),
        (8, [0, 85, 170, 255], 85, [0, 7, 170, 255]),
        (16, [0, 0x1234, 0x1235, 0xFFFF], 0x1234, [0, 7, 0x12, 255]),
        (16, [0, 0x1234, 0x1235, 0xFFFF], 0xFFFF, [0, 0x12, 0x12, 7]),
    ],
)
def test_the_transparent_grey_of_a_png_is_transparent_at_every_depth(
    depth: int, values: list[int], key: int, expected: list[int]
) -> None:
    """As optimisers of PNG files write drawings on transparent ground."""
    content = png(values, depth, GREY, [key])
    assert grey(content) == expected and is_transparent(open_image(content))


@pytest.mark.parametrize("key", [0x0403, 0xD203, 0xFFFF])
def test_the_transparent_colour_of_a_png_of_16_bits_is_the_one_with_its_upper_8(key: int) -> None:
    content = png([[value] * 3 for value in (0, 0x0403, 0xD203, 0xFFFF)], 16, RGB, [key] * 3)
    expected = [7 if value == key >> 8 else value for value in (0, 0x04, 0xD2, 0xFF)]
    assert grey(content) == expected


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (png([[0x0ABC, 0xFFFF], [0, 0]], 16, GREY_ALPHA), 0x0A * 257),
        (png([[0x0ABC, 0, 0, 0xFFFF]], 16, RGBA), 0x0A * 257),
        (png([0, 0x0ABC, 0xFFFF], 16, GREY, [0xFFFF]), 0x0ABC),
        (png([0xFFFF], 16, GREY, [0xFFFF]), 0),
    ],
)
def test_what_is_transparent_or_alpha_does_not_make_white_of_12_bits_that_of_16(content: bytes, value: int) -> None:
    assert brightest(open_image(content)) == value


def test_a_tiff_whose_0_is_white_is_inverted_at_every_depth() -> None:
    values = np.array([0, 64, 128, 255])
    assert grey(tiff(values.astype(np.uint8), WHITE_IS_ZERO)) == [255, 191, 127, 0]
    deep = (values * 257).astype(np.uint16)
    assert grey(tiff(deep, WHITE_IS_ZERO)) == [255, 191, 127, 0]
    assert grey(tiff(deep)) == [0, 64, 128, 255]
    assert brightest(open_image(tiff(deep[1:], WHITE_IS_ZERO))) == 65535 - 64 * 257


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32])
def test_signed_pixels_are_refused_and_never_wrapped(kind: type[np.signedinteger[Any]]) -> None:
    with pytest.raises(AutoFormerError, match=r"of unknown range; save it with 8 bits a channel"):
        grey(tiff(np.array([-3, 0, 100], kind), sample_format=2))
    with pytest.raises(AutoFormerError, match=r"save it with 8 bits a channel"):
        grey(tiff(np.array([-3, 0, 100], kind), sample_format=2), white_level=255)


@pytest.mark.parametrize(("compression", "is_read"), [("raw", False), ("packbits", True), ("tiff_lzw", True)])
def test_an_intact_tiff_that_pillow_cannot_read_is_not_called_damaged(compression: str, is_read: bool) -> None:
    out = io.BytesIO()
    Image.new("RGB", (16, 12), (200, 100, 50)).convert("YCbCr").save(out, "TIFF", compression=compression)
    if is_read:
        assert np.abs(np.array(open_image(out.getvalue()).getpixel((5, 5))) - (200, 100, 50)).max() <= 2
        return
    with pytest.raises(AutoFormerError, match=r"a raw YCbCr TIFF file, which is not read; convert it to JPEG or PNG"):
        open_image(out.getvalue())


@pytest.mark.parametrize(("tag", "value"), [(254, 1), (50706, b"\1\4\0\0")])
def test_the_thumbnail_in_a_raw_file_of_a_camera_is_not_taken_for_the_picture(tag: int, value: Any) -> None:
    """NEF, ARW and DNG are TIFF files that begin with it."""
    tags, out = TiffImagePlugin.ImageFileDirectory_v2(), io.BytesIO()
    tags[tag] = value
    Image.new("RGB", (16, 12)).save(out, "TIFF", tiffinfo=tags)
    with pytest.raises(AutoFormerError, match=r"a raw camera file, which is not read; convert it to JPEG or PNG"):
        open_image(out.getvalue())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "an empty file; copy or download it again"),
        (
            b"\r\n<!DOCTYPE html>\n<body><svg/>404",
            "not an image but a web page, perhaps a server's refusal; download it",
        ),
        (b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>', "not an image but XML, perhaps"),
        (b'{"message": "quota exceeded"}', "not an image but JSON, perhaps"),
        (b'\xef\xbb\xbf<?xml version="1.0"?><svg/>', "a SVG file, which is not read"),
        (b"<ns0:svg/>", "a SVG file, which is not read"),
        (b"\x1aE\xdf\xa3\x93B\x82\x88webm", "a video file, which is not read"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "a pointer of Git LFS .*`git lfs pull`",
        ),
        (tiff(np.array([0.5], np.float64), sample_format=3), "a TIFF of an unusual kind of pixels"),
    ],
)
def test_a_file_that_is_there_without_its_image_is_named_by_what_it_is(content: bytes, says: str) -> None:
    with pytest.raises(AutoFormerError, match=says):
        open_image(content)


def test_of_several_frames_or_pages_the_first_is_used_and_the_plan_reports_it(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (20, 20), "blue")
    for number, suffix in enumerate(("tif", "gif", "png", "webp")):
        folder = tmp_path / "src" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        first.save(folder / f"{suffix}.{suffix}", save_all=True, append_images=[second, second])
        first.save(folder / f"one.{suffix}")
    folder = packed_of(tmp_path / "src", tmp_path, side=20)
    note = next(note for note in read_pack(folder).notes if "frames" in note)
    assert note == (
        "4 images with several frames or pages, of which the first is used: a/png.png, a/tif.tif, b/gif.gif, …"
    )
    for pixels in pixels_of(folder).values():
        red, green, blue = pixels[3, 3].tolist()
        assert red > 240 and green < 10 and blue < 10


def files(root: Path, *names: str) -> Path:
    out = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(out, "JPEG")
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(out.getvalue())
    return root


def test_pictures_under_other_names_are_left_out_with_their_number_and_what_to_do(tmp_path: Path) -> None:
    root = files(tmp_path, "a/1.jpg", "b/1.JPG", "a/no-suffix", "b/2.jpg_large", "a/x.CR2", "b/y.cr2", "b/z.svg")
    (root / "a" / "notes.txt").write_text("words")
    source = discover(root)
    assert (len(source.images), source.ignored) == (2, 6)
    assert source.notes == (
        "files of formats that are not read left out: .cr2 2, .svg 1; convert them to JPEG or PNG",
        "2 images by content, not by name, left out: a/no-suffix, b/2.jpg_large; let their names end in .jpg or .png",
    )


@pytest.mark.parametrize(
    ("name", "says"), [("7.nef", r"\.nef 1; convert them"), ("7", "1 image by content, not by name, left out: b/7;")]
)
def test_a_class_of_nothing_but_pictures_under_other_names_is_refused_with_the_way(
    name: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(AutoFormerError, match=rf"b: a class folder without images \(.*{says}"):
        discover(files(tmp_path, "a/1.jpg", f"b/{name}"))


def test_files_of_another_format_under_a_name_of_this_one_are_listed_with_their_format(tmp_path: Path) -> None:
    root = files(tmp_path / "src", "a/1.jpg", "a/2.png", "b/1.webp", "b/2.jpg")
    (root / "b" / "3.jpg").write_bytes(b"")
    folder = packed_of(root, tmp_path, percent=50)
    assert read_pack(folder).counts == {"a": 2, "b": 2}  # by content, not by name
    assert [row["reason"] for row in unreadable_of(folder)] == ["an empty file; copy or download it again"]


COLOURS = np.array([[[220, 30, 40], [30, 180, 60]], [[40, 60, 210], [240, 220, 50]]], np.uint8)
COLOUR_MAP = tuple(COLOURS.reshape(4, 3).T.ravel().tolist())


def square_tiff(values: np.ndarray, photometric: int, bits: tuple[int, ...], colour_map: tuple[int, ...] = ()) -> bytes:
    """A TIFF file of 2 x 2 pixels, uncompressed, without tags that a reader might do without."""
    tags = {256: (2,), 257: (2,), 258: bits, 259: (1,), 262: (photometric,), 277: (len(bits),), 279: (values.nbytes,)}
    tags |= {273: (0,)} | ({320: colour_map} if colour_map else {})
    start = 8 + 2 + 12 * len(tags) + 4
    further = b"".join(struct.pack(f"<{len(v)}H", *v) for _, v in sorted(tags.items()) if len(v) > 2)
    tags[273] = (start + len(further),)
    directory, at = b"", start
    for tag, numbers in sorted(tags.items()):
        packed = struct.pack(f"<{len(numbers)}H", *numbers)
        directory += struct.pack("<HHI", tag, 3, len(numbers))
        directory += packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack("<I", at)
        at += len(packed) if len(packed) > 4 else 0
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return head + directory + b"\0" * 4 + further + values.tobytes()


def bitmap(alpha: int) -> bytes:
    """A Windows bitmap whose header names a mask for alpha."""
    rows = np.dstack([COLOURS[::-1, :, ::-1], np.full((2, 2), alpha, np.uint8)]).tobytes()
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 56, 2, 2, 1, 32, 3, len(rows), 0, 0, 0, 0) + masks
    return b"BM" + struct.pack("<IHHI", 70 + len(rows), 0, 0, 70) + header + rows


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (bitmap(0), COLOURS),
        (bitmap(255), COLOURS),
        (square_tiff(np.dstack([COLOURS, np.zeros((2, 2), np.uint8)]), 2, (8,) * 4), COLOURS),
        (square_tiff(np.array([[0, 1], [2, 3]], np.uint8), 3, (8,), COLOUR_MAP), COLOURS),
    ],
    ids=["BMP, alpha unset", "BMP, opaque", "TIFF, fourth channel unset", "TIFF, colour map of 8 bits"],
)  # fmt: skip
def test_what_old_tools_leave_unset_in_a_file_does_not_take_its_colours(content: bytes, wanted: np.ndarray) -> None:
    assert np.array_equal(np.asarray(to_channels(open_image(content), 3)), wanted)


def test_a_transparent_pixel_of_a_bitmap_stays_transparent_where_another_is_not() -> None:
    half = bytearray(bitmap(0))
    half[-1] = 255  # the alpha of the upper right
    found = np.asarray(to_channels(open_image(bytes(half)), 3))
    assert found[0, 1].tolist() == COLOURS[0, 1].tolist()
    assert (found[1] == DEFAULT.background).all()
