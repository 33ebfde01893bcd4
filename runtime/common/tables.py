"""CSV tables with named columns; a missing value is an empty cell. Tables as text."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from autoformer.bounds import BOUNDS
from autoformer.errors import AutoFormerError
from autoformer.files import write_text
from autoformer.reading import lines_of, read_bytes


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table, whole or not at all. Floats are restored exactly by reading."""
    text, known = io.StringIO(), frozenset(columns)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        if not known >= row.keys():
            raise ValueError(f"{path}: no columns of the table: {sorted(row.keys() - known)}")
        writer.writerow(map(row.get, columns))
    write_text(path, text.getvalue())


def aligned(rows: Sequence[Sequence[str]], gap: int) -> list[str]:
    """Lines with `gap` blanks between columns. A title, a row with only its first cell, does not widen its column."""
    columns = zip(*(row for row in rows if any(row[1:])), strict=True)
    widths = [max(map(len, column)) + gap for column in columns]
    return ["".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def read_table(path: Path, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """The rows of a table as text. Raises `AutoFormerError` naming the file if it is missing or damaged.

    `columns`: required columns.
    """
    return [row for _, row in read_numbered_rows(path, columns)]


def read_numbered_rows(
    path: Path, columns: Sequence[str] = (), remedy: str = "run the step that makes it again"
) -> list[tuple[int, dict[str, str]]]:
    """`read_table` with the line on which each row ends: blank lines are no rows, and cells may hold line breaks."""
    try:
        text = read_bytes(path, BOUNDS.csv_bytes).decode("utf-8-sig")  # spreadsheets write a BOM
        reader = csv.DictReader(lines_of(text))
        if len(reader.fieldnames or ()) > BOUNDS.csv_columns:
            raise csv.Error(f"more than {BOUNDS.csv_columns} columns")
        rows = [(reader.line_num, row) for row in islice(reader, BOUNDS.csv_rows + 1)]
        if len(rows) > BOUNDS.csv_rows:
            raise csv.Error(f"more than {BOUNDS.csv_rows} rows")
    except FileNotFoundError:
        raise AutoFormerError(f"{path}: no such file; {remedy.removesuffix(' again')}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AutoFormerError(f"{path}: not readable as a table ({error}); {remedy}") from None
    for line, row in rows:
        if None in row or None in row.values():
            raise AutoFormerError(f"{path}, line {line}: not as many values as the table has columns; {remedy}")
    if missing := [column for column in columns if column not in (reader.fieldnames or columns)]:
        raise AutoFormerError(f"{path}: has no column '{missing[0]}'; {remedy}")
    return rows
