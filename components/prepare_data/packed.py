"""The reader of packs (`pack.pack`)."""

from hashlib import sha256
from pathlib import Path

import numpy as np

from autoformer.errors import AutoFormerError, quantity
from autoformer.images.archives import PREFETCH_IMAGES, EncodedImages
from autoformer.images.split_files import CHECKSUM, Split
from autoformer.images.split_images import check_archive, check_places
from components.prepare_data.delivered import Delivered, make_rows
from components.prepare_data.pack_card import CARD, INDEX, PackCard, read_pack
from runtime.common.tables import read_table
from runtime.storage.data import remote_archives

_OWN = "your own images"


def is_mine(data: Path) -> bool:
    return (data / CARD).is_file()


def read(data: Path) -> Delivered:
    """The images of a pack. Raises `AutoFormerError` if a file in it is missing, damaged or changed."""
    card, index = read_pack(data), data / INDEX
    outside = [name for name in card.archives if Path(name).name != name]
    if outside:
        raise AutoFormerError(f"{data / CARD}: the archive '{outside[0]}' lies outside the pack; pack the images again")
    remote = remote_archives(data)
    if remote is None:
        for name, checksum in card.archives.items():
            check_archive(data / name, checksum)
    rows, splits, originals = _read_index(index, card)
    check_places(rows, index, data, remote)
    encoded = EncodedImages(data, rows, card.channels, reader=remote)
    for number, checksum in enumerate(rows.checksums.tolist()):  # the archives are unchanged, the index may not be
        if number % PREFETCH_IMAGES == 0:
            encoded.prefetch(range(number, min(number + PREFETCH_IMAGES, len(encoded))))
        if sha256(encoded.read(number)).hexdigest().encode() != checksum:
            raise AutoFormerError(f"{index}, line {number + 2}: another image lies there; pack the images again")
    unreadable = (
        [f"{quantity(card.unreadable, 'unreadable image was', 'unreadable images were')} left out"]
        if card.unreadable
        else []
    )
    return Delivered(
        title=card.name,
        classes=card.classes,
        rows=rows,
        splits=splits,
        image_size=card.shorter_side,
        channels=card.channels,
        archives=card.archives,
        licence=f"not stated: {_OWN}",
        source=f"{_OWN} ({card.layout}), hash {card.hash}",
        notes=(*card.notes, *unreadable),
        originals=originals,
        pixels=card.pixels,
    )


def _read_index(index: Path, card: PackCard) -> tuple[Split, np.ndarray, np.ndarray | None]:
    """The rows of the index, the split of each, and its original's checksum, which older packs lack."""
    table = read_table(index)
    if len(table) != sum(card.counts.values()):
        raise AutoFormerError(f"{index}: {quantity(len(table), 'row')}, but {CARD} counts {sum(card.counts.values())}")
    for line, row in enumerate(table, start=2):
        for column, known in (("archive", card.archives), ("split", card.splits)):
            if row.get(column) not in known:
                raise AutoFormerError(
                    f"{index}, line {line}: '{row.get(column)}' is no {column} of the pack; pack the images again"
                )
    label_of = {name: label for label, name in enumerate(card.classes)}
    try:
        rows = make_rows(
            [row["archive"] for row in table],
            [int(row["offset"]) for row in table],
            [int(row["size"]) for row in table],
            [label_of[row["label"]] for row in table],
            [row["checksum"] for row in table],
        )
    except (KeyError, ValueError, OverflowError) as error:
        raise AutoFormerError(f"{index}: not the index of a pack ({error}); pack the images again") from None
    originals = [row.get("original", "") for row in table]
    recorded = all(original.isascii() and original for original in originals)
    splits = np.array([row["split"] for row in table])
    return rows, splits, np.array(originals, dtype=CHECKSUM) if recorded else None
