"""Images of a data set: the card that describes it, the split files that index it, the pixels themselves.

A split is a table with one row an image: the archive that holds it, where in it, its class, and the hash
of its bytes. Images are read out of the archives as they were delivered; nothing is unpacked to disk.

Letters in shapes: n images, C channels, S pixels in height and in width.
"""

import gzip
import hashlib
import os
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from autoformer.errors import AutoFormerError, validated
from autoformer.files import hash_file, read_json, read_yaml, replacing
from autoformer.images import model_pixels

if TYPE_CHECKING:
    from autoformer.archives import RemoteReader

SPLIT_SCHEMA = pa.schema(
    [
        ("archive", pa.dictionary(pa.int32(), pa.string())),
        ("offset", pa.int64()),
        ("size", pa.int32()),
        ("label", pa.int32()),
        ("checksum", pa.string()),
    ]
)
_FIXED = pa.binary(64)


CHECKSUM = np.dtype("S64")  # of `Split.checksums`
_AT_A_TIME = 65536  # rows that are Python objects at once
HashOf = Callable[[Path], str]  # sha256 of a file


class DatasetCard(BaseModel):
    """What a data set is, and which archives and splits belong to it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    classes: tuple[str, ...] = Field(min_length=2, description="in the order of their labels, from 0")
    image_size: int | None = Field(
        gt=0, description="pixels: raw, in height and in width; image, of the shorter side, null for any size"
    )
    channels: int = Field(gt=0)
    encoding: Literal["raw", "image"] = Field(
        description="raw: C x S x S bytes an image; offsets count in the decompressed archive if it is a .gz. "
        "image: a PNG or JPEG file in an archive that is not compressed"
    )
    mean: tuple[float, ...] = Field(description="by channel, of pixels in [0, 1]: by which they are normalised")
    std: tuple[float, ...] = Field(description="by channel, of pixels in [0, 1]: by which they are normalised")
    counts: dict[str, int] = Field(description="images of each split")
    licence: str
    source: str
    archives: dict[str, str] = Field(description="file name in the data folder -> sha256 of the file; none of `files`")
    files: bool = Field(
        False,
        description="whether each image is a file of its own, which its row names by its path below the data folder; "
        "the checksums are then those of the rows, and each reading is held against them",
    )
    upright: bool = Field(True, description="whether an image is turned as its camera noted")
    notes: tuple[str, ...] = Field((), description="what a reader of the card should know, a sentence each")
    split_hashes: dict[str, str] = Field(description="split -> hash_split of its rows")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.encoding == "raw" and self.image_size is None:
            raise ValueError("image_size: raw images have one")
        if not len(self.mean) == len(self.std) == self.channels or min(self.std) <= 0:
            raise ValueError(f"mean and std: expected {self.channels} values each, the deviations above 0")
        if self.files and (self.archives or self.encoding != "image"):
            raise ValueError("files: image files of their own lie in no archives, and are not raw")
        outside = [name for name in self.archives if Path(name).name != name]
        if outside:
            raise ValueError(f"the archive '{outside[0]}' lies outside the data folder")
        return self


class SourceArchive(BaseModel):
    """What a large archive must be, told before it is read (bytes) and after."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    md5: str
    bytes: int | None = Field(None, gt=0)


def _location(value: Any) -> Any:
    return Path(value) if isinstance(value, str) and not value.startswith(REMOTE) else value


class Source(BaseModel):
    """`source.yaml` of a data folder whose archives are too large to lie in it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    location: Annotated[Path | str, BeforeValidator(_location)] = Field(
        description="the folder of the archives, a relative one as seen from the data folder; or s3://bucket/folder"
    )
    archives: dict[str, SourceArchive] = Field({}, description="by file name, where they are published ones")


SOURCE = "source.yaml"
REMOTE = "s3://"  # begins a location that is no folder


def archive_folder(data: Path) -> Path:
    """Where the archives of a data folder lie: in it, or where its `source.yaml` says.

    Raises `AutoFormerError` where that is no folder: then a reader of that place has to be given.
    """
    location = read_source(data).location if (data / SOURCE).is_file() else Path()
    if isinstance(location, str):
        raise AutoFormerError(
            f"{data / SOURCE}: the archives lie at {location}, which is no folder; the steps read from there, "
            "for anything else copy them to a disk"
        )
    return data / location


def read_source(data: Path) -> Source:
    """Raises `AutoFormerError` where the data folder has no `source.yaml`, or one that is not as it should be."""
    file = data / SOURCE
    return validated(Source, read_yaml(file), str(file))


class Split(NamedTuple):
    """Rows of a split as columns of one length; a hundred bytes an image, since there may be millions."""

    archives: np.ndarray  # file names: objects that many rows share, or numpy's strings
    offsets: np.ndarray  # int64, bytes
    sizes: np.ndarray  # int32, bytes
    labels: np.ndarray  # int32
    checksums: np.ndarray  # S64, sha256 of each image's bytes, hexadecimal

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


def hash_split(checksums: Iterable[str] | np.ndarray, labels: Iterable[int] | np.ndarray) -> str:
    """sha256 of the ordered (checksum, label) rows: equal for equal images, wherever they are stored."""
    texts, numbers = np.asarray(checksums, dtype=CHECKSUM), np.asarray(labels)
    if len(texts) != len(numbers):
        raise ValueError(f"{len(texts)} checksums, {len(numbers)} labels")
    found = hashlib.sha256()
    for start in range(0, len(texts), _AT_A_TIME):
        here = slice(start, start + _AT_A_TIME)
        pairs = zip(texts[here].tolist(), numbers[here].tolist(), strict=True)
        found.update(b"".join([b"%s,%d\n" % pair for pair in pairs]))
    return found.hexdigest()


def image_checksums(pixels: np.ndarray) -> np.ndarray:
    """sha256 of each image's bytes, hexadecimal, S64. `pixels`: uint8 (n, ...)."""
    return np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in pixels], dtype=CHECKSUM)


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
    with replacing(path) as temporary:
        pq.write_table(split_table(split), temporary, compression="zstd", use_dictionary=["archive", "label"])


def split_table(split: Split) -> pa.Table:
    """The rows as they stand in a split file."""
    columns = [
        _encode_names(split.archives),
        pa.array(split.offsets, pa.int64()),
        pa.array(split.sizes, pa.int32()),
        pa.array(split.labels, pa.int32()),
        _encode_checksums(split.checksums),
    ]
    return pa.Table.from_arrays(columns, schema=SPLIT_SCHEMA)


def _encode_names(names: np.ndarray) -> pa.DictionaryArray:
    """In the order in which they first occur."""
    places: dict[str, int] = {}
    rows = np.fromiter((places.setdefault(name, len(places)) for name in names), np.int32, len(names))
    return pa.DictionaryArray.from_arrays(pa.array(rows), pa.array(list(places), pa.string()))


def _encode_checksums(checksums: np.ndarray) -> pa.Array:
    content = np.ascontiguousarray(checksums, dtype=CHECKSUM)
    fixed = pa.FixedSizeBinaryArray.from_buffers(_FIXED, len(content), [None, pa.py_buffer(content)])
    return fixed.cast(pa.binary()).cast(pa.string())


def read_split(path: Path) -> Split:
    """Raises `AutoFormerError` where the file is missing, damaged or not a split."""
    if not path.is_file():
        raise AutoFormerError(f"{path}: no such split file; it is made by prepare_data")
    names: dict[str, str] = {}
    try:
        with pq.ParquetFile(path) as file:
            rows, done = _room(file.metadata.num_rows), 0
            for batch in file.iter_batches(_AT_A_TIME):  # twice all rows in memory would be most of what a step takes
                for column, found in zip(rows, _columns(batch, names, path), strict=True):
                    column[done : done + batch.num_rows] = found
                done += batch.num_rows
    except (pa.ArrowException, OSError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise AutoFormerError(f"{path}: not readable as a split ({reason}); run prepare_data again") from None
    return rows


def _room(rows: int) -> Split:
    kinds = (np.dtype(object), np.dtype(np.int64), np.dtype(np.int32), np.dtype(np.int32), CHECKSUM)
    return Split(*(np.empty(rows, kind) for kind in kinds))


def _columns(batch: pa.RecordBatch, names: dict[str, str], path: Path) -> Split:
    """Some rows of a split file; `names` keeps one object for each name."""
    batch = batch.select(SPLIT_SCHEMA.names).cast(SPLIT_SCHEMA)
    empty = [name for name in batch.schema.names if batch[name].null_count]
    if empty:
        raise AutoFormerError(f"{path}: empty values in column '{empty[0]}'; run prepare_data again")
    archives, checksums = batch["archive"], batch["checksum"].cast(pa.binary()).cast(_FIXED)
    shared = np.array([names.setdefault(name, name) for name in archives.dictionary.to_pylist()], object)
    offsets, sizes, labels = (batch[name].to_numpy() for name in ("offset", "size", "label"))
    return Split(
        shared[archives.indices.to_numpy()],
        offsets,
        sizes,
        labels,
        np.frombuffer(checksums.buffers()[1], CHECKSUM, len(checksums), checksums.offset * CHECKSUM.itemsize),
    )


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


def check_archive(path: Path, sha256: str, hash_of: HashOf = hash_file) -> None:
    """Raise `AutoFormerError` unless the file is there and has this checksum."""
    if not path.is_file():
        raise AutoFormerError(f"{path}: no such archive; `make data` fetches it")
    found = hash_of(path)
    if found != sha256:
        raise AutoFormerError(
            f"{path}: sha256 is {found[:12]}…, not {sha256[:12]}… as expected; `make data` fetches it again"
        )


def load_images(
    split: Path,
    data: Path,
    card: DatasetCard,
    limit: int | None = None,
    image_size: int | None = None,
    name: str | None = None,
    hash_of: HashOf = hash_file,
    reader: "RemoteReader | None" = None,
) -> Images:
    """Read the images of a split into memory, in the order of its rows.

    Args:
        split: a split file that `card` names by its hash.
        data: the folder of the archives, or of the card that says where they are.
        card: the data set's card.
        limit: read the first so many images; None for all.
        image_size: S, to which encoded images are resized and cut (`autoformer.images.model_pixels`); by default
            the card's. Raw images have one size.
        name: which of the card's splits it must be; None for any.
        hash_of: sha256 of an archive; one that remembers it spares reading a large one each time.
        reader: of archives that lie elsewhere than in files. Instead of a whole archive each image is then held
            against its checksum.

    Raises:
        AutoFormerError: one line, where the split is missing, damaged or not of this card, an archive is
            missing or has another checksum than on the card, or a row points outside its archive.
    """
    rows = read_rows(split, data, card, name, hash_of, reader)
    if limit is not None:
        if not 0 < limit <= len(rows.labels):
            raise AutoFormerError(f"{split}: {limit} images wanted, but it holds {len(rows.labels)}")
        rows = rows.take(np.arange(limit))
    if card.encoding == "raw":
        assert card.image_size is not None
        pixels = raw_pixels(rows, data, card.channels, card.image_size, split)
    else:
        pixels = _decoded(rows, data, card, image_size, reader)
    return Images(pixels, rows.labels.astype(np.int64), [checksum.decode() for checksum in rows.checksums.tolist()])


def read_rows(
    split: Path,
    data: Path,
    card: DatasetCard,
    name: str | None = None,
    hash_of: HashOf = hash_file,
    reader: "RemoteReader | None" = None,
) -> Split:
    """The rows of a split, after checking them against the card, and the archives too.

    Of archives that lie elsewhere (`reader`) it is seen only that they are there and large enough.

    Raises `AutoFormerError` as `load_images` does.
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
    """The archives that hold these rows, sorted."""
    return sorted(set(rows.archives.tolist()))


def check_places(rows: Split, split: Path, data: Path, reader: "RemoteReader | None" = None) -> None:
    """Raise `AutoFormerError` where a row of `split` points outside its archive, a file that is not compressed."""
    size_of = reader.size_of if reader else lambda name: (archive_folder(data) / name).stat().st_size
    for name in archive_names(rows):
        here, end = rows.archives == name, size_of(name)
        offsets, sizes = rows.offsets[here], rows.sizes[here].astype(np.int64)
        if offsets.min() < 0 or sizes.min() <= 0 or (sizes > end).any() or (offsets > end - sizes).any():
            raise AutoFormerError(f"{split}: an image lies outside {name} ({end} bytes); run prepare_data again")


def raw_pixels(rows: Split, data: Path, channels: int, image_size: int, split: Path | None = None) -> np.ndarray:
    """Images that are stored as they are: uint8 (n, C, S, S).

    Raises `AutoFormerError` where an archive is missing or damaged, or a row of `split` points outside of it.
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
                f"{split or data}: an image of {image_bytes} bytes at offset {outside[0]} lies outside {name} "
                f"({len(content)} bytes); run prepare_data again"
            )
        flat[here] = np.lib.stride_tricks.sliding_window_view(content, image_bytes)[offsets]
    return flat.reshape(-1, channels, image_size, image_size)


def _decoded(
    rows: Split, data: Path, card: DatasetCard, image_size: int | None, reader: "RemoteReader | None"
) -> np.ndarray:
    """Decode on all cores: Pillow lets go of the interpreter meanwhile."""
    from autoformer.archives import TOGETHER, EncodedImages

    size = image_size or card.image_size
    if size is None:
        raise AutoFormerError(f"{card.name}: its images are of any size; say to which they are resized")
    encoded = EncodedImages(data, rows, card.channels, card.upright, card.files, reader)
    pixels = np.empty((len(encoded), card.channels, size, size), dtype=np.uint8)

    def decode(index: int) -> None:
        pixels[index] = model_pixels(encoded.image(index), card.channels, size)

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for first in range(0, len(encoded), TOGETHER):
            here = range(first, min(first + TOGETHER, len(encoded)))
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
        raise AutoFormerError(f"{split}: a label lies outside the {len(card.classes)} classes; run prepare_data again")
    if card.files:
        outside = [archive for archive in rows.archives if archive.startswith("/") or ".." in archive.split("/")]
        if outside:
            raise AutoFormerError(f"{split}: '{outside[0]}' lies outside the data folder; run prepare_data again")
    image_bytes = card.channels * (card.image_size or 0) ** 2
    if card.encoding == "raw" and (rows.sizes != image_bytes).any():
        raise AutoFormerError(f"{split}: an image has another size than {image_bytes} bytes; run prepare_data again")
