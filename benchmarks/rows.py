"""The result of a benchmark (rows of figures with limits), and the timing of its runs. Torch-free."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Row:
    """One figure. `name`: case and quantity; `direction`: the good side of the limit, if any."""

    name: str
    value: float
    unit: str  # "x" for a ratio, which should hold on other machines; "%", "s", "GB", …
    limit: float | None = None
    direction: Literal["at most", "at least"] = "at most"

    @property
    def holds(self) -> bool | None:
        if self.limit is None:
            return None
        return self.value <= self.limit if self.direction == "at most" else self.value >= self.limit

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"holds": self.holds}


def measured(rows: Sequence[Row], **details: Any) -> dict[str, Any]:
    """The result of a part: its rows, and further values for bench.json."""
    return {"rows": [row.as_dict() for row in rows], **details}


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of cells as text, in columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows, as `Row.as_dict` returns them, for a terminal."""
    lines = [("", "value", "limit", "")]
    for row in rows:
        limit = "" if row["limit"] is None else f"{row['direction']} {row['limit']:g}"
        verdict = {True: "holds", False: "MISSED", None: ""}[row["holds"]]
        lines.append((row["name"], f"{row['value']:.4g} {row['unit']}", limit, verdict))
    return "\n".join(aligned(lines))


def elapsed(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call."""
    start = clock()
    run()
    return clock() - start


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    seconds_of: Callable[[Callable[[], object]], float] = elapsed,
    warmup: int = 1,
    is_over: Callable[[], bool] = lambda: False,
) -> dict[str, list[float]]:
    """Seconds of each run in each round. A round includes every run once, so all share the machine's noise.

    The order rotates from round to round, so no run always follows the same other.

    Args:
        seconds_of: makes a run and returns its seconds; those of `warmup` rounds are dropped.
        is_over: ends the measurement before a round, perhaps before the first.
    """
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warmup, rounds):
        if is_over():
            break
        for name in names[number % len(names) :] + names[: number % len(names)]:
            taken = seconds_of(runs[name])
            if number >= 0:
                seconds[name].append(taken)
    return seconds


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median over the rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))
