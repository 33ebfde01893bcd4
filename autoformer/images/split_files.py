"""Split files: parquet tables with one row per image: archive, offset, size, label and checksum. Torch-free."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from autoformer.bounds import BOUNDS
from autoformer.errors import AutoFormerError, quantity
from autoformer.files import check_regular, replacing
from autoformer.reading import in_short

SPLIT_SCHEMA = pa.schema(
    [
        ("archive", pa.dictionary(pa.int32(), pa.string())),
        ("offset", pa.int64()),
        ("size", pa.int32()),
        ("label", pa.int32()),
        ("checksum", pa.string()),
    ]
)
CHECKSUM = np.dtype("S64")
_COLUMN_TYPES = (np.dtype(object), np.dtype(np.int64), np.dtype(np.int32), np.dtype(np.int32), CHECKSUM)
_FIXED = pa.binary(64)
_THRIFT = 2**20  # limit of entries in a list of the metadata
_FEW_ROWS = 2**20  # so many rows may take any space
_CHUNK_ROWS = 65536  # rows converted to Python objects at once


class Split(NamedTuple):
    """The rows of a split as columns of one length: about 100 bytes per image, since there may be millions."""

    archives: np.ndarray  # file names: shared str objects, or numpy strings
    offsets: np.ndarray  # int64, bytes
    sizes: np.ndarray  # int32, bytes
    labels: np.ndarray  # int32
    checksums: np.ndarray  # S64, hexadecimal sha256 of each image file

    def take(self, rows: np.ndarray) -> "Split":
        return Split(*(column[rows] for column in self))


def hash_split(checksums: Iterable[str] | np.ndarray, labels: Iterable[int] | np.ndarray) -> str:
    """sha256 of the (checksum, label) rows in order: equal for equal images, wherever they are stored."""
    texts, numbers = np.asarray(checksums, dtype=CHECKSUM), np.asarray(labels)
    if len(texts) != len(numbers):
        raise ValueError(f"{quantity(len(texts), 'checksum')}, {quantity(len(numbers), 'label')}")
    digest = hashlib.sha256()
    for start in range(0, len(texts), _CHUNK_ROWS):
        here = slice(start, start + _CHUNK_ROWS)
        pairs = zip(texts[here].tolist(), numbers[here].tolist(), strict=True)
        digest.update(b"".join([b"%s,%d\n" % pair for pair in pairs]))
    return digest.hexdigest()


def image_checksums(pixels: np.ndarray) -> np.ndarray:
    """Hexadecimal sha256 of each image's bytes (n,) S64. `pixels`: uint8 (n, ...)."""
    return np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in pixels], dtype=CHECKSUM)


def write_split(path: Path, split: Split) -> None:
    """Write a split file, whole or not at all. Equal rows give equal bytes with the same version of pyarrow."""
    with replacing(path) as temporary:
        pq.write_table(split_table(split), temporary, compression="zstd", use_dictionary=["archive", "label"])


def split_table(split: Split) -> pa.Table:
    """A table of `SPLIT_SCHEMA`."""
    checksums = np.ascontiguousarray(split.checksums, dtype=CHECKSUM)
    fixed = pa.FixedSizeBinaryArray.from_buffers(_FIXED, len(checksums), [None, pa.py_buffer(checksums)])
    columns = [
        pa.array(split.archives, pa.string()).dictionary_encode(),
        pa.array(split.offsets, pa.int64()),
        pa.array(split.sizes, pa.int32()),
        pa.array(split.labels, pa.int32()),
        fixed.cast(pa.binary()).cast(pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=SPLIT_SCHEMA)


def read_split(path: Path) -> Split:
    """Raises `AutoFormerError` if the file is missing, damaged or not a split."""
    if not path.is_file():
        raise AutoFormerError(f"{path}: no such split file; it is made by prepare_data")
    names: dict[str, str] = {}
    try:
        with _open(path) as file:
            split, start = Split(*(np.empty(file.metadata.num_rows, kind) for kind in _COLUMN_TYPES)), 0
            for batch in file.iter_batches(_CHUNK_ROWS):  # the whole table would double the memory of a step
                for column, values in zip(split, _columns(batch, names, path), strict=True):
                    column[start : start + batch.num_rows] = values
                start += batch.num_rows
            if start != len(split.labels):
                raise ValueError(f"{quantity(start, 'row')}, not {len(split.labels)} as it states")
    except AutoFormerError:
        raise
    except Exception as error:  # pyarrow raises many kinds for a damaged file
        raise AutoFormerError(f"{path}: not readable as a split ({in_short(error)}); run prepare_data again") from None
    return split


def read_metadata(path: Path) -> dict[bytes, bytes]:
    """The key-value metadata of a split file. Raises whatever pyarrow does."""
    with _open(path) as file:
        return dict(file.metadata.metadata or {})


def _open(path: Path) -> pq.ParquetFile:
    """Open a file. Raises `ValueError` if its rows would take far more memory than its bytes."""
    check_regular(path)
    file = pq.ParquetFile(path, thrift_string_size_limit=BOUNDS.json_bytes, thrift_container_size_limit=_THRIFT)
    rows, size = file.metadata.num_rows, path.stat().st_size
    if not 0 <= rows <= BOUNDS.split_rows or rows > _FEW_ROWS + size:
        raise ValueError(f"{quantity(rows, 'row')} in {quantity(size, 'byte')}")
    for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
        columns = [group.column(number) for number in range(group.num_columns)]
        if sum(column.total_uncompressed_size for column in columns) > BOUNDS.expanded(size):
            raise ValueError("its columns expand too much")
        if any(column.path_in_schema == "checksum" and column.has_dictionary_page for column in columns):
            raise ValueError("its checksums stand for each other")  # a dictionary can repeat one long text in all rows
    return file


def _columns(batch: pa.RecordBatch, names: dict[str, str], path: Path) -> Split:
    """Rows of a split file. `names` holds one str object for each archive."""
    batch = batch.select(SPLIT_SCHEMA.names).cast(SPLIT_SCHEMA)
    empty = [name for name in batch.schema.names if batch[name].null_count]
    if empty:
        raise AutoFormerError(f"{path}: empty values in column '{empty[0]}'; run prepare_data again")
    archives, checksums = batch["archive"], batch["checksum"].cast(pa.binary()).cast(_FIXED)
    shared = np.array([names.setdefault(name, name) for name in archives.dictionary.to_pylist()], object)
    offsets, sizes, labels = (batch[name].to_numpy() for name in ("offset", "size", "label"))
    hashes = np.frombuffer(checksums.buffers()[1], CHECKSUM, len(checksums), checksums.offset * CHECKSUM.itemsize)
    return Split(shared[archives.indices.to_numpy()], offsets, sizes, labels, hashes)
