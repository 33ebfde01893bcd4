"""CSV tables with named columns; a missing value is an empty cell."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autoformer.bounds import BOUNDS
from autoformer.errors import AutoFormerError
from autoformer.files import write_text
from autoformer.reading import read_bytes


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table, whole or not at all. Floats are restored exactly by reading."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_table(path: Path, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """The rows of a table as text. Raises `AutoFormerError` naming the file if it is missing or damaged.

    `columns`: required columns.
    """
    try:
        text = read_bytes(path, BOUNDS.csv_bytes).decode("utf-8-sig")  # spreadsheets write a BOM
        reader = csv.DictReader(io.StringIO(text, newline=""))
        if len(reader.fieldnames or ()) > BOUNDS.csv_columns:
            raise csv.Error(f"more than {BOUNDS.csv_columns} columns")
        rows = list(reader)
    except FileNotFoundError:
        raise AutoFormerError(f"{path}: no such file; run the step that makes it") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AutoFormerError(f"{path}: not readable as a table ({error}); run the step that makes it again") from None
    if any(None in row or None in row.values() for row in rows):
        raise AutoFormerError(f"{path}: a row has not as many values as the table has columns; run the step again")
    if missing := [column for column in columns if rows and column not in rows[0]]:
        raise AutoFormerError(f"{path}: has no column '{missing[0]}'; run the step that makes it again")
    return rows
