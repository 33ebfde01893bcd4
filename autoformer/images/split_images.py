"""The images of a split: rows checked against the card, and pixels read into memory. Torch-free.

Images are read from the archives; nothing is unpacked to disk.

Dimensions: n images, C channels, S pixels on a side.
"""

import gzip
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from autoformer.bounds import BOUNDS
from autoformer.cores import cores
from autoformer.errors import AutoFormerError, quantity
from autoformer.files import check_regular, hash_file
from autoformer.images.archives import PREFETCH_IMAGES, EncodedImages, RemoteReader
from autoformer.images.card import DatasetCard
from autoformer.images.pixels import model_pixels
from autoformer.images.source import archive_folder
from autoformer.images.split_files import Split, hash_split, read_split

HashOf = Callable[[Path], str]  # sha256 of a file


class DecodedSplit(NamedTuple):
    pixels: np.ndarray  # uint8 (n, C, S, S)
    labels: np.ndarray  # int64 (n,)
    checksums: list[str]


def load_images(
    split: Path,
    data: Path,
    card: DatasetCard,
    limit: int | None = None,
    image_size: int | None = None,
    name: str | None = None,
    hash_of: HashOf = hash_file,
    reader: RemoteReader | None = None,
) -> DecodedSplit:
    """Read the images of a split into memory, in the order of its rows.

    Args:
        split: a split file whose hash is on the card.
        data: the folder of the archives, or of the `source.yaml` that names it.
        limit: read the first images only.
        image_size: S of encoded images (`autoformer.images.pixels.model_pixels`); by default the card's.
        name: the split on the card; None for any.
        hash_of: returns the sha256 of an archive, such as a `HashCache`.
        reader: reads remote archives. The checksum of each image is then checked instead of the archive's.

    Raises:
        AutoFormerError: the split is missing, damaged or not on the card, an archive is missing or has another
            checksum, or a row is outside its archive.
    """
    rows = read_rows(split, data, card, name, hash_of, reader)
    if limit is not None:
        if not 0 < limit <= len(rows.labels):
            raise AutoFormerError(f"{split}: {quantity(limit, 'image')} wanted, but it holds {len(rows.labels)}")
        rows = rows.take(np.arange(limit))
    if card.encoding == "raw":
        assert card.image_size is not None
        pixels = raw_pixels(rows, data, card.channels, card.image_size, split)
    else:
        pixels = _decoded(rows, data, card, image_size, reader)
    checksums = [checksum.decode() for checksum in rows.checksums.tolist()]
    return DecodedSplit(pixels, rows.labels.astype(np.int64), checksums)


def read_rows(
    split: Path,
    data: Path,
    card: DatasetCard,
    name: str | None = None,
    hash_of: HashOf = hash_file,
    reader: RemoteReader | None = None,
) -> Split:
    """The rows of a split, checked against the card, and its archives; of remote archives only the size is checked.

    Arguments and errors as in `load_images`.
    """
    rows = read_split(split)
    _check_rows(rows, split, card, name)
    if card.files:
        return rows
    for archive in archive_names(rows):
        if archive not in card.archives:
            raise AutoFormerError(
                f"{split}: names the archive '{archive}', which the card does not; run prepare_data again"
            )
        if reader is None:
            check_archive(archive_folder(data) / archive, card.archives[archive], hash_of)
    if card.encoding == "image":
        check_places(rows, split, data, reader)
    return rows


def archive_names(rows: Split) -> list[str]:
    """Names of the archives of these rows, sorted."""
    return sorted(set(rows.archives.tolist()))


def check_places(rows: Split, split: Path, data: Path, reader: RemoteReader | None = None) -> None:
    """Raise `AutoFormerError` if a row of `split` points outside its uncompressed archive."""
    size_of = reader.size_of if reader else lambda name: (archive_folder(data) / name).stat().st_size
    for name in archive_names(rows):
        here, end = rows.archives == name, size_of(name)
        offsets, sizes = rows.offsets[here], rows.sizes[here].astype(np.int64)
        if offsets.min() < 0 or sizes.min() <= 0 or (sizes > end).any() or (offsets > end - sizes).any():
            raise AutoFormerError(
                f"{split}: an image lies outside {name} ({quantity(end, 'byte')}); run prepare_data again"
            )


def raw_pixels(rows: Split, data: Path, channels: int, image_size: int, split: Path | None = None) -> np.ndarray:
    """Raw images: uint8 (n, C, S, S).

    Raises `AutoFormerError` if an archive is missing or damaged, or a row of `split` is outside it.
    """
    folder, image_bytes = archive_folder(data), channels * image_size**2
    flat = np.empty((len(rows.labels), image_bytes), dtype=np.uint8)
    for name in archive_names(rows):
        here = np.flatnonzero(rows.archives == name)
        content = np.frombuffer(read_archive(folder / name), dtype=np.uint8)
        offsets = rows.offsets[here]
        outside = offsets[(offsets < 0) | (offsets > len(content) - image_bytes)]
        if len(outside):
            raise AutoFormerError(
                f"{split or data}: an image of {quantity(image_bytes, 'byte')} at offset {outside[0]} lies outside "
                f"{name} ({quantity(len(content), 'byte')}); run prepare_data again"
            )
        flat[here] = np.lib.stride_tricks.sliding_window_view(content, image_bytes)[offsets]
    return flat.reshape(-1, channels, image_size, image_size)


def read_archive(path: Path) -> bytes:
    """All bytes of an archive, decompressed if it is a .gz. Raises `AutoFormerError` if it is missing or damaged."""
    try:
        check_regular(path)
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(BOUNDS.archive_bytes + 1)
    except FileNotFoundError:
        raise AutoFormerError(f"{path}: no such archive; `make data` fetches it") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise AutoFormerError(f"{path}: not readable as gzip ({error}); `make data` fetches it again") from None
    if len(content) > BOUNDS.archive_bytes:
        raise AutoFormerError(f"{path}: holds more than {BOUNDS.archive_bytes >> 20} MB; `make data` fetches it again")
    return content


def check_archive(path: Path, sha256: str, hash_of: HashOf = hash_file) -> None:
    """Raise `AutoFormerError` unless the file exists and has this checksum."""
    if not path.is_file():
        raise AutoFormerError(f"{path}: no such archive; `make data` fetches it")
    found = hash_of(path)
    if found != sha256:
        raise AutoFormerError(
            f"{path}: sha256 is {found[:12]}…, not {sha256[:12]}… as expected; `make data` fetches it again"
        )


def _decoded(
    rows: Split, data: Path, card: DatasetCard, image_size: int | None, reader: RemoteReader | None
) -> np.ndarray:
    """Decode with threads: Pillow releases the GIL."""
    size = image_size or card.image_size
    if size is None:
        raise AutoFormerError(f"{card.name}: its images are of any size; name the size to which they are resized")
    encoded = EncodedImages(data, rows, card.channels, card.upright, card.files, reader, card.pixels)
    pixels = np.empty((len(encoded), card.channels, size, size), dtype=np.uint8)

    def decode(index: int) -> None:
        pixels[index] = model_pixels(encoded.image(index), card.channels, size)

    with ThreadPoolExecutor(min(16, cores())) as pool:
        for first in range(0, len(encoded), PREFETCH_IMAGES):
            here = range(first, min(first + PREFETCH_IMAGES, len(encoded)))
            encoded.prefetch(here)
            for _ in pool.map(decode, here):
                pass
    return pixels


def _check_rows(rows: Split, split: Path, card: DatasetCard, name: str | None) -> None:
    if len(rows.labels) == 0:
        raise AutoFormerError(f"{split}: holds no images; run prepare_data again")
    found = hash_split(rows.checksums, rows.labels)
    if found not in card.split_hashes.values():
        raise AutoFormerError(f"{split}: not a split of the card of {card.name}; run prepare_data again")
    if name is not None and found != card.split_hashes.get(name):
        wanted = card.split_hashes.get(name, "")[:12] or "none"
        raise AutoFormerError(
            f"{split}: its hash is {found[:12]}…, but the card's {name} split has {wanted}…; "
            f"give the {name} split that prepare_data made with this card"
        )
    if rows.labels.min() < 0 or rows.labels.max() >= len(card.classes):
        raise AutoFormerError(
            f"{split}: a label lies outside the {quantity(len(card.classes), 'class')}; run prepare_data again"
        )
    if card.files:
        outside = [archive for archive in rows.archives if archive.startswith("/") or ".." in archive.split("/")]
        if outside:
            raise AutoFormerError(f"{split}: '{outside[0]}' lies outside the data folder; run prepare_data again")
    image_bytes = card.channels * (card.image_size or 0) ** 2
    if card.encoding == "raw" and (rows.sizes != image_bytes).any():
        raise AutoFormerError(
            f"{split}: an image has another size than {quantity(image_bytes, 'byte')}; run prepare_data again"
        )
