"""Indices of archives and folders, cached in the work folder, so an interrupted read of a terabyte resumes."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from autoformer.errors import AutoFormerError
from autoformer.files import hash_value, replacing
from autoformer.images.split_files import SPLIT_SCHEMA, Split, read_metadata, read_split, split_table
from autoformer.reading import in_short, parse_json
from runtime.common.workspace import work_root

_FORMAT = 2  # version of the cache format


class Index(NamedTuple):
    rows: Split
    facts: dict[str, Any]  # JSON-compatible data


def cached_index(made_of: Any, read: Callable[[Callable[[Split], None]], dict[str, Any]]) -> Index:
    """The index of a source, from the cache or newly read.

    Args:
        made_of: the cache key: the kind of source, and names, sizes and times of its files.
        read: called with a function that adds rows; it returns the facts.
    """
    file = work_root() / "prepare_data" / f"index-{hash_value([_FORMAT, made_of])[:16]}.parquet"
    if not file.is_file():
        columns = ["archive", "label"]
        with (
            replacing(file) as temporary,
            pq.ParquetWriter(temporary, SPLIT_SCHEMA, compression="zstd", use_dictionary=columns) as writer,
        ):
            facts = read(lambda rows: writer.write_table(split_table(rows)))
            writer.add_key_value_metadata({"facts": json.dumps(facts)})
    try:
        return Index(read_split(file), parse_json(read_metadata(file)[b"facts"]))
    except Exception as error:  # of the facts alone: `read_split` has its own
        raise AutoFormerError(f"{file}: a damaged index ({in_short(error)}); remove that file") from None
