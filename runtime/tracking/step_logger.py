"""Logging to the MLflow run of one step."""

import contextlib
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from autoformer.candidates import ScoredCandidate
from autoformer.space import SubnetSpec
from autoformer.subnet_text import shape_text, to_cells
from runtime.common.budgets import prefix_of
from runtime.common.tables import read_table
from runtime.tracking.outbox import Outbox
from runtime.tracking.provenance import user

FLUSH_SECONDS = 5.0
FRONT, OBJECTIVES = "front", "objectives"  # tags: whether a candidate is on the front; the objectives of a search
BUDGET, FAMILY = "budget", "model_family"  # tags: a budget's label; the model name shared by all budgets
ARCH = "arch"  # tag: a subnet in one line
# Metric of a step -> its name and unit in a pipeline run. The names are those of a candidate's metrics.
_HEADLINE: dict[str, tuple[str, float]] = {
    "chosen_top1_percent": ("val/top1", 1),
    "params": ("cost/params_m", 1e6),
    "macs": ("cost/macs_g", 1e9),
    "chosen_latency_ms": ("cost/latency_ms", 1),
    **{
        name: (name, 1)
        for name in (
            "test_top1_percent", "test_top1_low_percent", "test_top1_high_percent", "test_top5_percent", "test_loss",
            "test_ece", "test_images", "inherited_test_top1_percent", "finetuned_test_top1_percent",
            "scratch_test_top1_percent",
        )
    },
}  # fmt: skip


class StepLogger:
    """Logs to the run of a step. No method raises or waits during an outage of the store.

    Args:
        run_id: MLflow's id; empty if nothing is logged.
        outbox: the queue of messages; None if nothing is logged.
        logged: metric -> last step that a resumed run already has.
        parent_id: the pipeline run of the step; None if there is none, as under KFP's own run.
    """

    def __init__(
        self, run_id: str, outbox: Outbox | None, logged: Mapping[str, int] | None = None, parent_id: str | None = None
    ) -> None:
        self.run_id = run_id
        self._parent_id = parent_id
        self._outbox = outbox
        self._logged = dict(logged or {})
        self._flush_at = time.monotonic() + FLUSH_SECONDS

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log numbers, sent in batches every few seconds. A resumed run gets no point twice."""
        now = milliseconds()
        points = [[key, float(value), now, step] for key, value in values.items() if step > self._logged.get(key, -1)]
        if points:
            self._put("metrics", metrics=points)
        if time.monotonic() >= self._flush_at:
            self.flush()

    def row(self, row: Mapping[str, float], prefix: str = "") -> None:
        """Log a row of a history: the column `step` is the step, other columns are metrics."""
        self.metrics({f"{prefix}{key}": value for key, value in row.items() if key != "step"}, int(row["step"]))

    def params(self, values: Mapping[str, object]) -> None:
        """Log parameters, which never change within a run."""
        self._put("params", params={key: str(value) for key, value in values.items()})

    def subnet(self, spec: SubnetSpec) -> None:
        """Log the step's subnet, as `arch/…` parameters and as a one-line tag for tables."""
        self.params(arch_params(spec))
        self.tags({ARCH: shape_text(spec)})

    def headline(self, figures: Mapping[str, float], spec: SubnetSpec, label: str = "") -> None:
        """Log results to the pipeline run, for a table of pipeline runs.

        They are metrics and a tag, not parameters, which cannot change: a run resumed after an edit of the code may
        choose another subnet.

        Args:
            figures: metrics of evaluation/metrics.json or search/metrics.json; unknown names are ignored.
            label: label of a budget, a prefix of the names.
        """
        if self._parent_id and self._outbox:
            now, prefix = milliseconds(), prefix_of(label)
            points = [[f"{prefix}{name}", value, now, 0] for name, value in _headline(figures).items()]
            self._outbox.put({"kind": "metrics", "run_id": self._parent_id, "metrics": points})
            self._outbox.put({"kind": "tags", "run_id": self._parent_id, "tags": {f"{prefix}{ARCH}": shape_text(spec)}})

    def tags(self, values: Mapping[str, str]) -> None:
        self._put("tags", tags=dict(values))

    def artifact(self, path: Path) -> None:
        """Log a file, or the content of a folder. It must exist until the step ends: uploads may be delayed."""
        self._put("artifact", path=str(path.absolute()))
        self.flush()

    def table(self, file: Path) -> None:
        """Log a CSV file unchanged, and as a table for MLflow's pages. A second one replaces the first."""
        rows = read_table(file)
        columns = list(rows[0]) if rows else []
        data = [[_number(row[column]) for column in columns] for row in rows]
        self._put("table", name=f"{file.stem}.json", columns=columns, data=data)
        self.artifact(file)

    def dataset(self, name: str, digest: str, context: str) -> None:
        """Log an input of the step, for MLflow's lineage. MLflow keeps 36 characters of `digest`."""
        self._put("dataset", name=name, digest=digest, context=context)

    def child_runs(self, children: Sequence[Mapping[str, Any]]) -> None:
        """Log finished child runs, each with its `name`, `params`, `metrics` and `tags`; see `child_run`, `budget_run`.

        For some tens of runs, at 5 to 9 a second. An existing run of the same name is kept.
        """
        self._put("children", children=[*children], user=user(), time=milliseconds())
        self.flush()

    def flush(self, wait_seconds: float = 0.0) -> None:
        """Send the queue in the background; wait up to `wait_seconds` for the delivery."""
        if self._outbox is not None:
            self._outbox.flush(wait_seconds)
        self._flush_at = time.monotonic() + FLUSH_SECONDS

    def _put(self, kind: str, **content: Any) -> None:
        if self._outbox is not None:
            self._outbox.put({"kind": kind, "run_id": self.run_id, **content})


def arch_params(spec: SubnetSpec) -> dict[str, str | float]:
    """A subnet as flat parameters: heads and ratios per block as text, and their means, which can be plotted."""
    return {
        **{f"arch/{column}": cell for column, cell in to_cells(spec).items()},
        "arch/mean_num_heads": round(sum(spec.num_heads) / spec.depth, 3),
        "arch/mean_mlp_ratio": round(sum(spec.mlp_ratio) / spec.depth, 3),
    }


def child_run(
    outcome: ScoredCandidate, chosen: Collection[SubnetSpec], front: Collection[SubnetSpec] = ()
) -> dict[str, Any]:
    """The name, parameters, metrics and tags of a candidate's run; tags mark chosen subnets and the Pareto front."""
    row, spec = outcome.to_row(), outcome.candidate.spec
    metrics = {
        "val/top1": outcome.top1_percent,
        "cost/params_m": outcome.candidate.params / 1e6,
        "cost/macs_g": outcome.candidate.macs / 1e9,
    }
    if outcome.loss is not None:
        metrics["val/loss"] = outcome.loss
    if outcome.candidate.latency_ms is not None:
        metrics["cost/latency_ms"] = outcome.candidate.latency_ms
    tags = {key: str(row[key]) for key in ("origin", "generation", "parents", "images") if row[key] != ""}
    return {
        "name": f"candidate {outcome.candidate.id}",
        "params": arch_params(spec),
        "metrics": metrics,
        "tags": tags | {"chosen": str(spec in chosen), FRONT: str(spec in front), ARCH: shape_text(spec)},
    }


def budget_run(label: str, figures: Mapping[str, float], spec: SubnetSpec, tags: Mapping[str, str]) -> dict[str, Any]:
    """The name, parameters, metrics and tags of the run of one budget's subnet; `figures` as for `headline`."""
    return {
        "name": f"budget {label}",
        "params": arch_params(spec),
        "metrics": _headline(figures),
        "tags": {"stage": BUDGET, BUDGET: label, **tags, ARCH: shape_text(spec)},
    }


def _headline(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: figures[key] / unit for key, (name, unit) in _HEADLINE.items() if key in figures}


def milliseconds() -> int:
    return time.time_ns() // 1_000_000


def _number(text: str) -> float | int | str | None:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text or None
