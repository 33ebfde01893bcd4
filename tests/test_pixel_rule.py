"""Transparent pixels and pixels of more than 8 bits: one rule for a data set and its model, against known values."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from autoformer.cards import Preprocessing
from autoformer.errors import AutoFormerError
from autoformer.images.archives import EncodedImages
from autoformer.images.pixel_rule import ON_BLACK, PixelRule
from autoformer.images.pixels import DEFAULT, fit, model_pixels, open_image, resize_shorter_side, to_channels
from components.prepare_data import packed
from components.prepare_data.pack import pack
from components.prepare_data.pack_card import read_pack, unreadable_of
from components.prepare_data.step import prepare
from runtime.common.sections import PrepareData
from runtime.common.tables import read_table


def packed_of(source: Path, place: Path, rule: PixelRule = DEFAULT, percent: float = 0.0, side: int = 73) -> Path:
    return pack(source, place, side, 3, percent, lambda what, done, total: None, rule)


def pixels_of(folder: Path) -> dict[str, np.ndarray]:
    """The user's file -> its packed pixels."""
    delivered = packed.read(folder)
    images = EncodedImages(folder, delivered.rows, 3)
    sources = [row["source"] for row in read_table(folder / "index.csv")]
    return {name: np.asarray(images.image(index)) for index, name in enumerate(sources)}


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def drawings(root: Path, ink: tuple[int, ...], mode: str = "RGBA") -> Path:
    """Circles and crosses on transparent ground."""
    for number in range(8):
        image = Image.new("RGBA", (120, 100), (*ink[:3], 0) if number % 2 else (0, 0, 0, 0))
        draw, at = ImageDraw.Draw(image), (20 + number, 20, 80 + number, 80)
        if number < 4:
            draw.ellipse(at, outline=ink, width=4)
        else:
            draw.line(at, fill=ink, width=4)
        folder = root / ("circle" if number < 4 else "cross")
        folder.mkdir(parents=True, exist_ok=True)
        image.convert(mode).save(folder / f"{number}.png")
    return root


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("ink", [(0, 0, 0, 255), (255, 255, 255, 255), (200, 30, 30, 255)])
def test_drawings_in_any_usual_ink_on_transparent_ground_stay_different_drawings(
    ink: tuple[int, ...], mode: str, tmp_path: Path
) -> None:
    folder = packed_of(drawings(tmp_path / "src", ink, mode), tmp_path)
    images = pixels_of(folder)
    assert len({pixels.tobytes() for pixels in images.values()}) == 8
    for pixels in images.values():
        assert pixels[0, 0].tolist() == [128] * 3 and np.ptp(pixels[..., 1].astype(int)) > 40
    notes = read_pack(folder).notes
    assert notes[0] == "8 images have transparent pixels, laid on grey 128 of 255 (prepare_data.background)"
    assert not any("of one colour" in note or "repeat" in note for note in notes)


def test_pictures_of_one_colour_are_named(tmp_path: Path) -> None:
    """Grey ink of the ground's value, and another ground that shows it."""
    source = drawings(tmp_path / "src", (128, 128, 128, 255))
    plain = next(note for note in read_pack(packed_of(source, tmp_path)).notes if "of one colour" in note)
    assert plain.startswith("8 images of one colour: circle/0.png, circle/1.png, …;") and "background" in plain
    folder = packed_of(source, tmp_path, PixelRule(background=255))
    assert not any("of one colour" in note for note in read_pack(folder).notes)
    assert pixels_of(folder)["circle/0.png"][0, 0].tolist() == [255] * 3


@pytest.mark.parametrize("highest", [1, 15])
def test_pictures_whose_white_seems_a_smaller_value_than_their_files_have_are_named(
    highest: int, tmp_path: Path
) -> None:
    """Masks of 0 and 1, and pixels of 4 bits in bytes: 16 bits are scaled by their range, 8 bits are not."""
    for number in range(8):
        (tmp_path / "src" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(number).integers(0, highest + 1, (80, 80), dtype=np.uint8)
        white = 255 // highest if number == 0 else 1
        Image.fromarray(values * np.uint8(white)).save(tmp_path / "src" / "ab"[number % 2] / f"{number}.png")
    (dark,) = [note for note in read_pack(packed_of(tmp_path / "src", tmp_path)).notes if "nearly black" in note]
    form = re.fullmatch(r"7 images nearly black, at most (\d+) of 255: a/2.png, a/4.png, …; if white .*", dark)
    assert form and highest <= int(form[1]) <= highest + 4  # a cubic overshoots


def test_pictures_that_are_transparent_everywhere_are_named_with_another_remedy(tmp_path: Path) -> None:
    """No ground shows what is in them: alpha is often unset where a program did not know it."""
    for number in range(4):
        (tmp_path / "src" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(number).integers(0, 256, (40, 40, 4), dtype=np.uint8)
        values[..., 3] *= number == 0
        Image.fromarray(values).save(tmp_path / "src" / "ab"[number % 2] / f"{number}.png")
    notes = read_pack(packed_of(tmp_path / "src", tmp_path)).notes
    assert any(
        note.startswith("3 images transparent everywhere, so only the ground is seen: a/2.png") for note in notes
    )
    assert not any("of one colour" in note for note in notes)


@pytest.mark.parametrize("background", [0, 128, 255])
def test_the_ground_is_kept_with_pack_data_set_and_model_and_prediction_uses_it(
    background: int, tmp_path: Path
) -> None:
    section = PrepareData(background=background)
    folder = packed_of(drawings(tmp_path / "src", (200, 30, 30, 255)), tmp_path, section.pixel_rule, side=73)
    card = prepare(folder, packed.read(folder), PrepareData(), seed=0).card  # the pack decides, not the section
    preprocessing = Preprocessing(mean=card.mean, std=card.std, classes=card.classes, pixels=card.pixels)
    assert card.pixels == preprocessing.pixels == read_pack(folder).pixels == PixelRule(background=background)
    delivered = packed.read(folder)
    images = EncodedImages(folder, delivered.rows, 3)
    for index, row in enumerate(read_table(folder / "index.csv")):
        file = open_image(tmp_path / "src" / row["source"])
        predicted = model_pixels(file, 3, 64, rule=preprocessing.pixels)
        assert np.array_equal(predicted, model_pixels(images.image(index), 3, 64)) and predicted[0, 0, 0] == background


def test_models_and_data_sets_of_before_the_rule_keep_black() -> None:
    old = Preprocessing.model_validate({"mean": [0.5], "std": [0.2], "classes": ["a", "b"]})
    assert old.pixels == ON_BLACK == PixelRule(background=0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_large_transparent_picture_is_reduced_before_the_ground_is_laid_and_looks_the_same(
    mode: str, channels: int
) -> None:
    """The colour of transparent pixels does not count, and half-transparent edges mix with the ground alone."""
    image = Image.new("RGBA", (700, 600), (255, 0, 255, 0))
    ImageDraw.Draw(image).ellipse((90, 110, 500, 520), fill=(200, 200, 0, 255), outline=(0, 0, 0, 128), width=40)
    image, rule = image.convert(mode), PixelRule(background=40)
    late = np.asarray(fit(image, channels, 64, rule)).astype(int)
    early = np.asarray(resize_shorter_side(to_channels(image, channels, rule), 64)).astype(int)
    assert late.shape == early.shape and np.abs(late - early).max() <= 16 and np.abs(late - early).mean() < 0.5
    assert (late[0, 0] == 40).all() and np.abs(early - np.roll(early, 1, axis=1)).mean() > 2  # a shift would be seen


def test_a_small_transparent_picture_is_composed_exactly() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 4), dtype=np.uint8))
    whole = Image.alpha_composite(Image.new("RGBA", image.size, (40, 40, 40)), image).convert("RGB")
    assert np.array_equal(fit(image, 3, 30, PixelRule(background=40)), resize_shorter_side(whole, 30))


def sixteen(values: list[list[int]]) -> Image.Image:
    return Image.fromarray(np.array(values, dtype=np.uint16))


def grey_folders(root: Path, most: list[int]) -> Path:
    """Ramps of 16 bits from 0 to each value."""
    for number, value in enumerate(most):
        folder = root / ("cold", "warm")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        sixteen([np.linspace(0, value, 80, dtype=np.int64).tolist()] * 73).save(folder / f"{number:02d}.png")
    return root


@pytest.mark.parametrize(
    ("most", "white", "dark"),
    [
        ([4095, 255, 1023, 4000], 4095, "; 2 of them stay at or below 1023: "),  # 12 bits; two pictures are dark
        ([1000, 900, 1023, 12], 1023, "; 1 of them stay at or below 255: "),
        ([255, 200, 190, 180], 255, ""),
        ([65535, 300, 4095, 20], 65535, "; 3 of them stay at or below 4095: "),
        ([16383, 300, 4095, 20], 16383, "; 3 of them stay at or below 4095: "),
    ],
)
def test_pictures_of_16_bits_have_one_white_in_the_whole_data_set(
    most: list[int], white: int, dark: str, tmp_path: Path
) -> None:
    """The brightest pixel of a picture is in proportion to its value: no picture is brightened by itself."""
    folder = packed_of(grey_folders(tmp_path / "src", most), tmp_path)
    images = pixels_of(folder)
    for number, value in enumerate(most):
        name = f"{('cold', 'warm')[number % 2]}/{number:02d}.png"
        assert images[name].max() == value * 256 // (white + 1)
    card = read_pack(folder)
    assert card.pixels.white_level == white
    note = (
        f"4 images of 16 bits hold values up to {max(most)}: {white} is white in all of them (prepare_data.white_level)"
    )
    if dark:  # of pictures that hold their range by another tool than the others, all but those would be dark
        note += f"{dark}if they are of a smaller range and not dark, bring all images to one range first"
    assert card.notes[0] == note
    image = open_image(tmp_path / "src" / "cold" / "00.png")
    assert model_pixels(image, 1, 64, rule=card.pixels).max() > 0.8 * images["cold/00.png"].max()  # as in training


def test_a_configured_white_wins_over_the_pictures(tmp_path: Path) -> None:
    source = grey_folders(tmp_path / "src", [1000, 500, 300, 200])
    folder = packed_of(source, tmp_path, PixelRule(white_level=4095))
    assert pixels_of(folder)["cold/00.png"].max() == 1000 * 256 // 4096
    assert not any("16 bits" in note for note in read_pack(folder).notes)


def colour_png_16(red: int) -> bytes:
    """2 x 2 pixels of (red, 0, 0) with 16 bits a channel, which Pillow cannot write."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = (b"\0" + struct.pack(">3H", red, 0, 0) * 2) * 2
    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_colour_of_16_bits_is_read_at_full_range_and_refused_at_any_other(tmp_path: Path) -> None:
    """Pillow decodes the upper 8 bits alone: of 12 bits nothing but 16 dark levels would be left."""
    image = open_image(colour_png_16(0xABCD))
    assert np.asarray(to_channels(image, 3))[0, 0].tolist() == [0xAB, 0, 0]
    with pytest.raises(AutoFormerError, match="16 bits in colour, of which the upper 8 can be read, but white is 4095"):
        to_channels(image, 3, PixelRule(white_level=4095))
    for number, red in enumerate((0x0FFF, 0x0800, 0x0700, 0x0600)):
        folder = tmp_path / "src" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(colour_png_16(red))
    with pytest.raises(AutoFormerError, match=r"4 of 4 images cannot be read.*16 bits in colour"):
        packed_of(tmp_path / "src", tmp_path)


DEEP = {
    "floating point": Image.fromarray(np.array([[0.0, 0.5, 1.0, 2.0]], np.float32)),
    "32 bits": Image.fromarray(np.array([[0, 1, 2, 4]], np.int32)),
}


@pytest.mark.parametrize("kind", DEEP)
def test_pixels_of_32_bits_are_refused_without_a_white_and_read_with_one(kind: str) -> None:
    image = open_image(encoded(DEEP[kind], "TIFF"))
    with pytest.raises(AutoFormerError, match=r"of unknown range; .* set prepare_data\.white_level to the value"):
        to_channels(image, 1)
    white = 1.0 if kind == "floating point" else 3.0
    assert np.asarray(to_channels(image, 1, PixelRule(white_level=white)))[0].tolist() in (
        [0, 128, 255, 255],  # rounded
        [0, 64, 128, 255],  # of 2 bits the upper ones
    )


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_values_below_0_or_not_finite_are_refused(value: float) -> None:
    image = Image.fromarray(np.array([[0.5, value]], np.float32))
    with pytest.raises(AutoFormerError, match="below 0 or not finite"):
        to_channels(image, 3, PixelRule(white_level=1))


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"\0\0\0\x24ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftyphevc\0\0\0\0hevc", "HEIC"),
        (b"\xff\x0a\xfa\x7f", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"II\x2a\0\x10\0\0\0CR\2\0", "raw camera"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1", "raw camera"),
        (b"8BPS\0\1", "Photoshop"),
        (b'<?xml version="1.0"?>\n<!-- x -->\n<svg xmlns="http://www.w3.org/2000/svg">', "SVG"),
        (b"%PDF-1.7\n", "PDF"),
        (b"\0" * 128 + b"DICM\2\0", "DICOM"),
        (b"\0\0\0\x20ftypisom\0\0\2\0", "video"),
    ],
)
def test_formats_that_are_not_read_are_named_with_a_way_to_convert_them(
    start: bytes, kind: str, tmp_path: Path
) -> None:
    (tmp_path / "IMG_0001.HEIC").write_bytes(start + b"\0" * 40)
    for source in (tmp_path / "IMG_0001.HEIC", start + b"\0" * 40):
        with pytest.raises(AutoFormerError) as error:
            open_image(source)
        assert f": a {kind} file, which is not read; convert it to JPEG or PNG" in str(error.value)


def test_photographs_of_a_phone_are_refused_by_their_format_in_the_line_itself(tmp_path: Path) -> None:
    for number in range(6):
        folder = tmp_path / "src" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"IMG_{number}.HEIC").write_bytes(b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + bytes([number]) * 40)
    Image.new("RGB", (9, 9), "red").save(tmp_path / "src" / "a" / "x.png")
    Image.new("RGB", (9, 9), "blue").save(tmp_path / "src" / "b" / "y.png")
    with pytest.raises(
        AutoFormerError, match=r"6 of 8 images cannot be read .*: a HEIC file.*`magick.*\.csv names each"
    ):
        packed_of(tmp_path / "src", tmp_path)
    assert not list(tmp_path.glob("**/.*.packing"))  # refused by names and headers: no shard was packed first
    folder = packed_of(tmp_path / "src", tmp_path, percent=90)
    assert len(unreadable_of(folder)) == 6 and "a HEIC file" in unreadable_of(folder)[0]["reason"]
