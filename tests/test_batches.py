"""Batches of images in memory, normalisation, and random draws by seed."""

import hashlib

import numpy as np
import pytest
import torch
from test_training import images

from autoformer.images.batches import augment, normalise
from autoformer.randomness import derived_seed, epoch_order, sample_uniform
from autoformer.recipe import Augmentation


def test_augmentation_is_a_function_of_seed_epoch_and_sample_alone() -> None:
    pixels, _ = images()
    samples = np.arange(64)
    options = Augmentation(crop_padding=3, flip=True)
    whole = augment(pixels, samples, options, seed=3, epoch=2)
    order = np.random.default_rng(0).permutation(64)
    shuffled = augment(pixels[torch.from_numpy(order)], order, options, seed=3, epoch=2)
    assert torch.equal(shuffled, whole[torch.from_numpy(order)])
    alone = augment(pixels[5:6], samples[5:6], options, seed=3, epoch=2)
    assert torch.equal(alone[0], whole[5])
    assert not torch.equal(whole, augment(pixels, samples, options, seed=3, epoch=3))
    assert not torch.equal(whole, augment(pixels, samples, options, seed=4, epoch=2))


def test_crops_and_flips_equal_a_plain_loop() -> None:
    pixels, _ = images()
    samples = np.arange(64)
    result = augment(pixels, samples, Augmentation(crop_padding=2, flip=True), seed=0, epoch=0)
    rows = (sample_uniform(0, 0, "crop row", samples) * 5).astype(int)
    columns = (sample_uniform(0, 0, "crop column", samples) * 5).astype(int)
    flips = sample_uniform(0, 0, "flip", samples) < 0.5
    assert 20 < flips.sum() < 44 and set(rows) == set(columns) == {0, 1, 2, 3, 4}
    for index in range(64):
        padded = np.pad(pixels[index, 0].numpy(), 2)
        crop = padded[rows[index] : rows[index] + 28, columns[index] : columns[index] + 28]
        expected = crop[:, ::-1] if flips[index] else crop
        assert np.array_equal(result[index, 0].numpy(), expected), index


def test_no_augmentation_changes_nothing() -> None:
    pixels, _ = images()
    assert torch.equal(augment(pixels, np.arange(64), Augmentation(), 0, 0), pixels)


def test_normalise_equals_its_definition() -> None:
    pixels = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    wanted = (pixels.double() / 255 - torch.tensor(mean).double().view(-1, 1, 1)) / torch.tensor(std).double().view(
        -1, 1, 1
    )
    torch.testing.assert_close(normalise(pixels, mean, std).double(), wanted, rtol=1e-5, atol=1e-6)


# --- randomness ---


def test_sample_numbers_are_uniform_and_streams_independent() -> None:
    samples = np.arange(100_000)
    one, two = (sample_uniform(1, 0, stream, samples) for stream in ("flip", "crop"))
    assert one.min() >= 0 and one.max() < 1
    assert np.histogram(one, 20, (0, 1))[0] == pytest.approx(5000, rel=0.06)
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.02
    assert abs(np.corrcoef(one[:-1], one[1:])[0, 1]) < 0.02


def test_every_epoch_visits_every_sample_in_an_order_of_its_own() -> None:
    orders = [epoch_order(0, epoch, 1000) for epoch in (0, 1)]
    assert all(np.array_equal(np.sort(order), np.arange(1000)) for order in orders)
    assert not np.array_equal(*orders)
    assert np.array_equal(orders[0], epoch_order(0, 0, 1000))


def test_derived_seeds_are_the_same_on_every_machine() -> None:
    # blake2b of "subnet/0/1", its first 8 bytes, without the last bit
    assert derived_seed("subnet", 0, 1) == int(hashlib.blake2b(b"subnet/0/1", digest_size=8).hexdigest(), 16) >> 1
    assert derived_seed("a", 12) != derived_seed("a1", 2)
