"""The table at the end of a run."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from autoformer.cards import read_subnet_card
from autoformer.complexity import count_macs, count_params
from autoformer.errors import quantity
from autoformer.latency import LatencyTable, table_of_search
from autoformer.reading import read_json_as
from autoformer.space import SubnetSpec
from autoformer.subnet_text import heads_text, ratios_text, shape_text, size_text
from runtime.common.budgets import folder_of, metrics_of, prefix_of, read_chosen
from runtime.common.config import Config
from runtime.common.records import Registration, StepRecord, read_metrics
from runtime.common.search_names import found_by, method_of
from runtime.common.search_split import search_split_note
from runtime.common.tables import aligned

_REQUIRED = {
    "search": ("chosen_top1_percent",),
    "retrain": ("inherited_top1_percent",),
    "evaluation": ("test_top1_percent", "test_top1_low_percent", "test_top1_high_percent"),
}  # metrics of each folder


def summary(
    config: Config,
    outputs: Mapping[str, Path],
    records: Mapping[str, StepRecord],
    more: Iterable[tuple[str, str]],
) -> str:
    """The chosen subnet, its costs and accuracies, or those of each budget, and the time of each step.

    Args:
        outputs: the folders `search`, `retrain` and `evaluation`, and the file `registration`.
        records: step -> its record.
        more: additional rows (name, value).
    """
    found = _read(outputs)
    registration = read_json_as(Registration, outputs["registration"])
    latencies, side_by_side = table_of_search(outputs["search"]), list[str]()
    if "" in found:
        rows = _subnet_rows(config, found[""], latencies, registration)
    else:
        side_by_side = _side_by_side(config, found, registration)
        rows = _budget_rows(config, found, latencies, registration)
    rows += [(f"  {step}", f"{record.seconds:.0f} s") for step, record in records.items()]
    return "\n" + "\n".join([*side_by_side, *(f"  {name:<22}{value}" for name, value in [*rows, *more])])


class _Found(NamedTuple):
    """The subnet of one budget, the metrics of three steps, and the origin of its weights."""

    spec: SubnetSpec
    searched: Mapping[str, float]
    retrained: Mapping[str, float]
    tested: Mapping[str, float]
    weights: str

    @property
    def by(self) -> str:
        return found_by(self.searched)


def _read(outputs: Mapping[str, Path]) -> dict[str, _Found]:
    """Label -> results, smallest budget first."""
    found = {}
    for label, chosen in read_chosen(outputs["search"]).items():
        prefix = prefix_of(label)
        searched = read_metrics(outputs["search"] / "metrics.json", *(prefix + name for name in _REQUIRED["search"]))
        retrained, tested = (
            read_metrics(folder_of(outputs[name], label) / "metrics.json", *_REQUIRED[name])
            for name in ("retrain", "evaluation")
        )
        weights = read_subnet_card(folder_of(outputs["retrain"], label) / "model").provenance["weights"]
        found[label] = _Found(chosen.subnet, metrics_of(searched, label), retrained, tested, str(weights))
    return found


def _subnet_rows(
    config: Config, found: _Found, table: LatencyTable | None, registration: Registration
) -> list[tuple[str, str]]:
    spec = found.spec
    params, macs = count_params(config.space, spec), count_macs(config.space, spec)
    return [
        ("chosen subnet", size_text(spec)),
        ("found by", found.by),
        ("heads", heads_text(spec)),
        ("MLP ratios", ratios_text(spec)),
        ("parameters", f"{params:,} ({params / 1e6:.3g} M)"),
        ("multiply-adds", f"{macs:,} ({macs / 1e9:.3g} G), without relative position"),
        *([("latency", f"{table.predict(spec):.3g} ms, {table.conditions} (predicted)")] if table else []),
        ("search split", _search_scores(found.searched, found.retrained)),
        ("", search_split_note(config.dataset)),
        ("test split", _test_scores(found.weights, found.tested, found.retrained)),
        ("registry", registration.reason),
    ]


def _side_by_side(config: Config, found: Mapping[str, _Found], registration: Registration) -> list[str]:
    """A table with a row for each budget."""
    titles = ("budget", "parameters", "multiply-adds", "search split", "test split, 95 % interval", "weights")
    cells = [[*titles, "from scratch", "registered"]]
    for label, one in found.items():
        low, high = one.tested["test_top1_low_percent"], one.tested["test_top1_high_percent"]
        searched = one.retrained.get("retrained_top1_percent", one.retrained["inherited_top1_percent"])
        scratch = one.tested.get("scratch_test_top1_percent")
        mine = registration.budgets[label]
        cells.append(
            [
                label,
                f"{count_params(config.space, one.spec):,}",
                f"{count_macs(config.space, one.spec):,}",
                f"{searched:.2f} %",
                f"{one.tested['test_top1_percent']:.2f} % ({low:.2f} to {high:.2f})",
                one.weights,
                "" if scratch is None else f"{scratch:.2f} %",
                f"{mine.model_name} version {mine.version}" if mine.version else "nothing",
            ]
        )
    return [f"  {line}" for line in aligned(cells, 2)]


def _budget_rows(
    config: Config, found: Mapping[str, _Found], table: LatencyTable | None, registration: Registration
) -> list[tuple[str, str]]:
    rows, labels = list[tuple[str, str]](), dict[SubnetSpec, str]()
    for label, one in found.items():
        latency = f", {table.predict(one.spec):.3g} ms, {table.conditions} (predicted)" if table else ""
        same = (
            f"; that of {labels[one.spec]}: the search found none that is larger and better"
            if one.spec in labels
            else ""
        )
        labels.setdefault(one.spec, label)
        rows += [(f"chosen within {label}", f"{shape_text(one.spec)}{latency}, found by {one.by}{same}")]
    rows += [(f"registry, {label}", one.reason) for label, one in registration.budgets.items()]
    return [*rows, ("search split", search_split_note(config.dataset))]


def _search_scores(searched: Mapping[str, float], retrained: Mapping[str, float]) -> str:
    parts = [f"inherited {retrained['inherited_top1_percent']:.2f} %"]
    if "finetuned_top1_percent" in retrained:
        parts.append(f"fine-tuned {retrained['finetuned_top1_percent']:.2f} %")
    elif "retrained_top1_percent" in retrained:
        parts.append(f"retrained {retrained['retrained_top1_percent']:.2f} %")
    if retrained.get("search_split_trained_on"):
        parts.append("then trained on: no score of the retrained subnet")
    if "scratch_top1_percent" in retrained:
        parts.append(f"{_scratch(retrained)} {retrained['scratch_top1_percent']:.2f} %")
    if "evolution_minus_random_percent" in searched:
        better, low, high = (searched[f"evolution_minus_random_{part}percent"] for part in ("", "low_", "high_"))
        if low == high:  # no image tells their best subnets apart, so no interval can be computed
            parts.append(f"the best of {method_of(searched)} and of random search right on the same images")
        else:
            parts.append(
                f"{method_of(searched)} {better:+.2f} against random search (95 % interval {low:+.2f} to {high:+.2f})"
            )
    return ", ".join(parts)


def _scratch(retrained: Mapping[str, float]) -> str:
    return f"from scratch in {quantity(retrained['scratch_epochs'], 'epoch')}"


def _test_scores(weights: str, tested: Mapping[str, float], retrained: Mapping[str, float]) -> str:
    low, high = tested["test_top1_low_percent"], tested["test_top1_high_percent"]
    parts = [
        f"{tested['test_top1_percent']:.2f} % top-1 (95 % interval {low:.2f} to {high:.2f})",
        _scratch(retrained) if weights == "scratch" and "scratch_epochs" in retrained else weights,
    ]
    if "inherited_test_top1_percent" in tested and weights != "inherited":
        parts.append(f"inherited {tested['inherited_test_top1_percent']:.2f} %")
    if "finetuned_test_top1_percent" in tested:
        parts.append(f"fine-tuned {tested['finetuned_test_top1_percent']:.2f} %")
    if "scratch_test_top1_percent" in tested and weights != "scratch":
        parts.append(f"{_scratch(retrained)} {tested['scratch_test_top1_percent']:.2f} %")
    return ", ".join(parts)
