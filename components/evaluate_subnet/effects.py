"""Mean accuracy of the candidates by each choice: depth, width, and by block heads and MLP ratio."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean, stdev
from typing import Any, NamedTuple

from autoformer.space import SubnetSpec
from autoformer.subnet_text import ratio_text
from components.evaluate_subnet.results import Results

# Label, choices, and the value of a subnet.
Row = tuple[str, Sequence[float], Callable[[SubnetSpec], float | None]]
# An effect in the heading needs so many candidates and standard errors, since hundreds of pairs are compared.
FEWEST, CLEAR = 5, 4.0


class Cell(NamedTuple):
    """Candidates with one choice. `shade`: position of their mean between the lowest and highest mean, 0 to 1."""

    candidates: int
    mean: float | None = None
    error: float = 0.0  # standard error of the mean; 0 for one candidate
    shade: float = 0.0


class Table(NamedTuple):
    title: str
    choices: list[str]
    rows: list[tuple[str, list[Cell]]]  # label and a cell for each choice


def effects(results: Results) -> dict[str, Any] | None:
    """Tables of mean accuracy over all complete candidates, each subnet once; None if the means do not differ."""
    scores = {one.candidate.spec: one.top1_percent for one in results.search.candidates if one.complete}
    choices = results.space.choices
    tables = [
        _table("depth", [("", choices.depth, lambda spec: spec.depth)], scores),
        _table("width", [("", choices.embed_dim, lambda spec: spec.embed_dim)], scores),
        _table("heads, by block", _blocks(choices.num_heads, "num_heads", max(choices.depth)), scores),
        _table("MLP ratio, by block", _blocks(choices.mlp_ratio, "mlp_ratio", max(choices.depth)), scores),
    ]
    means = [cell.mean for table in tables for _, cells in table.rows for cell in cells if cell.mean is not None]
    if not means or min(means) == max(means):
        return None
    return {"tables": [_shaded(table, min(means), max(means)) for table in tables], "strongest": _strongest(tables)}


def _blocks(choices: Sequence[float], field: str, depth: int) -> list[Row]:
    """A row for each block, numbered from 1. A subnet without the block counts in no cell of its row."""

    def value_of(block: int, spec: SubnetSpec) -> float | None:
        return getattr(spec, field)[block] if block < spec.depth else None

    return [(str(block + 1), choices, partial(value_of, block)) for block in range(depth)]


def _table(title: str, rows: Sequence[Row], scores: Mapping[SubnetSpec, float]) -> Table:
    found = []
    for label, choices, value_of in rows:
        by_choice = ([score for spec, score in scores.items() if value_of(spec) == choice] for choice in choices)
        found.append((label, [_cell(of) for of in by_choice]))
    return Table(title, [ratio_text(choice) for choice in rows[0][1]], found)


def _cell(scores: Sequence[float]) -> Cell:
    if not scores:
        return Cell(0)
    error = stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else 0.0
    return Cell(len(scores), fmean(scores), error)


def _shaded(table: Table, low: float, high: float) -> Table:
    def shade(cell: Cell) -> Cell:
        return cell if cell.mean is None else cell._replace(shade=(cell.mean - low) / (high - low))

    return table._replace(rows=[(label, [shade(cell) for cell in cells]) for label, cells in table.rows])


def _strongest(tables: Sequence[Table]) -> dict[str, Any] | None:
    """The row with the largest difference of means, if the difference is clear; None without such a row."""
    found = []
    for table in tables:
        for label, cells in table.rows:
            known = [
                (cell.mean, choice, cell.error)
                for cell, choice in zip(cells, table.choices, strict=True)
                if cell.mean is not None and cell.candidates >= FEWEST
            ]
            if len(known) > 1:
                (low, worst, low_error), (high, best, high_error) = min(known), max(known)
                name = table.title.partition(",")[0] + (f" of block {label}" if label else "")
                if high - low > CLEAR * math.hypot(low_error, high_error):
                    found.append((high - low, {"name": name, "best": best, "high": high, "worst": worst, "low": low}))
    return max(found, key=lambda entry: entry[0])[1] if found else None
