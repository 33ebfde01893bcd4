"""What a benchmark returns: rows of figures with the limits they are held to. Torch-free."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Row:
    """One figure.

    Args:
        name: what was measured, in words that need no heading.
        value: the figure; a ratio wherever one can be had, since it carries over to another machine.
        unit: of `value`: "x" for a ratio, "%", "s", "MB", "images/s", …
        limit: what the figure is held to; None where it is told for information alone.
        direction: which side of the limit is good.
        note: what it stands against, or how it was measured; a few words.
    """

    name: str
    value: float
    unit: str
    limit: float | None = None
    direction: Literal["at most", "at least"] = "at most"
    note: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the limit is kept; None where there is none."""
        if self.limit is None:
            return None
        return self.value <= self.limit if self.direction == "at most" else self.value >= self.limit

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"holds": self.holds}


def measured(rows: Sequence[Row], **details: Any) -> dict[str, Any]:
    """What a part's `measure` returns: its rows, and whatever else is worth keeping beside them in the JSON file."""
    return {"rows": [row.as_dict() for row in rows], **details}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows, as `Row.as_dict` gives them, in columns for a terminal."""
    cells = [("", "value", "limit", "")]
    for row in rows:
        limit = "" if row["limit"] is None else f"{row['direction']} {row['limit']:g}"
        verdict = {True: "holds", False: "MISSED", None: ""}[row["holds"]]
        cells.append((row["name"], f"{row['value']:.4g} {row['unit']}", limit, verdict))
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    lines = []
    for name, value, limit, verdict in cells:
        lines.append(f"{name:{widths[0]}}  {value:>{widths[1]}}  {limit:{widths[2]}}  {verdict}".rstrip())
    return "\n".join(lines)


def interleaved(
    runs: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float], warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of each run in each round, by a clock that is read before and after it. See `in_turns`."""

    def seconds(run: Callable[[], object]) -> float:
        start = clock()
        run()
        return clock() - start

    return in_turns(runs, rounds, seconds, warmup)


def in_turns(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    seconds_of: Callable[[Callable[[], object]], float],
    warmup: int = 1,
    enough: Callable[[], bool] = lambda: False,
) -> dict[str, list[float]]:
    """Seconds of each run in each round; every round takes all runs, one after the other, so that all share its noise.

    The order turns by one from round to round: none always runs in the wake of the same other.

    Args:
        seconds_of: does a run and says how long it took.
        enough: asked before each round; where true the rounds so far are all, perhaps none.
    """
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warmup, rounds):
        if enough():
            break
        for name in names[number % len(names) :] + names[: number % len(names)]:
            taken = seconds_of(runs[name])
            if number >= 0:
                seconds[name].append(taken)
    return seconds


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median over the rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))
