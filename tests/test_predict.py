"""Any image becomes the model's input, and logits become class names with probabilities."""

# ruff: noqa: F401, F811 - fixtures are imported, and then asked for by name

import io
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tracking_fixtures import CLASSES, MEAN, STD, subnet_folder, use_store

from autoformer.checkpoint import LoadedSubnet, load_subnet
from autoformer.errors import AutoFormerError
from autoformer.export import export_program
from autoformer.images.batches import normalise
from autoformer.images.pixel_rule import PixelRule
from autoformer.images.pixels import open_image
from autoformer.predict import image_from_pixels, predict, prepare, probabilities
from commands.predict import main

GREY = np.arange(784, dtype=np.uint8).reshape(28, 28)


@pytest.fixture(scope="module")
def loaded(subnet_folder: Path) -> LoadedSubnet:
    return load_subnet(subnet_folder)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def prepared(image: Image.Image, loaded: LoadedSubnet) -> torch.Tensor:
    return prepare(open_image(encoded(image)), loaded.card)


def test_an_image_of_the_training_size_is_prepared_like_training_images(loaded: LoadedSubnet) -> None:
    wanted = normalise(torch.from_numpy(GREY)[None, None], MEAN, STD)
    assert torch.equal(prepared(Image.fromarray(GREY), loaded), wanted)
    assert torch.equal(prepare(image_from_pixels(GREY.tolist()), loaded.card), wanted)
    assert torch.equal(prepare(image_from_pixels(GREY[:, :, None]), loaded.card), wanted)


def test_every_mode_becomes_one_grey_channel(loaded: LoadedSubnet) -> None:
    wanted = prepared(Image.fromarray(GREY), loaded)
    rgb = Image.fromarray(np.repeat(GREY[:, :, None], 3, axis=2))
    sixteen_bits = Image.fromarray(GREY.astype(np.uint16) * 257)
    for image in (
        rgb,
        rgb.convert("RGBA"),
        Image.fromarray(GREY).convert("P"),
        Image.fromarray(GREY).convert("LA"),
        sixteen_bits,
    ):
        assert torch.equal(prepared(image, loaded), wanted), image.mode


def test_transparent_parts_become_black_for_a_model_of_before_the_rule(loaded: LoadedSubnet) -> None:
    image = Image.new("RGBA", (28, 28), (255, 255, 255, 0))
    image.paste((255, 255, 255, 255), (0, 0, 14, 28))
    grey = np.zeros((28, 28), np.uint8)
    grey[:, :14] = 255
    assert torch.equal(prepared(image, loaded), prepared(Image.fromarray(grey), loaded))


@pytest.mark.parametrize("background", [0, 128, 255])
def test_prediction_lays_transparent_pixels_on_the_ground_of_the_models_training(
    background: int, loaded: LoadedSubnet
) -> None:
    pixels = PixelRule(background=background)
    preprocessing = loaded.card.preprocessing.model_copy(update={"pixels": pixels})
    card = loaded.card.model_copy(update={"preprocessing": preprocessing})
    clear = open_image(encoded(Image.new("RGBA", (28, 28), (255, 0, 0, 0))))
    opaque = prepare(Image.new("L", (28, 28), background), loaded.card)
    assert torch.equal(prepare(clear, card), opaque)


def test_a_large_image_is_shrunk_and_cut_to_its_centre(loaded: LoadedSubnet) -> None:
    wide = np.zeros((56, 112), np.uint8)
    wide[:, 28:84] = 255  # the centre square, all that is left
    white = prepared(Image.fromarray(np.full((28, 28), 255, np.uint8)), loaded)
    found = prepared(Image.fromarray(wide), loaded)
    assert torch.equal(found[..., 1:-1], white[..., 1:-1])  # the outer columns are mixed with their black neighbours
    assert prepared(Image.new("L", (5, 9)), loaded).shape == (1, 1, 28, 28)


def test_a_photograph_is_turned_upright() -> None:
    image = Image.fromarray(GREY)
    exif = image.getexif()
    exif[0x0112] = 3  # upside down
    stream = io.BytesIO()
    image.save(stream, "PNG", exif=exif)
    assert np.array_equal(np.asarray(open_image(stream.getvalue())), GREY[::-1, ::-1])


def test_predictions_are_all_classes_with_the_models_probabilities(loaded: LoadedSubnet) -> None:
    image = Image.fromarray(GREY)
    answer = predict(loaded.model, loaded.card, image)
    with torch.no_grad():
        wanted = loaded.model(normalise(torch.from_numpy(GREY)[None, None], MEAN, STD)).softmax(1)[0]
    assert dict(answer) == pytest.approx(dict(zip(CLASSES, wanted.tolist(), strict=True)), rel=1e-6)
    assert [p for _, p in answer] == sorted((p for _, p in answer), reverse=True)
    both = probabilities(loaded.model, loaded.card, [image, Image.new("L", (28, 28))])
    assert both.shape == (2, 10) and not torch.allclose(both[0], both[1], atol=0.01)


@pytest.mark.slow
def test_the_exported_program_equals_the_model_for_any_batch(loaded: LoadedSubnet, tmp_path: Path) -> None:
    export_program(loaded.model, tmp_path / "program.pt2")
    program = torch.export.load(tmp_path / "program.pt2").module()
    for batch in (1, 2, 7):
        images = torch.randn(batch, 1, 28, 28)
        with torch.no_grad():
            torch.testing.assert_close(program(images), loaded.model(images))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[0, 256]], "0 to 255"), ([[0.5]], "whole numbers"), ([[-1]], "0 to 255"), ([1, 2], "found 2"),
        ([[1], [1, 2]], "equal length"), ("abc", "numbers"), ([], "found 0"), ([[[1, 2]]], "1 x 1 x 2"),
    ],
)  # fmt: skip
def test_pixels_that_are_no_image_are_refused(values: object, message: str) -> None:
    with pytest.raises(AutoFormerError, match=message):
        image_from_pixels(values)


def test_damaged_files_are_refused() -> None:
    for content in (b"", b"GIF", encoded(Image.new("L", (500, 500), 7))[:-40]):
        with pytest.raises(AutoFormerError, match="image"):
            open_image(content)


def test_floating_point_pixels_are_refused(loaded: LoadedSubnet) -> None:
    with pytest.raises(AutoFormerError, match="floating-point"):
        prepare(Image.new("F", (28, 28)), loaded.card)


def test_the_command_prints_the_three_most_likely(
    subnet_folder: Path,
    loaded: LoadedSubnet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Image.fromarray(GREY).save(tmp_path / "shoe.png")
    assert main(["--model", str(subnet_folder), str(tmp_path / "shoe.png")]) == 0
    best = predict(loaded.model, loaded.card, Image.fromarray(GREY))[:3]
    wanted = ", ".join(f"{name} {100 * probability:.1f} %" for name, probability in best)
    assert capsys.readouterr().out == f"{tmp_path / 'shoe.png'}: {wanted}\n"


@pytest.mark.parametrize(("stored", "typed"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_an_image_is_found_by_its_name_in_the_other_unicode_form(
    stored: str, typed: Any, subnet_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As from an archive of macOS, named on a keyboard of Linux."""
    name = "müll/né.png"
    file = tmp_path / unicodedata.normalize(stored, name)  # type: ignore[arg-type]
    file.parent.mkdir()
    Image.fromarray(GREY).save(file)
    assert main(["--model", str(subnet_folder), str(tmp_path / unicodedata.normalize(typed, name))]) == 0
    assert capsys.readouterr().out.startswith(str(file))


def test_errors_of_the_command_are_one_line(
    subnet_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_store(f"sqlite:///{tmp_path / 'none.db'}", tmp_path, monkeypatch)
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.fromarray(GREY).save(good)
    bad.write_text("no picture")
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "float.tif")
    for arguments, message in (
        (["--model", str(subnet_folder), str(tmp_path / "float.tif")], "float.tif: the image has floating-point"),
        (["missing.png"], "missing.png: no such image"),
        ([str(tmp_path)], "a folder, not an image"),
        (["--model", str(subnet_folder), str(bad)], "bad.png: not an image"),
        (["--model", str(tmp_path / "nowhere"), str(good)], "nowhere: no such file or folder"),
        ([str(tmp_path / "GOOD.PNG")], f"no such image; did you mean {good}?"),
        ([str(good)], "run `make run` first"),
        (["--model", "models:/shoes@best", str(good)], "no model 'shoes' with the alias 'best' is registered"),
        (["--model", "models:/shoes/1", str(good)], "give the name of the model, or models:/name@alias"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error
    assert not (tmp_path / "none.db").exists()
