"""Images of a data set: the card that describes it, the split files that index it, the pixels themselves.

A split is a table with one row an image: the archive that holds it, where in it, its class, and the hash
of its bytes. Images are read out of the archives as they were delivered; nothing is unpacked to disk.

Letters in shapes: n images, C channels, S pixels in height and in width.
"""

import gzip
import hashlib
import os
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, model_validator

from autoformer.errors import AutoFormerError, validated
from autoformer.files import hash_file, read_json, read_yaml, replacing
from autoformer.images import model_pixels

_SCHEMA = pa.schema(
    [
        ("archive", pa.dictionary(pa.int32(), pa.string())),
        ("offset", pa.int64()),
        ("size", pa.int32()),
        ("label", pa.int32()),
        ("checksum", pa.string()),
    ]
)


class DatasetCard(BaseModel):
    """What a data set is, and which archives and splits belong to it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    classes: tuple[str, ...] = Field(min_length=2, description="in the order of their labels, from 0")
    image_size: int = Field(gt=0, description="pixels: raw, in height and in width; image, of the shorter side")
    channels: int = Field(gt=0)
    encoding: Literal["raw", "image"] = Field(
        description="raw: C x S x S bytes an image; offsets count in the decompressed archive if it is a .gz. "
        "image: a PNG or JPEG file in an archive that is not compressed"
    )
    mean: tuple[float, ...] = Field(description="by channel, of the train split's pixels in [0, 1]")
    std: tuple[float, ...] = Field(description="by channel, of the train split's pixels in [0, 1]")
    counts: dict[str, int] = Field(description="images of each split")
    licence: str
    source: str
    archives: dict[str, str] = Field(description="file name in the data folder -> sha256 of the file")
    upright: bool = Field(True, description="whether an image is turned as its camera noted")
    notes: tuple[str, ...] = Field((), description="what a reader of the card should know, a sentence each")
    split_hashes: dict[str, str] = Field(description="split -> hash_split of its rows")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not len(self.mean) == len(self.std) == self.channels or min(self.std) <= 0:
            raise ValueError(f"mean and std: expected {self.channels} values each, the deviations above 0")
        outside = [name for name in self.archives if Path(name).name != name]
        if outside:
            raise ValueError(f"the archive '{outside[0]}' lies outside the data folder")
        return self


class Source(BaseModel):
    """`source.yaml` of a data folder whose archives are too large to lie in it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    location: Path = Field(description="the folder of the archives; a relative one is seen from the data folder")


SOURCE = "source.yaml"


def archive_folder(data: Path) -> Path:
    """Where the archives of a data folder lie: in it, or where its `source.yaml` says."""
    file = data / SOURCE
    return data / validated(Source, read_yaml(file), str(file)).location if file.is_file() else data


class Split(NamedTuple):
    """Rows of a split as columns of one length; `archives` and `checksums` hold strings."""

    archives: np.ndarray
    offsets: np.ndarray  # int64, bytes
    sizes: np.ndarray  # int32, bytes
    labels: np.ndarray  # int32
    checksums: np.ndarray  # sha256 of each image's bytes, hexadecimal

    def take(self, rows: np.ndarray) -> "Split":
        """The given rows, in the given order."""
        return Split(*(column[rows] for column in self))


class Images(NamedTuple):
    pixels: np.ndarray  # uint8 (n, C, S, S)
    labels: np.ndarray  # int64 (n,)
    checksums: list[str]


def read_card(path: Path) -> DatasetCard:
    """Raises `AutoFormerError` where the file is missing, damaged or not a card."""
    return validated(DatasetCard, read_json(path), str(path))


def hash_split(checksums: Iterable[str], labels: Iterable[int]) -> str:
    """sha256 of the ordered (checksum, label) rows: equal for equal images, wherever they are stored."""
    rows = "".join(f"{checksum},{int(label)}\n" for checksum, label in zip(checksums, labels, strict=True))
    return hashlib.sha256(rows.encode()).hexdigest()


def image_checksums(pixels: np.ndarray) -> np.ndarray:
    """sha256 of each image's bytes, as strings. `pixels`: uint8 (n, ...)."""
    return np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in pixels], dtype="U64")


def pixel_statistics(pixels: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, pixels in [0, 1]. `pixels`: uint8 (n, C, S, S).

    Counted by value, so that the result depends neither on the order of the images nor on how a sum is split.
    """
    channels = range(pixels.shape[1])
    return value_statistics([np.bincount(pixels[:, channel].reshape(-1), minlength=256) for channel in channels])


def value_statistics(counts: Iterable[np.ndarray]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, pixels in [0, 1]. `counts`: pixels of each value 0 to 255."""
    values = np.arange(256) / 255
    means, deviations = [], []
    for of_channel in counts:
        share = of_channel / of_channel.sum()
        mean = float((share * values).sum())
        means.append(mean)
        deviations.append(float(np.sqrt((share * (values - mean) ** 2).sum())))
    return tuple(means), tuple(deviations)


def write_split(path: Path, split: Split) -> None:
    """Write a split file, whole or not at all. Equal rows give equal bytes (with one version of pyarrow)."""
    columns = [
        pa.array(split.archives.tolist(), pa.string()).dictionary_encode(),
        pa.array(split.offsets, pa.int64()),
        pa.array(split.sizes, pa.int32()),
        pa.array(split.labels, pa.int32()),
        pa.array(split.checksums.tolist(), pa.string()),
    ]
    table = pa.Table.from_arrays(columns, schema=_SCHEMA)
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", use_dictionary=["archive", "label"])


def read_split(path: Path) -> Split:
    """Raises `AutoFormerError` where the file is missing, damaged or not a split."""
    if not path.is_file():
        raise AutoFormerError(f"{path}: no such split file; it is made by prepare_data")
    try:
        table = pq.read_table(path).select(_SCHEMA.names).cast(_SCHEMA)
    except (pa.ArrowException, OSError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise AutoFormerError(f"{path}: not readable as a split ({reason}); run prepare_data again") from None
    empty = [name for name in table.column_names if table[name].null_count]
    if empty:
        raise AutoFormerError(f"{path}: empty values in column '{empty[0]}'; run prepare_data again")
    archives, checksums = (np.array(table[name].to_pylist(), dtype=np.str_) for name in ("archive", "checksum"))
    offsets, sizes, labels = (table[name].to_numpy() for name in ("offset", "size", "label"))
    return Split(archives, offsets, sizes, labels, checksums)


def read_archive(path: Path) -> bytes:
    """All bytes of an archive, decompressed where its name ends in .gz.

    Raises `AutoFormerError` where it is missing or damaged.
    """
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except FileNotFoundError:
        raise AutoFormerError(f"{path}: no such archive; `make data` fetches it") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise AutoFormerError(f"{path}: not readable as gzip ({error}); `make data` fetches it again") from None


def check_archive(path: Path, sha256: str) -> None:
    """Raise `AutoFormerError` unless the file is there and has this checksum."""
    if not path.is_file():
        raise AutoFormerError(f"{path}: no such archive; `make data` fetches it")
    found = hash_file(path)
    if found != sha256:
        raise AutoFormerError(
            f"{path}: sha256 is {found[:12]}…, not {sha256[:12]}… as expected; `make data` fetches it again"
        )


def load_images(
    split: Path, data: Path, card: DatasetCard, limit: int | None = None, image_size: int | None = None
) -> Images:
    """Read the images of a split into memory, in the order of its rows.

    Args:
        split: a split file that `card` names by its hash.
        data: the folder of the archives.
        card: the data set's card.
        limit: read the first so many images; None for all.
        image_size: S, to which encoded images are resized and cut (`autoformer.images.model_pixels`); by default
            the card's. Raw images have one size.

    Raises:
        AutoFormerError: one line, where the split is missing, damaged or not of this card, an archive is
            missing or has another checksum than on the card, or a row points outside its archive.
    """
    rows = read_rows(split, data, card)
    if limit is not None:
        if not 0 < limit <= len(rows.labels):
            raise AutoFormerError(f"{split}: {limit} images wanted, but it holds {len(rows.labels)}")
        rows = rows.take(np.arange(limit))
    pixels = _raw_pixels(rows, split, data, card) if card.encoding == "raw" else _decoded(rows, data, card, image_size)
    return Images(pixels, rows.labels.astype(np.int64), rows.checksums.tolist())


def read_rows(split: Path, data: Path, card: DatasetCard) -> Split:
    """The rows of a split, after checking them against the card and, for encoded images, the archives too.

    Raises `AutoFormerError` as `load_images` does.
    """
    rows = read_split(split)
    _check_rows(rows, split, card)
    if card.encoding == "image":
        for name in sorted(set(rows.archives.tolist())):
            _check_named(name, split, card)
            check_archive(data / name, card.archives[name])
        check_places(rows, split, data)
    return rows


def check_places(rows: Split, split: Path, data: Path) -> None:
    """Raise `AutoFormerError` where a row of `split` points outside its archive, a file that is not compressed."""
    for name in sorted(set(rows.archives.tolist())):
        _check_archive_places(rows, name, data, split)


def _check_archive_places(rows: Split, name: str, data: Path, split: Path) -> None:
    here, end = rows.archives == name, (data / name).stat().st_size
    offsets, sizes = rows.offsets[here], rows.sizes[here].astype(np.int64)
    if offsets.min() < 0 or sizes.min() <= 0 or (sizes > end).any() or (offsets > end - sizes).any():
        raise AutoFormerError(f"{split}: an image lies outside {name} ({end} bytes); run prepare_data again")


def _raw_pixels(rows: Split, split: Path, data: Path, card: DatasetCard) -> np.ndarray:
    flat = np.empty((len(rows.labels), card.channels * card.image_size**2), dtype=np.uint8)
    for name in sorted(set(rows.archives.tolist())):
        here = np.flatnonzero(rows.archives == name)
        flat[here] = _cut_out(data, name, card, rows.offsets[here], split)
    return flat.reshape(-1, card.channels, card.image_size, card.image_size)  # (n, C, S, S)


def _decoded(rows: Split, data: Path, card: DatasetCard, image_size: int | None) -> np.ndarray:
    """Decode on all cores: Pillow lets go of the interpreter meanwhile."""
    from autoformer.archives import EncodedImages

    size = image_size or card.image_size
    encoded = EncodedImages(data, rows, card.channels, card.upright)
    pixels = np.empty((len(encoded), card.channels, size, size), dtype=np.uint8)

    def decode(index: int) -> None:
        pixels[index] = model_pixels(encoded.image(index), card.channels, size)

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for _ in pool.map(decode, range(len(encoded))):
            pass
    return pixels


def _check_rows(rows: Split, split: Path, card: DatasetCard) -> None:
    if len(rows.labels) == 0:
        raise AutoFormerError(f"{split}: holds no images; run prepare_data again")
    if hash_split(rows.checksums, rows.labels) not in card.split_hashes.values():
        raise AutoFormerError(f"{split}: not a split of the card of {card.name}; run prepare_data again")
    if rows.labels.min() < 0 or rows.labels.max() >= len(card.classes):
        raise AutoFormerError(f"{split}: a label lies outside the {len(card.classes)} classes; run prepare_data again")
    image_bytes = card.channels * card.image_size**2
    if card.encoding == "raw" and (rows.sizes != image_bytes).any():
        raise AutoFormerError(f"{split}: an image has another size than {image_bytes} bytes; run prepare_data again")


def _cut_out(data: Path, name: str, card: DatasetCard, offsets: np.ndarray, split: Path) -> np.ndarray:
    """The images at `offsets` (bytes) of one archive: uint8 (len(offsets), C * S * S)."""
    _check_named(name, split, card)
    check_archive(data / name, card.archives[name])
    content = np.frombuffer(read_archive(data / name), dtype=np.uint8)
    image_bytes = card.channels * card.image_size**2
    outside = offsets[(offsets < 0) | (offsets > len(content) - image_bytes)]
    if len(outside):
        raise AutoFormerError(
            f"{split}: an image of {image_bytes} bytes at offset {outside[0]} lies outside {name} "
            f"({len(content)} bytes); run prepare_data again"
        )
    images: np.ndarray = np.lib.stride_tricks.sliding_window_view(content, image_bytes)[offsets]
    return images


def _check_named(name: str, split: Path, card: DatasetCard) -> None:
    if name not in card.archives:
        raise AutoFormerError(f"{split}: names the archive '{name}', which the card does not; run prepare_data again")
