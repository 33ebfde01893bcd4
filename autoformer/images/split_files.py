"""Split files: a table with one row an image, the archive that holds it, where in it, class and hash. Torch-free."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from autoformer.errors import AutoFormerError
from autoformer.files import replacing

SPLIT_SCHEMA = pa.schema(
    [
        ("archive", pa.dictionary(pa.int32(), pa.string())),
        ("offset", pa.int64()),
        ("size", pa.int32()),
        ("label", pa.int32()),
        ("checksum", pa.string()),
    ]
)
CHECKSUM = np.dtype("S64")  # of `Split.checksums`
_FIXED = pa.binary(64)
_AT_A_TIME = 65536  # rows that are Python objects at once


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
