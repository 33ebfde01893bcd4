"""From what was delivered to the four splits and the data set's card: one way for every reader."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from autoformer.errors import AutoFormerError
from autoformer.images.archives import PREFETCH_IMAGES, EncodedImages
from autoformer.images.card import DatasetCard
from autoformer.images.pixels import to_pixels
from autoformer.images.split_files import Split, hash_split
from autoformer.images.split_images import raw_pixels
from autoformer.images.splits import Shares, hold_out, split_by_share
from autoformer.images.statistics import pixel_statistics, value_statistics
from autoformer.randomness import derived_rng
from components.prepare_data.delivered import IMAGENET_STATISTICS, Delivered, Statistics
from runtime.common.config import PrepareData
from runtime.storage.data import remote_archives


class Splits(NamedTuple):
    """`rows`: train, search, test, and train_full, which is all that may be trained on: train and search."""

    rows: dict[str, Split]
    notes: tuple[str, ...]  # what was left out or contradicts itself, a sentence each
    counted: tuple[str, ...] = ()  # what was looked for, though there may be none of it


def split(delivered: Delivered, section: PrepareData, seed: int) -> Splits:
    """Divide what was delivered; a split that the source has is kept.

    Its test images test, its val images are the search split. With a val split alone, those test, since nobody else
    has seen them. What is missing is drawn from the training images: `search_images` of them, as many of each class,
    or else a share of each class.

    Raises:
        AutoFormerError: a class has too few images, or the configured images cannot be held out of this source.
    """
    given = {name: np.flatnonzero(delivered.splits == name) for name in ("val", "test")}
    if not len(given["test"]):
        given = {"val": given["test"], "test": given["val"]}
    free = np.flatnonzero((delivered.splits == "") | (delivered.splits == "train"))
    rows = free, given["val"], given["test"]
    if section.search_images is None:
        parts, notes, counted = _by_share(delivered, section, seed, *rows)
    else:
        parts, notes, counted = _by_number(delivered, section.search_images, seed, *rows)
    parts["train_full"] = np.sort(np.concatenate([parts["train"], parts["search"]]))  # in the delivered order
    return Splits({name: delivered.rows.take(rows) for name, rows in parts.items()}, notes, counted)


_Found = tuple[dict[str, np.ndarray], tuple[str, ...], tuple[str, ...]]


def _by_number(
    delivered: Delivered, search_images: int, seed: int, free: np.ndarray, val: np.ndarray, test: np.ndarray
) -> _Found:
    if not len(test):
        raise AutoFormerError("prepare_data.search_images: for your own images set prepare_data.search_percent instead")
    if len(val):
        raise AutoFormerError(
            f"prepare_data.search_images: {delivered.title} has a val split of its own, which is the search split; "
            "leave it out"
        )
    rows = delivered.rows
    held = hold_out(
        rows.labels[free], rows.checksums[free], rows.checksums[test], len(delivered.classes), search_images,
        derived_rng("prepare_data", seed),
    )  # fmt: skip
    note = (
        f"same pixels twice: {held.left_out} training images left out (also in test), "
        f"{held.repeated} kept out of search (repeated in train)"
    )
    parts = {"train": free[held.train], "search": free[held.search], "test": test}
    return parts, (note,) if held.left_out or held.repeated else (), (note,)


def _by_share(
    delivered: Delivered, section: PrepareData, seed: int, free: np.ndarray, val: np.ndarray, test: np.ndarray
) -> _Found:
    parts, notes = split_by_share(
        delivered.rows.labels, delivered.rows.checksums, delivered.classes, free, val, test,
        Shares(section.search_percent, section.test_percent), derived_rng("prepare_data", seed),
    )  # fmt: skip
    return parts, notes, ()


def statistics(delivered: Delivered, train: Split, data: Path) -> Statistics:
    """Mean and standard deviation by which pixels are normalised.

    Those that the reader states, or ImageNet's for photographs as they were delivered, which are not all decoded for
    it; else those of the training pixels.

    Raises:
        AutoFormerError: a channel has one value in all training images.
    """
    if delivered.statistics is not None:
        return delivered.statistics
    if delivered.encoding == "image" and delivered.image_size is None and delivered.channels == 3:
        return IMAGENET_STATISTICS
    if delivered.encoding == "raw":
        assert delivered.image_size is not None
        mean, std = pixel_statistics(raw_pixels(train, data, delivered.channels, delivered.image_size))
    else:
        mean, std = _encoded_statistics(delivered, train, data)
    if min(std) == 0:
        raise AutoFormerError(f"{data}: a channel has one value in all training images; there is nothing to learn from")
    return mean, std


def _encoded_statistics(delivered: Delivered, train: Split, data: Path) -> Statistics:
    """Of the images as they are stored."""
    counts = np.zeros((delivered.channels, 256), dtype=np.int64)
    encoded = EncodedImages(data, train, delivered.channels, delivered.upright, delivered.files, remote_archives(data))
    for index in range(len(encoded)):
        if index % PREFETCH_IMAGES == 0:
            encoded.prefetch(range(index, min(index + PREFETCH_IMAGES, len(encoded))))
        pixels = to_pixels(encoded.image(index))
        for channel in range(delivered.channels):
            counts[channel] += np.bincount(pixels[channel].reshape(-1), minlength=256)
    return value_statistics(counts)


def describe(delivered: Delivered, splits: Splits, normalised_by: Statistics) -> DatasetCard:
    """The data set's card."""
    mean, std = normalised_by
    return DatasetCard(
        name=delivered.title,
        classes=delivered.classes,
        image_size=delivered.image_size,
        channels=delivered.channels,
        encoding=delivered.encoding,
        mean=mean,
        std=std,
        counts={name: len(split.labels) for name, split in splits.rows.items()},
        licence=delivered.licence,
        source=delivered.source,
        archives=delivered.archives,
        files=delivered.files,
        upright=delivered.upright,
        notes=(*delivered.notes, *splits.notes),
        split_hashes={name: hash_split(split.checksums, split.labels) for name, split in splits.rows.items()},
    )
