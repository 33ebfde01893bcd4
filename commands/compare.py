"""Compare two pipeline runs: parameters, data, code, architecture, scores. `make compare RUNS="a b"`."""

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from autoformer.errors import AutoFormerError, quantity, shortened
from autoformer.reading import read_json_as
from autoformer.subnet_text import by_block
from runtime import tracking
from runtime.common.budgets import ascending, prefix_of
from runtime.common.config import ROOT
from runtime.common.console import Parser, run_command
from runtime.common.overrides import SplitOption
from runtime.common.records import StepRecord
from runtime.common.tables import aligned

LISTED_RUNS = 10
LONGEST_VALUE = 44  # characters
NOT_RECORDED = "not recorded"
TEST = "test split"
TOP1 = "test_top1_percent"
_LABELLED = re.compile(rf"(\d+(?:\.\d+)?m)/{TOP1}")  # the test accuracy of one budget
# Key -> (name, format, unit). `val/top1` is the accuracy of the chosen subnet on the search split.
SCORES = {
    TOP1: ("test top-1", ".2f", " %"),
    "test_top5_percent": ("test top-5", ".2f", " %"),
    "inherited_test_top1_percent": ("test top-1, inherited weights", ".2f", " %"),
    "finetuned_test_top1_percent": ("test top-1, fine-tuned", ".2f", " %"),
    "scratch_test_top1_percent": ("test top-1, from scratch", ".2f", " %"),
    "test_loss": ("test loss, nats", ".4f", ""),
    "test_ece": ("calibration error, 0 to 1", ".4f", ""),
    "val/top1": ("search split top-1, inherited", ".2f", " %"),
    "cost/params_m": ("parameters, M", ".4g", ""),
    "cost/macs_g": ("MACs, G", ".4g", ""),
    "cost/latency_ms": ("predicted latency", ".4g", " ms"),
}
Row = tuple[str, str, str, str]  # a quantity, its value in the first and in the second run, the difference
_ARCHITECTURE = {"depth": "depth", "embed_dim": "width", "num_heads": "heads", "mlp_ratio": "MLP ratios"}


class Interval(NamedTuple):
    value: float
    low: float
    high: float


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m commands.compare", description=__doc__)
    parser.add_argument(
        "runs", nargs="*", help="two MLflow run ids, beginnings of them, or folders in runs/; without: list the latest"
    )
    parser.add_argument("--named", action=SplitOption, default=[], help="the two in one text, as a shell splits words")

    def work(arguments: argparse.Namespace) -> None:
        names = [*arguments.runs, *arguments.named]
        if not names:
            print(listing())
            return
        if len(names) != 2:
            raise AutoFormerError(f'{quantity(len(names), "run")} given; give two, as in make compare RUNS="a b"')
        first, second = (tracking.read_pipeline_run(find(name)) for name in names)
        print(report(first, second))

    return run_command("compare", parser, work, argv, after="")


def listing() -> str:
    """The latest runs as a table."""
    runs = tracking.list_pipeline_runs(LISTED_RUNS)
    if not runs:
        return "no pipeline run yet; `make run` makes one"
    rows = [("run", "preset", "started", "state", "test top-1")]
    for run in runs:
        labels = _budgets(run)
        top1 = f"{run.scores[TOP1]:.2f} %" if TOP1 in run.scores else ""
        if labels:
            top1 = ", ".join(f"{label} {run.scores[prefix_of(label) + TOP1]:.2f} %" for label in labels)
        rows.append((run.run_id[:12], run.name, _time(run.started), run.status.lower(), top1))
    return "\n".join([*aligned(rows, 3), "", 'make compare RUNS="a b" shows what differs between two of them.'])


def find(name: str) -> str:
    """The id of a pipeline run. `name`: a run id, a prefix of one, or a run's folder.

    Raises:
        AutoFormerError: no such run; the message lists the latest runs.
    """
    for folder in (ROOT / "runs" / name, Path(name)):
        if folder.is_dir():
            return _find_by_folder(folder)
    run_id = tracking.find_run_id(name)
    if run_id is None:
        latest = " ".join(run.run_id[:12] for run in tracking.list_pipeline_runs(LISTED_RUNS))
        raise AutoFormerError(
            f"{name}: no such pipeline run; {f'the latest: {latest}' if latest else '`make run` makes one'}"
        )
    return run_id


def _find_by_folder(folder: Path) -> str:
    """The newest run named in a folder's records; the record of a cached step names the older run that executed it."""
    records = [*folder.glob("*/record"), *folder.glob("*/record.json"), *folder.glob("records/*.json")]
    run_ids = {read_json_as(StepRecord, record).mlflow_parent_run_id for record in records}
    for run in tracking.list_pipeline_runs():  # newest first
        if run.run_id in run_ids:
            return run.run_id
    raise AutoFormerError(f"{folder}: its records name no run of this MLflow store; give a run id instead")


def report(first: tracking.PipelineRun, second: tracking.PipelineRun) -> str:
    """The comparison as text. Equal values are counted, not shown."""
    rows: list[Row] = [
        ("run", first.run_id[:12], second.run_id[:12], ""),
        ("preset", first.name, second.name, ""),
        ("started", _time(first.started), _time(second.started), ""),
        ("state", first.status.lower(), second.status.lower(), ""),
    ]
    sections = {
        "parameters": _differences(first.params, second.params),
        "data": _differences(first.data, second.data, longest=12),
        "code": _differences(first.code, second.code, longest=18),
        "architecture": _differences(_architecture(first), _architecture(second)),
        "scores": _scores(first, second),
    }
    for title, (different, equal) in sections.items():
        rows += [("", "", "", ""), (_title(title, len(different), equal), "", "", "")]
        rows += [(f"  {name}", before, after, difference) for name, before, after, difference in different]
    return "\n".join([*aligned(rows, 3), *_remarks(first, second)])


def _title(title: str, different: int, equal: int) -> str:
    if not different:
        return f"{title}: {'none recorded' if not equal else 'equal' if equal == 1 else f'all {equal} equal'}"
    return f"{title}: {different} {'differs' if different == 1 else 'differ'}, {equal} equal"


def _differences(
    first: Mapping[str, str], second: Mapping[str, str], longest: int = LONGEST_VALUE
) -> tuple[list[Row], int]:
    """A row for each differing value, and the number of equal values."""
    pairs = {name: (first.get(name), second.get(name)) for name in [*first, *second]}
    different = [
        (name, _shown(before, longest), _shown(after, longest), _number_difference(before, after))
        for name, (before, after) in pairs.items()
        if before != after
    ]
    return different, len(pairs) - len(different)


def _number_difference(first: str | None, second: str | None) -> str:
    """Second minus first for two plain numbers; empty otherwise."""
    try:
        difference = float(second or "") - float(first or "")
    except ValueError:
        return ""
    return f"{difference:+g}" if math.isfinite(difference) and " " not in f"{first}{second}" else ""


def _shown(value: str | None, longest: int) -> str:
    return NOT_RECORDED if value is None else shortened(" ".join(value.split()), longest)


def _architecture(run: tracking.PipelineRun) -> dict[str, str]:
    values = run.architecture
    return {name: " ".join(by_block(values[key])) for key, name in _ARCHITECTURE.items() if key in values}


def _scores(first: tracking.PipelineRun, second: tracking.PipelineRun) -> tuple[list[Row], int]:
    """`_differences` for the scores of the run and of each budget; test accuracy always has a row, even if equal."""
    rows, equal = list[Row](), 0
    for label in ("", *_budgets(first, second)):
        different, same = _scores_of(first, second, label)
        rows += different
        equal += same
    return rows, equal


def _budgets(*runs: tracking.PipelineRun) -> list[str]:
    """The labels of the budgets of any of the runs, smallest first."""
    return ascending({found[1] for run in runs for name in run.scores if (found := _LABELLED.fullmatch(name))})


def _scores_of(first: tracking.PipelineRun, second: tracking.PipelineRun, label: str) -> tuple[list[Row], int]:
    rows, equal, prefix = list[Row](), 0, prefix_of(label)
    for key, (name, form, unit) in SCORES.items():
        pair = (first.scores.get(prefix + key), second.scores.get(prefix + key))
        if pair == (None, None):
            continue
        if pair[0] == pair[1] and key != TOP1:
            equal += 1
            continue
        texts = [NOT_RECORDED if value is None else f"{value:{form}}{unit}" for value in pair]
        difference = "" if None in pair else f"{pair[1] - pair[0]:+{form}}"  # type: ignore[operator]
        if key == TOP1:
            intervals = (_interval(first, label), _interval(second, label))
            for index, interval in enumerate(intervals):
                texts[index] += f" ({interval.low:.2f} to {interval.high:.2f})" if interval else ""
            if intervals[0] and intervals[1] and _same_test_images(first, second):
                low, high = difference_interval(intervals[0], intervals[1])
                difference += f" ({low:+.2f} to {high:+.2f})"
        rows.append((f"{label}: {name}" if label else name, texts[0], texts[1], difference))
    return rows, equal


def _interval(run: tracking.PipelineRun, label: str = "") -> Interval | None:
    names = [prefix_of(label) + name for name in (TOP1, "test_top1_low_percent", "test_top1_high_percent")]
    return Interval(*(run.scores[name] for name in names)) if all(name in run.scores for name in names) else None


def difference_interval(first: Interval, second: Interval) -> tuple[float, float]:
    """The interval of second minus first from two Wilson intervals (Newcombe 1998, method 10).

    The method is for independent samples. For two models on the same images, which mostly agree, it is too wide.
    """
    difference = second.value - first.value
    low = difference - math.hypot(second.value - second.low, first.high - first.value)
    high = difference + math.hypot(second.high - second.value, first.value - first.low)
    return low, high


def _same_test_images(first: tracking.PipelineRun, second: tracking.PipelineRun) -> bool:
    return first.data.get(TEST) is not None and first.data.get(TEST) == second.data.get(TEST)


def _remarks(first: tracking.PipelineRun, second: tracking.PipelineRun) -> list[str]:
    before, after = _interval(first), _interval(second)
    if before is None or after is None:
        return ["", "A run without a test accuracy has not reached evaluate_subnet."]
    if None in (first.data.get(TEST), second.data.get(TEST)):
        return ["", "Which test images a run had is not recorded, so the accuracies cannot be compared."]
    if not _same_test_images(first, second):
        return ["", "The test images are not the same, so the accuracies cannot be compared."]
    low, high = difference_interval(before, after)
    remarks = ["In brackets: 95 % intervals; that of the difference is for independent samples, so rather too wide."]
    if low <= 0 <= high:
        remarks.append("It contains 0: this test split does not tell the two runs apart.")
    return ["", *remarks]


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000).strftime("%Y-%m-%d %H:%M")


if __name__ == "__main__":
    raise SystemExit(main())
