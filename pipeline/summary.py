"""The table that a run ends with."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from autoformer.cards import read_subnet_card
from autoformer.complexity import count_macs, count_params
from autoformer.latency import table_of_search
from autoformer.reading import read_json_as
from autoformer.space import NamedSubnet
from autoformer.subnet_text import heads_text, ratios_text, size_text
from runtime.common.config import Config
from runtime.common.records import Registration, StepRecord, read_metrics
from runtime.common.search_split import search_split_note

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
    """The chosen subnet, its costs and accuracies, and the time of each step.

    Args:
        outputs: the folders `search`, `retrain` and `evaluation`, and the file `registration`.
        records: step -> its record.
        more: rows to add, of a name and a value.
    """
    spec = NamedSubnet.from_yaml(outputs["search"] / "chosen.yaml").subnet
    searched, retrained, tested = (
        read_metrics(outputs[name] / "metrics.json", *required) for name, required in _REQUIRED.items()
    )
    weights = read_subnet_card(outputs["retrain"] / "model").provenance["weights"]
    table = table_of_search(outputs["search"])
    params, macs = count_params(config.space, spec), count_macs(config.space, spec)
    rows = [
        ("chosen subnet", size_text(spec)),
        ("found by", "random search" if searched["chosen_is_random"] else "evolution"),
        ("heads", heads_text(spec)),
        ("MLP ratios", ratios_text(spec)),
        ("parameters", f"{params:,} ({params / 1e6:.3g} M)"),
        ("multiply-adds", f"{macs:,} ({macs / 1e9:.3g} G), without relative position"),
        *([("latency", f"{table.predict(spec):.3g} ms, {table.conditions} (predicted)")] if table else []),
        ("search split", _search_scores(searched, retrained)),
        ("", search_split_note(config.dataset)),
        ("test split", _test_scores(weights, tested, retrained)),
        ("registry", read_json_as(Registration, outputs["registration"]).reason),
        *((f"  {step}", f"{record.seconds:.0f} s") for step, record in records.items()),
        *more,
    ]
    return "\n" + "\n".join(f"  {name:<22}{value}" for name, value in rows)


def _search_scores(searched: Mapping[str, float], retrained: Mapping[str, float]) -> str:
    parts = [f"inherited {retrained['inherited_top1_percent']:.2f} %"]
    tuned = retrained.get("finetuned_top1_percent", retrained.get("retrained_top1_percent"))
    if tuned is not None:
        parts.append(f"retrained {tuned:.2f} %")
    if retrained.get("search_split_trained_on"):
        parts.append("then trained on: no score of the retrained subnet")
    if "scratch_top1_percent" in retrained:
        parts.append(f"{_scratch(retrained)} {retrained['scratch_top1_percent']:.2f} %")
    if "evolution_minus_random_percent" in searched:
        better, low, high = (searched[f"evolution_minus_random_{part}percent"] for part in ("", "low_", "high_"))
        parts.append(f"evolution {better:+.2f} against random search (95 % interval {low:+.2f} to {high:+.2f})")
    return ", ".join(parts)


def _scratch(retrained: Mapping[str, float]) -> str:
    return f"from scratch in {retrained['scratch_epochs']:g} epochs"


def _test_scores(weights: str, tested: Mapping[str, float], retrained: Mapping[str, float]) -> str:
    low, high = tested["test_top1_low_percent"], tested["test_top1_high_percent"]
    parts = [
        f"{tested['test_top1_percent']:.2f} % top-1 (95 % interval {low:.2f} to {high:.2f})",
        weights,
    ]
    if "inherited_test_top1_percent" in tested:
        parts.append(f"inherited {tested['inherited_test_top1_percent']:.2f} %")
    if "scratch_test_top1_percent" in tested:
        parts.append(f"{_scratch(retrained)} {tested['scratch_test_top1_percent']:.2f} %")
    return ", ".join(parts)
