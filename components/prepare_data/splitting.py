"""Divide the delivered images into the four splits, and describe them on a card, equally for every reader."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from autoformer.errors import AutoFormerError, quantity
from autoformer.images.archives import PREFETCH_IMAGES, EncodedImages
from autoformer.images.card import DatasetCard, check_class_names
from autoformer.images.pixels import DEFAULT, to_pixels
from autoformer.images.split_files import Split, hash_split
from autoformer.images.split_images import raw_pixels
from autoformer.images.splits import Shares, hold_out, split_by_share
from autoformer.images.statistics import pixel_statistics, value_statistics
from autoformer.randomness import derived_rng
from components.prepare_data.delivered import IMAGENET_STATISTICS, Delivered, Statistics
from runtime.common.sections import PrepareData
from runtime.storage.data import remote_archives


class Splits(NamedTuple):
    """`rows`: those of train, search, test, and train_full (train and search together)."""

    rows: dict[str, Split]
    notes: tuple[str, ...]  # sentences on images left out and on contradictory labels
    counted: tuple[str, ...] = ()  # counts of repeated images, also if 0
    originals: str | None = None  # as in `DatasetCard`


def split(delivered: Delivered, section: PrepareData, seed: int) -> Splits:
    """Divide the images; splits of the source are kept.

    The source's test split is the test split, its val split the search split. A val split without a test split is the
    test split. A missing split is drawn from the training images: `search_images` of them, equally many of each class,
    or else a share of each class.

    Raises `AutoFormerError` if a class has too few images, or the source does not allow `search_images`.
    """
    val, test = (np.flatnonzero(delivered.splits == name) for name in ("val", "test"))
    if not len(test):
        val, test = test, val
    free = np.flatnonzero((delivered.splits == "") | (delivered.splits == "train"))
    rows, classes, rng = delivered.rows, delivered.classes, derived_rng("prepare_data", seed)
    counted: tuple[str, ...] = ()
    if section.search_images is None:
        shares = Shares(section.search_percent, section.test_percent)
        parts, notes = split_by_share(rows.labels, rows.checksums, classes, free, val, test, shares, rng)
    else:
        _check_search_images(delivered, val, test)
        labels, checksums = rows.labels[free], rows.checksums[free]
        held = hold_out(labels, checksums, rows.checksums[test], len(classes), section.search_images, rng)
        parts = {"train": free[held.train], "search": free[held.search], "test": test}
        counted = (
            f"same pixels twice: {quantity(held.left_out, 'training image')} left out (also in test), {held.repeated} "
            "kept out of search (repeated in train)",
        )
        notes = counted if held.left_out or held.repeated else ()
        if held.copies:
            copies = quantity(held.copies, "copy of an image of search was", "copies of images of search were")
            further = (f"{copies} left out: each is there once",)
            counted, notes = (*counted, *further), (*notes, *further)
    parts["train_full"] = np.sort(np.concatenate([parts["train"], parts["search"]]))  # in the delivered order
    originals = None
    if delivered.originals is not None:
        originals = hash_split(delivered.originals[parts["test"]], rows.labels[parts["test"]])
    return Splits({name: rows.take(part) for name, part in parts.items()}, notes, counted, originals)


def _check_search_images(delivered: Delivered, val: np.ndarray, test: np.ndarray) -> None:
    if not len(test):
        raise AutoFormerError("prepare_data.search_images: for your own images set prepare_data.search_percent instead")
    if len(val):
        raise AutoFormerError(
            f"prepare_data.search_images: {delivered.title} has a val split of its own, which is the search split; "
            "leave it out"
        )


def statistics(delivered: Delivered, train: Split, data: Path) -> Statistics:
    """Mean and standard deviation for the normalisation of pixels, by channel.

    RGB photographs of any size get ImageNet's, which saves decoding them; other images those of the stored training
    pixels. Raises `AutoFormerError` if a channel has the same value in all pixels.
    """
    if delivered.encoding == "image" and delivered.image_size is None and delivered.channels == 3:
        return IMAGENET_STATISTICS
    if delivered.encoding == "raw":
        assert delivered.image_size is not None
        mean, std = pixel_statistics(raw_pixels(train, data, delivered.channels, delivered.image_size))
    else:
        remote, rule = remote_archives(data), delivered.pixels or DEFAULT
        encoded = EncodedImages(data, train, delivered.channels, delivered.upright, delivered.files, remote, rule)
        counts = np.zeros((delivered.channels, 256), dtype=np.int64)
        for index in range(len(encoded)):
            if index % PREFETCH_IMAGES == 0:
                encoded.prefetch(range(index, min(index + PREFETCH_IMAGES, len(encoded))))
            for channel, pixels in enumerate(to_pixels(encoded.image(index))):
                counts[channel] += np.bincount(pixels.reshape(-1), minlength=256)
        mean, std = value_statistics(counts)
    if min(std) == 0:
        raise AutoFormerError(f"{data}: a channel has one value in all training images; there is nothing to learn from")
    return mean, std


def describe(delivered: Delivered, splits: Splits, normalisation: Statistics) -> DatasetCard:
    mean, std = normalisation
    return DatasetCard(
        name=delivered.title,
        classes=check_class_names(delivered.classes),
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
        pixels=delivered.pixels or DEFAULT,
        upright=delivered.upright,
        notes=(*delivered.notes, *splits.notes),
        split_hashes={name: hash_split(split.checksums, split.labels) for name, split in splits.rows.items()},
        test_originals=splits.originals,
    )
