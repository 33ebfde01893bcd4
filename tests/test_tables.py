"""CSV tables read back as they were written."""

import math
from pathlib import Path
from typing import Any

import pytest

from autoformer.errors import AutoFormerError
from runtime.common.tables import read_table, write_table

COLUMNS = ("step", "loss", "note")


def test_round_trip_is_exact(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"step": 1, "loss": 0.1 + 0.2, "note": 'a comma, a "quote" and\na line'},
        {"step": 2, "loss": math.pi / 1e12, "note": "größer – 7 × 7"},
        {"step": 3},
    ]
    write_table(tmp_path / "table.csv", COLUMNS, rows)
    read = read_table(tmp_path / "table.csv")
    assert [int(row["step"]) for row in read] == [1, 2, 3]
    assert [float(row["loss"]) for row in read[:2]] == [rows[0]["loss"], rows[1]["loss"]]
    assert [row["note"] for row in read[:2]] == [rows[0]["note"], rows[1]["note"]]
    assert read[2] == {"step": "3", "loss": "", "note": ""}


def test_columns_are_stated(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    write_table(file, COLUMNS, [])
    assert file.read_bytes() == b"step,loss,note\n"
    assert read_table(file) == []
    with pytest.raises(ValueError, match="rate"):
        write_table(file, COLUMNS, [{"step": 1, "rate": 2}])
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]
    assert file.read_bytes() == b"step,loss,note\n"


@pytest.mark.parametrize("text", ["step,loss\n\n1\n", "step,loss\n\n1,2,3\n", 'step,loss\n"1\n"\n'])
def test_a_damaged_table_is_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text(text)
    with pytest.raises(AutoFormerError, match=r"table\.csv, line 3: not as many values"):
        read_table(file)
    with pytest.raises(AutoFormerError, match=r"other\.csv: no such file"):
        read_table(tmp_path / "other.csv")
