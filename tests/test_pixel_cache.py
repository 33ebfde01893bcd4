"""The cache of decoded images: the same batches with and without, within the budget, shared by all workers."""

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from photographs import sample_photograph
from PIL import Image

from autoformer.errors import AutoFormerError
from autoformer.images.archives import EncodedImages, EncodedSplit
from autoformer.images.cache import ImageInfo, PixelCache
from autoformer.images.decoding import Box, Decoder
from autoformer.images.split_files import Split
from autoformer.images.training_loader import training_loader
from autoformer.recipe import Augmentation, Recipe
from runtime.steps.training_setup import cache_bytes

SIDE = 32
File = tuple[Image.Image, str, dict[str, Any]]  # picture, format, options


def archive_of(folder: Path, files: list[File]) -> EncodedImages:
    """A tar of images, each in the given format."""
    rows = []
    with tarfile.open(folder / "images.tar", "w") as archive:
        for number, (image, kind, options) in enumerate(files):
            out = io.BytesIO()
            image.save(out, kind, **options)
            info = tarfile.TarInfo(str(number))
            info.size = out.tell()
            rows.append((archive.offset + tarfile.BLOCKSIZE, info.size))
            archive.addfile(info, io.BytesIO(out.getvalue()))
    offsets, sizes = (np.array(column) for column in zip(*rows, strict=True))
    names = np.full(len(rows), "images.tar")
    return EncodedImages(folder, Split(names, offsets, sizes, np.zeros(len(rows), np.int32), names), 3)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> EncodedSplit:
    """Small and large JPEG files, one rotated, one grey, one in CMYK, and a PNG."""
    picture = sample_photograph("coffee")
    turned = Image.Exif()
    turned[0x0112] = 6
    files: list[File] = [
        (picture.resize((90, 60)), "JPEG", {}),
        (picture.resize((401, 267)), "JPEG", {}),  # at a half, a quarter: not a whole number of pixels
        (picture.resize((640, 900)), "JPEG", {}),
        (picture.resize((400, 300)), "JPEG", {"exif": turned}),
        (picture.resize((300, 300)).convert("L"), "JPEG", {}),
        (picture.resize((300, 200)).convert("CMYK"), "JPEG", {}),
        (picture.resize((80, 120)), "PNG", {}),
        (picture.resize((200, 150)), "JPEG", {"progressive": True}),
    ]
    pictures = archive_of(tmp_path_factory.mktemp("archive"), files)
    return EncodedSplit(pictures, np.arange(len(files)))


def batches(split: EncodedSplit, fast: bool, workers: int, budget: int, numbers: int = 6) -> list[torch.Tensor]:
    augmentation = Augmentation(crop_scale=(0.1, 1), flip=True, rand_augment="rand-m9-mstd0.5-inc1", fast=fast)
    recipe = Recipe(epochs=1, batch_size=4, learning_rate=1, augmentation=augmentation)
    images = training_loader(split, recipe, 0, SIDE, (0.5,) * 3, 1, workers, cache_bytes=budget)
    found = [images.batch(number).pixels for number in range(numbers)]
    images.close()
    return found


@pytest.mark.parametrize("fast", [False, True])
def test_no_batch_depends_on_the_budget(split: EncodedSplit, fast: bool) -> None:
    """All are cached, a few, or none; by one process, or by two that share."""
    wanted = batches(split, fast, 0, 0)
    for workers, budget in ((0, 10**7), (0, 200_000), (2, 10**7), (2, 200_000)):
        found = batches(split, fast, workers, budget)
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True)), (workers, budget)


def test_a_cached_image_is_not_read_again(split: EncodedSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(split.pictures, 10**7)
    boxes = [Box(0, 0, 64, 50), Box(1, 2, 60, 41)]
    wanted = [decoder.crop(index, lambda *_, box=box: box, SIDE).clone() for index in range(8) for box in boxes]
    images = [np.asarray(decoder.image(index)) for index in range(8)]
    monkeypatch.setattr(EncodedImages, "read", None)
    found = [decoder.crop(index, lambda *_, box=box: box, SIDE) for index in range(8) for box in boxes]
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    assert all(np.array_equal(decoder.image(index), images[index]) for index in range(8))


def test_a_whole_image_is_what_pillow_decodes(split: EncodedSplit) -> None:
    """Rotated, grey, CMYK and PNG too: torchvision decodes where it gives the same bytes, Pillow elsewhere."""
    for decoder in (Decoder(split.pictures), Decoder(split.pictures, 10**7)):
        for index in range(len(split.pictures)):
            pillows = np.asarray(split.pictures.image(index))
            assert np.array_equal(decoder.image(index), pillows)
            whole = decoder.crop(index, lambda width, height: Box(0, 0, width, height), side=1000)
            assert np.array_equal(whole.permute(1, 2, 0), pillows), index


def test_a_crop_is_decoded_at_the_smallest_scale_that_it_needs(split: EncodedSplit) -> None:
    """Twice 32 pixels a side: 640 x 900 at an eighth, a crop of 300 x 300 at a quarter, one of 127 x 300 whole."""
    decoder = Decoder(split.pictures)

    def shape(index: int, box: Box) -> tuple[int, ...]:
        return tuple(decoder.crop(index, lambda *_: box, SIDE).shape)

    assert shape(2, Box(0, 0, 640, 900)) == (3, 113, 80)
    assert shape(2, Box(11, 13, 300, 300)) == (3, 75, 75)  # from 2.75 to 77.75: 3 to 78
    assert shape(2, Box(0, 0, 127, 300)) == (3, 300, 127)
    assert shape(1, Box(0, 0, 401, 267)) == (3, 67, 100)  # of 101 x 67 that libjpeg makes
    assert shape(3, Box(0, 0, 300, 400)) == (3, 400, 300)  # turned, and so decoded whole


def test_the_budget_holds_and_the_cache_is_shared_between_processes() -> None:
    cache = PixelCache(images=10, channels=1, budget=2000)
    pixels = np.arange(600, dtype=np.uint8).reshape(20, 30, 1)
    for index in range(10):
        cache.set_info(index, ImageInfo(30, 20, True))
    if not (child := os.fork()):  # what another process puts in is found here
        cache.put(3, 1, pixels)
        cache.put(4, 2, pixels[:10, :15])
        os._exit(0)
    os.waitpid(child, 0)
    assert np.array_equal(cache.get(3, 1), pixels) and np.array_equal(cache.get(4, 2), pixels[:10, :15])
    assert cache.get(3, 2) is None and cache.get(5, 1) is None and cache.info(9) == ImageInfo(30, 20, True)
    for index in range(10):
        cache.put(index, 1, pixels)
    held = [index for index in range(10) if cache.get(index, 1) is not None]
    assert held == [0, 3] and cache.used <= 2000


def test_an_impossible_budget_is_refused() -> None:
    with pytest.raises(AutoFormerError, match=r"do not hold the table of 1000000 of them; give 0\.04"):
        PixelCache(10**6, 3, 1000)
    with pytest.raises(AutoFormerError, match=r"no 9.31e\+09 GiB to keep images in: .*; give less"):
        PixelCache(10, 3, 10**19)


@pytest.mark.parametrize(("given", "found"), [(None, 0), ("0", 0), ("1.5", 1_500_000_000)])
def test_the_budget_comes_from_the_environment(given: str | None, found: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUTOFORMER_CACHE_GB", raising=False)
    if given is not None:
        monkeypatch.setenv("AUTOFORMER_CACHE_GB", given)
    assert cache_bytes() == found


@pytest.mark.parametrize("given", ["", "much", "-1", "nan", "inf"])
def test_a_budget_that_is_no_number_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOFORMER_CACHE_GB", given)
    with pytest.raises(AutoFormerError, match=f"^AUTOFORMER_CACHE_GB = {given}: expected gigabytes, 0 or more$"):
        cache_bytes()
