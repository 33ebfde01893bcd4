"""Splits and card of a pack, which `pack` has made of a user's images."""

from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np

from autoformer.archives import EncodedImages
from autoformer.dataset import DatasetCard, Split, check_archive, check_places, hash_split, value_statistics
from autoformer.errors import AutoFormerError
from autoformer.images import to_pixels
from autoformer.randomness import derived_rng
from autoformer.splits import Shares, split_by_share
from components.prepare_data.pack import CARD, INDEX, PackCard, read_pack
from components.tables import read_table

_OWN = "your own images"


class Delivered(NamedTuple):
    card: PackCard
    rows: Split
    splits: np.ndarray  # of each row: "train", "val", "test", or ""


def is_pack(data: Path) -> bool:
    return (data / CARD).is_file()


def read_delivered(data: Path) -> Delivered:
    """The rows of a pack. Raises `AutoFormerError` where a file of it is missing, damaged or changed."""
    card = read_pack(data)
    outside = [name for name in card.archives if Path(name).name != name]
    if outside:
        raise AutoFormerError(f"{data / CARD}: the archive '{outside[0]}' lies outside the pack; pack the images again")
    for name, checksum in card.archives.items():
        check_archive(data / name, checksum)
    table = read_table(data / INDEX)
    if len(table) != sum(card.counts.values()):
        raise AutoFormerError(f"{data / INDEX}: {len(table)} rows, but {CARD} counts {sum(card.counts.values())}")
    number = {label: index for index, label in enumerate(card.classes)}
    _check_table(table, card, data)
    try:
        rows = Split(
            archives=np.array([row["archive"] for row in table]),
            offsets=np.array([int(row["offset"]) for row in table], dtype=np.int64),
            sizes=np.array([int(row["size"]) for row in table], dtype=np.int32),
            labels=np.array([number[row["label"]] for row in table], dtype=np.int32),
            checksums=np.array([row["checksum"] for row in table]),
        )
    except (KeyError, ValueError, OverflowError) as error:
        raise AutoFormerError(f"{data / INDEX}: not the index of a pack ({error}); pack the images again") from None
    check_places(rows, data / INDEX, data)
    _check_content(rows, data)
    return Delivered(card, rows, np.array([row["split"] for row in table]))


def _check_table(table: list[dict[str, str]], card: PackCard, data: Path) -> None:
    """Refuse rows that point outside the pack's archives, or into a split that there is not."""
    for line, row in enumerate(table, start=2):
        where = f"{data / INDEX}, line {line}"
        if row.get("archive") not in card.archives:
            raise AutoFormerError(f"{where}: '{row.get('archive')}' is no archive of the pack; pack the images again")
        if row.get("split") not in card.splits:
            raise AutoFormerError(f"{where}: '{row.get('split')}' is no split of the pack; pack the images again")


def _check_content(rows: Split, data: Path) -> None:
    """Refuse an index that does not say where the images are: the archives are as they were packed, it may not be."""
    encoded = EncodedImages(data, rows, 3)
    for line, checksum in enumerate(rows.checksums.tolist(), start=2):
        if sha256(encoded.read(line - 2)).hexdigest() != checksum:
            raise AutoFormerError(f"{data / INDEX}, line {line}: another image lies there; pack the images again")


def split_pack(delivered: Delivered, shares: Shares, seed: int) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Train, search and test rows, and what there is to note about them.

    A split that the source has is kept: its test images test, its val images are the search split. With a val split
    alone, those test, since nobody else has seen them. What is missing is drawn from the training images.
    """
    given = {name: np.flatnonzero(delivered.splits == name) for name in ("val", "test")}
    if not len(given["test"]):
        given = {"val": given["test"], "test": given["val"]}
    free = np.flatnonzero((delivered.splits == "") | (delivered.splits == "train"))
    parts, notes = split_by_share(
        delivered.rows.labels, delivered.rows.checksums, delivered.card.classes, free, given["val"], given["test"],
        shares, derived_rng("prepare_data", seed),
    )  # fmt: skip
    return {name: delivered.rows.take(rows) for name, rows in parts.items()}, notes


def pack_statistics(data: Path, rows: Split, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, pixels in [0, 1], of the images as they are stored."""
    counts = np.zeros((channels, 256), dtype=np.int64)
    encoded = EncodedImages(data, rows, channels)
    for index in range(len(encoded)):
        pixels = to_pixels(encoded.image(index))
        for channel in range(channels):
            counts[channel] += np.bincount(pixels[channel].reshape(-1), minlength=256)
    return value_statistics(counts)


def describe(delivered: Delivered, splits: dict[str, Split], notes: tuple[str, ...], data: Path) -> DatasetCard:
    """The data set's card."""
    mean, std = pack_statistics(data, splits["train"], delivered.card.channels)
    if min(std) == 0:
        raise AutoFormerError(f"{data}: a channel has one value in all training images; there is nothing to learn from")
    return card_of(delivered, splits, notes, mean, std)


def card_of(
    delivered: Delivered,
    splits: dict[str, Split],
    notes: tuple[str, ...],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> DatasetCard:
    """The card of a pack's data set, with the statistics of its training pixels."""
    card = delivered.card
    refused = f"{card.unreadable} unreadable images were left out" if card.unreadable else ""
    return DatasetCard(
        name=card.name,
        classes=card.classes,
        image_size=card.shorter_side,
        channels=card.channels,
        encoding="image",
        mean=mean,
        std=std,
        counts={name: len(split.labels) for name, split in splits.items()},
        licence=f"not stated: {_OWN}",
        source=f"{_OWN} ({card.layout}), hash {card.hash}",
        archives=card.archives,
        notes=tuple(filter(None, (refused, *notes))),
        split_hashes={name: hash_split(split.checksums, split.labels) for name, split in splits.items()},
    )
