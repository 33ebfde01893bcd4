"""The images of a pack, which `pack` has made of a user's."""

from hashlib import sha256
from pathlib import Path

import numpy as np

from autoformer.errors import AutoFormerError
from autoformer.images.archives import PREFETCH_IMAGES, EncodedImages, RemoteReader
from autoformer.images.split_files import Split
from autoformer.images.split_images import check_archive, check_places
from components.prepare_data.delivered import Delivered
from components.prepare_data.pack import CARD, INDEX, PackCard, read_pack
from runtime.common.tables import read_table
from runtime.storage.data import remote_archives

_OWN = "your own images"


def is_mine(data: Path) -> bool:
    return (data / CARD).is_file()


def read(data: Path) -> Delivered:
    """The images of a pack. Raises `AutoFormerError` where a file of it is missing, damaged or changed."""
    card = read_pack(data)
    outside = [name for name in card.archives if Path(name).name != name]
    if outside:
        raise AutoFormerError(f"{data / CARD}: the archive '{outside[0]}' lies outside the pack; pack the images again")
    remote = remote_archives(data)
    if remote is None:
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
    check_places(rows, data / INDEX, data, remote)
    _check_content(rows, data, remote)
    return Delivered(
        title=card.name,
        classes=card.classes,
        rows=rows,
        splits=np.array([row["split"] for row in table]),
        encoding="image",
        image_size=card.shorter_side,
        channels=card.channels,
        archives=card.archives,
        licence=f"not stated: {_OWN}",
        source=f"{_OWN} ({card.layout}), hash {card.hash}",
        notes=(f"{card.unreadable} unreadable images were left out",) if card.unreadable else (),
    )


def _check_table(table: list[dict[str, str]], card: PackCard, data: Path) -> None:
    """Refuse rows that point outside the pack's archives, or into a split that there is not."""
    for line, row in enumerate(table, start=2):
        where = f"{data / INDEX}, line {line}"
        if row.get("archive") not in card.archives:
            raise AutoFormerError(f"{where}: '{row.get('archive')}' is no archive of the pack; pack the images again")
        if row.get("split") not in card.splits:
            raise AutoFormerError(f"{where}: '{row.get('split')}' is no split of the pack; pack the images again")


def _check_content(rows: Split, data: Path, remote: RemoteReader | None) -> None:
    """Refuse an index that does not say where the images are: the archives are as they were packed, it may not be."""
    encoded = EncodedImages(data, rows, 3, reader=remote)
    for index, checksum in enumerate(rows.checksums.tolist()):
        if index % PREFETCH_IMAGES == 0:
            encoded.prefetch(range(index, min(index + PREFETCH_IMAGES, len(encoded))))
        if sha256(encoded.read(index)).hexdigest() != checksum:
            line = index + 2
            raise AutoFormerError(f"{data / INDEX}, line {line}: another image lies there; pack the images again")
