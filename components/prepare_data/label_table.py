"""Read a CSV of image paths and labels, in the variants that spreadsheets and Windows write."""

import codecs
import csv
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from autoformer.bounds import BOUNDS
from autoformer.errors import AutoFormerError, quantity
from autoformer.reading import lines_of, read_bytes
from components.prepare_data.label_paths import UNMOVED, Finder, find_move, leads_out
from components.prepare_data.listing import SPLIT_OF

PATH_COLUMNS = (
    "path", "file", "filename", "file_name", "image", "filepath", "file_path", "image_path", "imagepath", "image_file",
    "image_name", "image_id", "img", "img_path", "filepaths", "filenames", "file_paths", "paths", "images",
    "image_paths",
)  # fmt: skip
LABEL_COLUMNS = ("label", "class", "class_name", "category", "labels", "classname", "class_label", "species", "target")
SPLIT_COLUMNS = (
    "set",
    "subset",
    "partition",
    "data_set",
    "dataset",
    "phase",
    "usage",
    "split_name",
)  # used if all values are names of splits
_BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_SEPARATORS = ",;\t|"


class Row(NamedTuple):
    line: int  # of the CSV, for messages
    path: Path
    label: str
    split: str  # "" for none


class Table(NamedTuple):
    columns: str  # description of the columns
    rows: list[Row]
    notes: tuple[str, ...]


class _Columns(NamedTuple):
    """Indices of the columns."""

    path: int
    label: int
    split: int | None


def read_label_table(file: Path) -> Table:
    """The rows of a CSV: UTF-8 or UTF-16; separated by commas, semicolons, tabs or bars.

    Raises `AutoFormerError`, with the line number, if a row is malformed or its path leads out of the folder.
    """
    text = _decode(file)
    separator = _separator(text)

    def rows() -> Iterator[tuple[int, list[str]]]:  # read twice rather than held: a million lists take half a GB
        return islice(_lines(text, separator, file), 1, None)

    _, header = next(_lines(text, separator, file), (1, []))
    columns = _columns(file, header, (cells for _, cells in rows()))
    root, found = file.parent.resolve(), []
    move = find_move(root, (_cell(cells, columns.path) for _, cells in rows()))
    finder = Finder(root, move)
    for line, cells in rows():
        found.append(Row(line, *_read_row(f"{file}, line {line}", cells, len(header), columns, finder)))
        if len(found) > BOUNDS.csv_rows:
            raise AutoFormerError(f"{file}: more than {BOUNDS.csv_rows:,} rows")
    used = {columns.path, columns.label, columns.split}
    unused = [name.strip() for number, name in enumerate(header) if number not in used and name.strip()]
    count = "1 file found under another spelling of its path"
    if finder.respelt > 1:
        count = f"{quantity(finder.respelt, 'file')} found under another spelling of their path"
    notes = [count] if finder.respelt else []
    if finder.move != UNMOVED:
        row = found[0]
        shown = row.path.relative_to(root).as_posix()
        written = _cell(next(cells for line, cells in rows() if line == row.line), columns.path)
        notes.append(f"no path of the CSV is there as written: {shown} is taken for {written}, and so on")
    if unused:
        notes.append(f"columns of the CSV that are not used: {', '.join(unused)}")
    words = f"{header[columns.path].strip()} and {header[columns.label].strip()}"
    return Table(words, found, tuple(notes))


def _decode(file: Path) -> str:
    content = read_bytes(file, BOUNDS.csv_bytes)
    encoding = next((name for mark, name in _BOMS.items() if content.startswith(mark)), "utf-8")
    if encoding != "utf-16" and b"\0" in content[:64]:
        raise AutoFormerError(f"{file}: not readable as CSV in UTF-8 (null bytes); save it as 'CSV UTF-8'")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = 1 + content[: error.start].count(b"\n")
        place = f", line {line}" if encoding.startswith("utf-8") else ""
        raise AutoFormerError(
            f"{file}{place}: not readable as CSV in UTF-8 ({error.reason}); save it as 'CSV UTF-8'"
        ) from None


def _separator(text: str) -> str:
    """The separator that gives the first line the most cells; by default a comma."""
    stated = re.match(r"sep=(.)\r?\n", text)  # written by Excel
    if stated:
        return stated[1]
    first = re.sub(r'"[^"]*"', "", next((line for line in lines_of(text) if line.strip()), ""))
    return max(_SEPARATORS, key=first.count)


def _lines(text: str, separator: str, file: Path) -> Iterator[tuple[int, list[str]]]:
    """The non-empty rows, each with the number of its first line."""
    reader = csv.reader(lines_of(text), delimiter=separator, skipinitialspace=True, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise AutoFormerError(f"{file}, line {line}: not readable as CSV ({error})") from None
        if cells is None:
            return
        blank = len(cells) < 2 and not any(map(str.strip, cells))
        if not blank and not (line == 1 and cells[0].startswith("sep=")):
            yield line, cells


def _columns(file: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> _Columns:
    if len(header) > BOUNDS.csv_columns:
        raise AutoFormerError(
            f"{file}: {quantity(len(header), 'column')}, more than {BOUNDS.csv_columns}; keep path and label"
        )
    names = [re.sub(r"[\s-]+", "_", name.strip().lower()) for name in header]
    number = {name: place for place, name in reversed([*enumerate(names)])}
    path = next((number[name] for name in PATH_COLUMNS if name in number), None)
    label = next((number[name] for name in LABEL_COLUMNS if name in number), None)
    if path is None or label is None:
        raise AutoFormerError(
            f"{file}: its first line must name a column 'path' and a column 'label' (and may name 'split'); "
            f"it has: {', '.join(map(str, header)) or 'nothing'}"
        )
    split = number.get("split")
    for name in SPLIT_COLUMNS:
        place = number.get(name)
        if split is None and place is not None:
            values = {cells[place].strip().lower() if place < len(cells) else "" for cells in rows}
            split = place if values and values <= SPLIT_OF.keys() else None
    return _Columns(path, label, split)


def _cell(cells: Sequence[str], at: int) -> str:
    return cells[at].strip() if at < len(cells) else ""


def _read_row(
    where: str, cells: Sequence[str], width: int, columns: _Columns, finder: "Finder"
) -> tuple[Path, str, str]:
    """Path, label and split of an image. It must be inside the CSV's folder, also after links are resolved."""
    if any(map(str.strip, cells[width:])):
        raise AutoFormerError(
            f"{where}: {quantity(len(cells), 'cell')}, but the first line has {width}; quote a cell with commas"
        )
    path, label, split = ("" if at is None else _cell(cells, at) for at in columns)
    if not path or "\0" in path:
        raise AutoFormerError(f"{where}: no path")
    file = finder.find(path)
    if not _is_inside(file, finder.root) or (finder.move != UNMOVED and leads_out(path)):
        if file.is_relative_to(finder.root) and file.is_file():
            here = file.relative_to(finder.root).as_posix()
            raise AutoFormerError(f"{where}: {path} lies outside the folder of the CSV; write {here}")
        raise AutoFormerError(f"{where}: {path} lies outside the folder of the CSV; move the images into it")
    if not label:
        raise AutoFormerError(f"{where}: no label")
    if split and split.lower() not in SPLIT_OF:
        raise AutoFormerError(f"{where}: split '{split.lower()}' is none of train, val, test")
    return file, sys.intern(label), SPLIT_OF.get(split.lower(), "")


def _is_inside(file: Path, root: Path) -> bool:
    """Whether a path is below `root` after links are resolved. Each folder is resolved once."""
    if os.path.islink(file) and not Path(os.path.realpath(file)).is_relative_to(root):  # noqa: PTH114 (pathlib raises)
        return False
    return file == root or _is_folder_inside(file.parent, root)


@lru_cache(10_000)
def _is_folder_inside(folder: Path, root: Path) -> bool:
    return folder.is_relative_to(root) and Path(os.path.realpath(folder)).is_relative_to(root)
