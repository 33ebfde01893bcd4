"""From an image file to pixels: modes, orientations and formats against known images."""

import io
from pathlib import Path

import numpy as np
import pytest
from photographs import sample_photograph
from PIL import Image, TiffImagePlugin

from autoformer.errors import AutoFormerError
from autoformer.images.pixels import (
    center_crop,
    model_pixels,
    open_image,
    resize_shorter_side,
    resized_side,
    to_channels,
    to_pixels,
)

# 2 x 3 pixels (height x width), all different, so that no turn of it looks like another.
PICTURE = np.array([[10, 50, 90], [130, 170, 210]], dtype=np.uint8)
# What a camera stored of PICTURE for each note 1 to 8: the EXIF standard's table, by the edge that row 0 and column 0
# of the stored pixels are of the scene: 1 top left, 2 top right, 3 bottom right, 4 bottom left, 5 left top,
# 6 right top, 7 right bottom, 8 left bottom.
STORED = {
    1: [[10, 50, 90], [130, 170, 210]],
    2: [[90, 50, 10], [210, 170, 130]],
    3: [[210, 170, 130], [90, 50, 10]],
    4: [[130, 170, 210], [10, 50, 90]],
    5: [[10, 130], [50, 170], [90, 210]],
    6: [[90, 210], [50, 170], [10, 130]],
    7: [[210, 90], [170, 50], [130, 10]],
    8: [[130, 10], [170, 50], [210, 90]],
}


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("note", STORED)
def test_the_exif_orientation_is_applied(note: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = note
    file = tmp_path / "turned.png"
    file.write_bytes(saved(Image.fromarray(np.array(STORED[note], dtype=np.uint8)), "PNG", exif=exif))
    assert np.array(open_image(file)).tolist() == PICTURE.tolist()
    assert np.array(open_image(file.read_bytes())).tolist() == PICTURE.tolist()


def grey16(values: list[list[int]]) -> Image.Image:
    return Image.fromarray(np.array(values, dtype=np.uint16))


def palette(*, transparent: int | None = None) -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    if transparent is not None:
        image.info["transparency"] = transparent
    return image


RED, BLUE = (255, 0, 0), (0, 0, 255)
# What is in the file -> its pixels in RGB, and in grey. Grey is 0.299 R + 0.587 G + 0.114 B: red 76, blue 29.
MODES: list[tuple[str, bytes, list[object], list[int]]] = [
    ("1", saved(Image.fromarray(np.array([[False, True]])), "PNG"), [(0, 0, 0), (255, 255, 255)], [0, 255]),
    ("L", saved(Image.fromarray(np.array([[7, 200]], np.uint8)), "PNG"), [(7, 7, 7), (200, 200, 200)], [7, 200]),
    ("RGB", saved(Image.fromarray(np.array([[RED, BLUE]], np.uint8)), "PNG"), [RED, BLUE], [76, 29]),
    # half of 200 over the grey of 128 is 164; nothing of a colour is that grey
    (
        "RGBA",
        saved(Image.fromarray(np.array([[(200, 200, 200, 128), (255, 9, 9, 0)]], np.uint8)), "PNG"),
        [(164, 164, 164), (128, 128, 128)],
        [164, 128],
    ),
    (
        "LA",
        saved(Image.fromarray(np.array([[(200, 128), (255, 0)]], np.uint8), "LA"), "PNG"),
        [(164, 164, 164), (128, 128, 128)],
        [164, 128],
    ),
    ("P", saved(palette(), "PNG"), [RED, BLUE], [76, 29]),
    ("P, transparent", saved(palette(transparent=0), "PNG", transparency=0), [(128, 128, 128), BLUE], [128, 29]),
    # cyan 100 % of 255 takes all red: ink (C, M, Y, K) to light
    (
        "CMYK",
        saved(Image.fromarray(np.array([[(0, 255, 255, 0), (255, 255, 0, 0)]], np.uint8), "CMYK"), "TIFF"),
        [RED, BLUE],
        [76, 29],
    ),
    # 16 bits keep their upper 8
    ("I;16", saved(grey16([[0x1234, 0xFFFF]]), "PNG"), [(0x12,) * 3, (255,) * 3], [0x12, 255]),
    ("I;16B", saved(grey16([[0x1234, 0xFF00]]), "TIFF", big_tiff=False), [(0x12,) * 3, (255,) * 3], [0x12, 255]),
    # of a range that the format states, which Pillow scales to 16 bits
    ("PGM of 12 bits", b"P5 2 1 4095\n\x08\x00\x0f\xff", [(128,) * 3, (255,) * 3], [128, 255]),
]  # fmt: skip


@pytest.mark.parametrize(("content", "rgb", "grey"), [case[1:] for case in MODES], ids=[case[0] for case in MODES])
def test_every_mode_becomes_rgb_or_grey(content: bytes, rgb: list[object], grey: list[int]) -> None:
    image = open_image(content)
    assert [tuple(pixel) for pixel in np.array(to_channels(image, 3))[0].tolist()] == rgb
    assert np.array(to_channels(image, 1))[0].tolist() == grey


@pytest.mark.parametrize("mode", ["YCbCr", "LAB", "HSV", "PA", "RGBX", "RGBa", "I;16L", "I;16B"])
@pytest.mark.parametrize("channels", [1, 3])
def test_rare_modes_are_converted_too(mode: str, channels: int) -> None:
    assert to_channels(Image.new(mode, (3, 2)), channels).mode == {1: "L", 3: "RGB"}[channels]


@pytest.mark.parametrize(
    ("image", "channels", "parts"),
    [
        (Image.fromarray(np.ones((2, 2), np.float32)), 3, ["floating-point", "8 bits a channel"]),
        (Image.fromarray(np.array([[70_000]], np.int32)), 3, ["beyond 16 bits"]),
        (Image.fromarray(np.array([[-1]], np.int32)), 1, ["beyond 16 bits"]),
        (Image.new("RGB", (2, 2)), 4, ["4 channels", "1 or 3"]),
    ],
)
def test_pixels_of_unknown_range_are_refused(image: Image.Image, channels: int, parts: list[str]) -> None:
    with pytest.raises(AutoFormerError) as error:
        to_channels(image, channels)
    assert all(part in str(error.value) for part in parts)


def test_the_first_frame_of_an_animation_is_its_image() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    content = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.array(to_channels(open_image(content), 3)).reshape(-1, 3).tolist() == [[255, 0, 0]] * 16


def test_a_large_jpeg_is_decoded_smaller_and_looks_the_same() -> None:
    """libjpeg drops frequencies that the resize would remove: less than 1 of 255 levels apart on average."""
    picture = sample_photograph("coffee").resize((1600, 1064), Image.Resampling.BICUBIC)
    content = saved(picture, "JPEG", quality=92)
    drafted = open_image(content, shorter_side=73)
    assert drafted.size == (400, 266)  # a quarter: the smallest that is at least twice 73
    quick, full = (model_pixels(image, 3, 64).astype(int) for image in (drafted, open_image(content)))
    difference = np.abs(quick - full)
    assert difference.mean() < 1 and difference.max() <= 12
    assert np.abs(full - np.roll(full, 1, axis=2)).mean() > 5  # a shift by one pixel would be seen


def test_a_small_jpeg_is_decoded_whole() -> None:
    content = saved(sample_photograph("cat"), "JPEG")  # 400 x 266
    assert open_image(content, shorter_side=133).size == open_image(content).size


@pytest.mark.parametrize(
    ("image_size", "side"), [(224, 256), (64, 73), (48, 54), (47, 47), (32, 32), (28, 28)]
)  # int(256 / 224 * 64) = int(73.14)
def test_the_margin_is_that_of_the_evaluation_protocol(image_size: int, side: int) -> None:
    assert resized_side(image_size) == side


@pytest.mark.parametrize(
    ("size", "pixels", "resized"),
    [((100, 50), 25, (50, 25)), ((50, 100), 25, (25, 50)), ((10, 10), 25, (25, 25)), ((31, 30), 10, (10, 10)),
     ((25, 90), 25, (25, 90)), ((1000, 34), 34, (1000, 34))],
)  # fmt: skip
def test_the_shorter_side_is_resized_with_the_aspect_ratio(
    size: tuple[int, int], pixels: int, resized: tuple[int, int]
) -> None:
    assert resize_shorter_side(Image.new("L", size), pixels).size == resized


def test_the_centre_is_cut_out() -> None:
    values = np.arange(5 * 8, dtype=np.uint8).reshape(5, 8)
    cut = to_pixels(center_crop(Image.fromarray(values), 3))
    assert cut.tolist() == [values[1:4, 2:5].tolist()]


def test_pixels_have_channels_first() -> None:
    image = Image.fromarray(np.array([[RED, BLUE]], np.uint8))
    assert to_pixels(image).tolist() == [[[255, 0]], [[0, 0]], [[0, 255]]]
    assert to_pixels(image).flags["C_CONTIGUOUS"]


def test_the_model_sees_the_centre_at_the_protocols_size() -> None:
    """Small images have no margin: 28 x 28 is unchanged; a wide one is cropped equally on both sides."""
    small = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    assert (model_pixels(Image.fromarray(small), 1, 28)[0] == small).all()
    wide = np.zeros((28, 40), np.uint8)
    wide[:, 6:34] = small
    assert (model_pixels(Image.fromarray(wide), 1, 28)[0] == small).all()


def a_jpeg() -> bytes:
    return saved(sample_photograph("cat"), "JPEG")


def broken_tiff() -> bytes:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[270] = "x"
    content = saved(Image.new("RGB", (9, 9), "red"), "TIFF", compression="tiff_lzw", tiffinfo=tags)
    return content[: len(content) // 3]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ["an empty file", "download it again"]),
        (b"\xff\xd8 no picture", ["not an image"]),
        (b"<html></html>", ["not an image but a web page", "download it again"]),
        (a_jpeg()[:3000], ["a damaged image", "truncated"]),
        (saved(Image.new("RGB", (99, 99), "red"), "PNG")[:60], ["damaged image"]),
        (broken_tiff(), ["image"]),
        (saved(Image.new("L", (60_000, 1)), "PNG"), ["60000 x 1 pixels is too narrow", "30 times", "crop it"]),
        (saved(Image.new("L", (1, 31)), "PNG"), ["1 x 31 pixels is too narrow"]),
    ],
)
def test_a_file_that_is_no_image_is_one_line(content: bytes, parts: list[str], tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(content)
    for source in (file, content):
        with pytest.raises(AutoFormerError) as error:
            open_image(source)
        assert all(part in str(error.value) for part in parts) and "\n" not in str(error.value)


def test_any_damage_is_one_line() -> None:
    """A byte changed anywhere: an image, or one line; never another exception."""
    rng = np.random.default_rng(0)
    pictures = {
        kind: bytearray(saved(Image.new("RGB", (24, 20), "red"), kind))
        for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "JPEG2000")
    }
    refused = 0
    for content in pictures.values():
        for place in rng.integers(0, len(content), 60):
            damaged = content.copy()
            damaged[place] ^= int(rng.integers(1, 256))
            try:
                to_channels(open_image(bytes(damaged), 10), 3)
            except AutoFormerError as error:
                refused += 1
                assert "\n" not in str(error)
    assert refused > 20


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(AutoFormerError, match="more pixels than Pillow will decode; make it smaller"):
        open_image(saved(Image.new("L", (50, 50)), "PNG"))
    image = open_image(saved(Image.new("L", (40, 40)), "PNG"))  # above the limit, below twice of it: Pillow only warns
    assert image.size == (40, 40)


@pytest.mark.parametrize(("kind", "part"), [("folder", "a folder, not an image"), ("gone", "no such file")])
def test_a_path_without_an_image(kind: str, part: str, tmp_path: Path) -> None:
    path = tmp_path if kind == "folder" else tmp_path / "gone.png"
    with pytest.raises(AutoFormerError, match=part):
        open_image(path)
