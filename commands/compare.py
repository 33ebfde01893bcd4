"""What differs between two pipeline runs: parameters, data, code, architecture, scores. `make compare RUNS="a b"`."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from autoformer.errors import AutoFormerError
from autoformer.files import read_json
from autoformer.subnet_text import by_block
from runtime import tracking
from runtime.common.config import ROOT
from runtime.common.console import Parser, report_error

LISTED = 10  # runs, where none are named
SHOWN = 44  # characters of a value
NOT_RECORDED = "not recorded"
# Key -> (name, format, unit). The test split first; `val/top1` is the choice of the search, on the search split.
SCORES = {
    "test_top1_percent": ("test top-1", ".2f", " %"),
    "test_top5_percent": ("test top-5", ".2f", " %"),
    "inherited_test_top1_percent": ("test top-1, inherited weights", ".2f", " %"),
    "scratch_test_top1_percent": ("test top-1, from scratch", ".2f", " %"),
    "test_loss": ("test loss, nats", ".4f", ""),
    "test_ece": ("calibration error, 0 to 1", ".4f", ""),
    "val/top1": ("search split top-1, inherited", ".2f", " %"),
    "cost/params_m": ("parameters, M", ".4g", ""),
    "cost/macs_g": ("multiply-adds, G", ".4g", ""),
}
_ARCHITECTURE = {"depth": "depth", "embed_dim": "width", "num_heads": "heads", "mlp_ratio": "MLP ratios"}


class Row(NamedTuple):
    """A line of the table: a name, a value for each run, and what the difference says."""

    name: str
    values: tuple[str, str]
    difference: str = ""


class Interval(NamedTuple):
    value: float
    low: float
    high: float


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m commands.compare", description=__doc__)
    parser.add_argument(
        "runs", nargs="*", help="two MLflow run ids, beginnings of them, or folders in runs/; without: list the latest"
    )
    try:
        arguments = parser.parse_args(argv)
        if not arguments.runs:
            print(listing())
            return 0
        if len(arguments.runs) != 2:
            raise AutoFormerError(f'{len(arguments.runs)} runs given; give two, as in make compare RUNS="a b"')
        first, second = (tracking.read_pipeline_run(find(name)) for name in arguments.runs)
    except AutoFormerError as error:
        return report_error("compare", error)
    print(report(first, second))
    return 0


def listing() -> str:
    """The latest runs as a table."""
    runs = tracking.list_pipeline_runs(LISTED)
    if not runs:
        return "no pipeline run yet; `make run` makes one"
    rows = [("run", "preset", "started", "state", "test top-1")]
    rows += [
        (
            run.run_id[:12], run.name, _time(run.started), run.status.lower(),
            f"{run.scores['test_top1_percent']:.2f} %" if "test_top1_percent" in run.scores else "",
        )
        for run in runs
    ]  # fmt: skip
    return "\n".join([*_aligned(rows), "", 'make compare RUNS="a b" says what differs between two of them.'])


def find(name: str) -> str:
    """The id of the pipeline run that a person means: an id, the beginning of one, or a run's folder.

    Raises:
        AutoFormerError: there is none; the message names the latest runs.
    """
    for folder in (ROOT / "runs" / name, Path(name)):
        if folder.is_dir():
            return _of_folder(folder)
    found = tracking.find_run_id(name)
    if found is None:
        latest = " ".join(f"{run.run_id[:12]}" for run in tracking.list_pipeline_runs(LISTED))
        raise AutoFormerError(
            f"{name}: no such pipeline run; {f'the latest: {latest}' if latest else '`make run` makes one'}"
        )
    return found


def _of_folder(folder: Path) -> str:
    """The run that wrote a folder's records. Records of steps that a cache brought name the run that made them."""
    records = [*folder.glob("*/record"), *folder.glob("*/record.json"), *folder.glob("records/*.json")]
    named = {read_json(record).get("mlflow_parent_run_id") for record in records}
    known = [run.run_id for run in tracking.list_pipeline_runs() if run.run_id in named]  # newest first
    if not known:
        raise AutoFormerError(f"{folder}: its records name no run of this MLflow store; give a run id instead")
    return known[0]


def report(first: tracking.PipelineRun, second: tracking.PipelineRun) -> str:
    """The comparison as text. What is equal is counted, not shown."""
    runs = (first, second)
    head = [
        Row("run", (first.run_id[:12], second.run_id[:12])),
        Row("preset", (first.name, second.name)),
        Row("started", (_time(first.started), _time(second.started))),
        Row("state", (first.status.lower(), second.status.lower())),
    ]
    architectures = tuple(_architecture(run.architecture) for run in runs)
    sections = {
        "parameters": _differences(first.params, second.params),
        "data": _differences(first.data, second.data, short=12),
        "code": _differences(first.code, second.code, short=18),
        "architecture": _differences(architectures[0], architectures[1]),
        "scores": _scores(first, second),
    }
    rows = [(row.name, *row.values, row.difference) for row in head]
    for title, (different, equal) in sections.items():
        rows += [("",) * 4, (_title(title, len(different), equal), "", "", "")]
        rows += [(f"  {row.name}", *row.values, row.difference) for row in different]
    return "\n".join([*_aligned(rows), *_remarks(first, second)])


def _title(title: str, different: int, equal: int) -> str:
    if not different:
        return f"{title}: {'none recorded' if not equal else 'equal' if equal == 1 else f'all {equal} equal'}"
    return f"{title}: {different} {'differs' if different == 1 else 'differ'}, {equal} equal"


def _differences(first: Mapping[str, str], second: Mapping[str, str], short: int = SHOWN) -> tuple[list[Row], int]:
    """Rows for what differs, by name, and how many values are equal."""
    names = list(dict.fromkeys([*first, *second]))
    values = {name: (first.get(name), second.get(name)) for name in names}
    different = [
        Row(name, (_shown(pair[0], short), _shown(pair[1], short)), _step(*pair))
        for name, pair in values.items()
        if pair[0] != pair[1]
    ]
    return different, len(names) - len(different)


def _step(first: str | None, second: str | None) -> str:
    """The difference of two plain numbers, and nothing for anything else."""
    try:
        difference = float(second or "") - float(first or "")
    except ValueError:
        return ""
    return f"{difference:+g}" if math.isfinite(difference) and " " not in f"{first}{second}" else ""


def _shown(value: str | None, most: int) -> str:
    if value is None:
        return NOT_RECORDED
    text = " ".join(value.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _architecture(found: Mapping[str, str]) -> dict[str, str]:
    return {name: " ".join(by_block(found[key])) for key, name in _ARCHITECTURE.items() if key in found}


def _scores(first: tracking.PipelineRun, second: tracking.PipelineRun) -> tuple[list[Row], int]:
    """Every figure that either run has: equal ones are counted, but for the test accuracy, which always stands."""
    rows, equal = [], 0
    for key, (name, form, unit) in SCORES.items():
        pair = (first.scores.get(key), second.scores.get(key))
        if pair == (None, None):
            continue
        if pair[0] == pair[1] and key != "test_top1_percent":
            equal += 1
            continue
        texts = tuple(NOT_RECORDED if value is None else f"{value:{form}}{unit}" for value in pair)
        difference = "" if None in pair else f"{pair[1] - pair[0]:+{form}}"  # type: ignore[operator]
        if key == "test_top1_percent":
            intervals = (_interval(first), _interval(second))
            texts = tuple(_with_interval(text, interval) for text, interval in zip(texts, intervals, strict=True))
            difference += _uncertainty(*intervals, same_images=_same_test_images(first, second))
        rows.append(Row(name, (texts[0], texts[1]), difference))
    return rows, equal


def _interval(run: tracking.PipelineRun) -> Interval | None:
    names = ("test_top1_percent", "test_top1_low_percent", "test_top1_high_percent")
    return Interval(*(run.scores[name] for name in names)) if all(name in run.scores for name in names) else None


def _with_interval(text: str, interval: Interval | None) -> str:
    return text if interval is None else f"{text} ({interval.low:.2f} to {interval.high:.2f})"


def _uncertainty(first: Interval | None, second: Interval | None, same_images: bool) -> str:
    if first is None or second is None or not same_images:
        return ""
    low, high = difference_interval(first, second)
    return f" ({low:+.2f} to {high:+.2f})"


def difference_interval(first: Interval, second: Interval) -> tuple[float, float]:
    """The interval of second minus first, from the interval of each: Newcombe 1998, method 10, of Wilson's.

    It is that of two samples. Two models on the same images agree on most, so that the truth is narrower.
    """
    difference = second.value - first.value
    low = difference - math.hypot(second.value - second.low, first.high - first.value)
    high = difference + math.hypot(second.high - second.value, first.value - first.low)
    return low, high


def _same_test_images(first: tracking.PipelineRun, second: tracking.PipelineRun) -> bool:
    splits = (first.data.get("test split"), second.data.get("test split"))
    return splits[0] == splits[1]


def _remarks(first: tracking.PipelineRun, second: tracking.PipelineRun) -> list[str]:
    before, after = _interval(first), _interval(second)
    if before is None or after is None:
        return ["", "A run without a test accuracy has not come to evaluate_subnet."]
    if not _same_test_images(first, second):
        return ["", "The test images are not the same: the accuracies are of two different things."]
    low, high = difference_interval(before, after)
    told = "In brackets: 95 % intervals; that of the difference as for two samples of images, so rather too wide."
    return ["", told] + ([] if low > 0 or high < 0 else ["It holds 0: this test split does not tell the two apart."])


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000).strftime("%Y-%m-%d %H:%M")


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell; a row of one cell, a title, may run over."""
    cells = [row for row in rows if any(row[1:])]
    widths = [max((len(row[column]) for row in cells), default=0) + 3 for column in range(len(rows[0]))]
    return ["".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


if __name__ == "__main__":
    raise SystemExit(main())
