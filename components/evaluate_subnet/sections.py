"""The values that templates/report.html.j2 shows, section by section."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from markupsafe import Markup

from autoformer.candidates import ScoredCandidate
from autoformer.evaluation import paired_difference, wilson_interval
from autoformer.pareto import pareto_front
from autoformer.space import SubnetSpec
from autoformer.subnet_text import ratio_text, size_text
from components.evaluate_subnet import drawings
from components.evaluate_subnet.confusions import LARGEST_MATRIX, top_confusions
from components.evaluate_subnet.drawings import Series
from components.evaluate_subnet.measure import Evaluation, Measured
from components.evaluate_subnet.results import Model, Results

LONG_NAME = 18  # characters of a class
THUMBNAIL_BYTES = 3_000_000  # of all mistakes together: keeps the report below 5 MB
LISTED_BESIDE_MATRIX, LISTED_INSTEAD = 8, 12  # confusions and hardest classes
_COLOURS: dict[Model, str] = {"retrained": "a", "inherited": "neutral", "scratch": "b"}
_MODE_LABELS = {"finetune": "fine-tuned", "scratch": "from random weights", "inherited": "inherited weights"}
_ORIGINS = {
    "initial": "drawn at random for the initial population",
    "fill": "drawn at random to fill its generation",
    "baseline": "random search",
    "earlier": "among the best of an earlier search",
}


def comparison(results: Results, evaluation: Evaluation) -> Markup:
    labels: dict[Model, str] = {
        "retrained": f"Chosen subnet, {_MODE_LABELS.get(results.mode, results.mode)}",
        "inherited": "With inherited weights, untouched",
        "scratch": "From random weights, for as many images",
    }
    return drawings.comparison([(labels[name], _COLOURS[name], scores) for name, scores in evaluation.scores.items()])


def supernet_training(results: Results) -> list[tuple[str, Markup]]:
    """(title, chart); empty if nothing was recorded."""
    supernet, charts = results.supernet_curves, []
    if loss := supernet.get("train_loss"):
        curve = drawings.curves([("loss", "a", loss)], "epochs", "training loss of the sampled subnets, nats", digits=2)
        charts.append(("Supernet: loss", curve))
    sizes = [size for size in ("smallest", "middle", "largest") if f"{size}_top1_percent" in supernet]
    extremes: list[Series] = [(size, size, supernet[f"{size}_top1_percent"]) for size in sizes]
    if extremes:
        title = "Supernet: accuracy of its subnets"
        if len(extremes) == 3:
            gap = extremes[2][2][-1][1] - extremes[0][2][-1][1]
            relation = f"{abs(gap):.1f} points {'above' if gap >= 0 else 'below'}"
            title = f"Supernet: the largest subnet ends {relation} the smallest"
        charts.append((title, drawings.curves(extremes, "epochs", "top-1 accuracy on the search split, %")))
    return charts


def retraining(results: Results) -> list[tuple[str, Markup]]:
    """(title, chart); empty if nothing was trained."""
    charts = []
    retrained = "scratch" if results.mode == "scratch" else "fine-tuned"  # also where the inherited weights were kept
    names = ((retrained, "a", results.retrain_curves), ("scratch", "b", results.scratch_curves))
    for column, title, y_title, digits in (
        ("train_loss", "Retraining: loss", "training loss, nats", 2),
        ("search_top1_percent", "Retraining: accuracy", "top-1 accuracy on the search split, %", 1),
    ):
        series: list[Series] = [(name, css, curves[column]) for name, css, curves in names if column in curves]
        if series:
            charts.append((title, drawings.curves(series, "epochs", y_title, digits=digits)))
    return charts


def search_progress(results: Results) -> dict[str, Any] | None:
    progress, images = results.search.progress, results.search.images
    names = (("evolution", "a", "evolution_best_top1_percent"), ("random", "b", "random_best_top1_percent"))
    series: list[Series] = [(name, css, progress[column]) for name, css, column in names if column in progress]
    if not series:
        return None
    scored, best = series[0][2][-1]
    y_title = "best top-1 accuracy so far on the search split, %"
    interval = wilson_interval(round(best / 100 * images), images) if images else None
    return {
        "evolution": best,
        "random": series[1][2][-1][1] if len(series) == 2 else None,
        "scored": scored,
        "uncertainty": 50 * (interval.high - interval.low) if interval else None,  # ± points
        "chart": drawings.curves(series, "candidates scored", y_title, steps=True, digits=2),
    }


def candidates(results: Results, labels: Mapping[int, str] | None = None) -> dict[str, Any]:
    """`labels`: index of a candidate -> the budgets that have chosen it; None where the run has one subnet."""
    outcomes, chosen = results.search.candidates, results.search.chosen
    texts = {chosen: "chosen"} if not labels else {index: f"chosen for {text}" for index, text in labels.items()}
    labels = labels or texts
    params = [outcome.candidate.params for outcome in outcomes]
    complete = [index for index, outcome in enumerate(outcomes) if outcome.complete]
    front = _front(outcomes, complete, params)
    latencies = [outcome.candidate.latency_ms or 0.0 for outcome in outcomes]
    best = outcomes[chosen].top1_percent
    return {
        "complete": len(complete),
        "stopped": len(outcomes) - len(complete),
        "better": sum(params[i] <= params[chosen] and outcomes[i].top1_percent > best for i in complete),
        "has_baseline": any(outcome.is_baseline for outcome in outcomes),
        "front": [outcomes[index] for index in front],
        "described": [_described(outcome, texts.get(index, "")) for index, outcome in enumerate(outcomes)],
        "chart": drawings.scatter(outcomes, [n / 1e6 for n in params], "parameters, millions", front, labels),
        "latency_chart": drawings.scatter(
            outcomes, latencies, "latency, ms", _front(outcomes, complete, latencies), labels
        )
        if results.search.table
        else None,
    }


def _front(outcomes: Sequence[ScoredCandidate], complete: Sequence[int], costs: Sequence[float]) -> list[int]:
    """The indices of the complete candidates that none beats in both accuracy and cost."""
    return [complete[i] for i in pareto_front([(costs[i], -outcomes[i].top1_percent) for i in complete])]


def _described(outcome: ScoredCandidate, chosen: str) -> dict[str, Any]:
    """A candidate as report.js shows it in the panel beside the scatter plot."""
    candidate, spec = outcome.candidate, outcome.candidate.spec
    origin = _ORIGINS.get(candidate.origin, candidate.origin)
    if not outcome.is_baseline:
        origin += f", generation {candidate.generation}"
    if candidate.parents:
        origin += f", from {' and '.join(map(str, candidate.parents))}"
    return {
        "score": f"{outcome.top1_percent:.2f} %{f' · {chosen}' if chosen else ''}"
        if outcome.complete
        else f"about {outcome.top1_percent:.1f} % · stopped after {outcome.images:,} images",
        "cost": f"{amount(candidate.params)} parameters, {amount(candidate.macs)} MACs without relative position"
        + ("" if candidate.latency_ms is None else f", {candidate.latency_ms:.3g} ms"),
        "shape": size_text(spec) + ("" if outcome.loss is None else f", loss {outcome.loss:.3f}"),
        "origin": f"candidate {candidate.id}: {origin}",
        "heads": list(spec.num_heads),
        "ratios": [ratio_text(ratio) for ratio in spec.mlp_ratio],
    }


def confusion(results: Results, evaluation: Evaluation) -> dict[str, Any]:
    classes, matrix = results.card.classes, evaluation.confusion
    images, right, errors = matrix.sum(axis=1), np.diag(matrix), matrix.copy()
    np.fill_diagonal(errors, 0)
    recall = right / np.maximum(images, 1)
    order = [int(label) for label in np.argsort(recall, kind="stable") if images[label]]
    is_small = len(classes) <= LARGEST_MATRIX
    pairs = top_confusions(classes, matrix, LISTED_BESIDE_MATRIX if is_small else LISTED_INSTEAD)
    return {
        "hardest": [
            {
                "name": classes[label],
                "images": images[label],
                "wrong": images[label] - right[label],
                "recall": recall[label],
                "taken_for": classes[errors[label].argmax()] if errors[label].any() else None,
            }
            for label in order[:LISTED_INSTEAD]
        ],
        "pairs": [pair for pair in pairs if pair.errors > 1 or pairs[0].errors == 1],
        "chart": drawings.confusion(matrix, classes) if is_small else None,
    }


def mistakes(results: Results, evaluation: Evaluation, room: int = THUMBNAIL_BYTES) -> dict[str, Any] | None:
    """As many mistakes, with their images, as there is room for, in bytes."""
    shown, size, classes = [], 0, results.card.classes
    for mistake in evaluation.mistakes:
        source = drawings.data_uri(mistake.pixels)
        size += len(source)
        if size > room:
            break
        shown.append((mistake, source))
    labels = {label for mistake in evaluation.mistakes for label in (mistake.actual, mistake.predicted)}
    return (
        {"shown": shown, "has_long_names": any(len(classes[label]) > LONG_NAME for label in labels)} if shown else None
    )


def amount(count: float) -> str:
    """Three significant digits with k, M or G, and a no-break space: "312 k", "9.84 M"."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size * 0.9995:
            figure = count / size
            return f"{figure:.{2 if figure < 9.995 else 1 if figure < 99.95 else 0}f}\u00a0{unit}"
    return f"{count:.0f}"


def repeated(budgets: Mapping[str, Measured]) -> dict[str, str]:
    """The label of a budget whose subnet a smaller one has chosen too -> the label of the smaller."""
    first: dict[SubnetSpec, str] = {}
    for label, one in budgets.items():
        first.setdefault(one.results.subnet.subnet, label)
    return {label: first[spec] for label, one in budgets.items() if first[spec := one.results.subnet.subnet] != label}


def chosen_labels(budgets: Mapping[str, Measured]) -> dict[int, str]:
    """Index of a candidate -> the labels of the budgets that have chosen it."""
    labels: dict[int, str] = {}
    for label, one in budgets.items():
        index = one.results.search.chosen
        labels[index] = f"{labels[index]}, {label}" if index in labels else label
    return labels


def side_by_side(budgets: Mapping[str, Measured]) -> dict[str, Any]:
    """The budgets as rows of a table, what one has more than the one before, and their searches."""
    same, labels = repeated(budgets), list(budgets)
    rows = [
        {
            "label": label,
            "spec": one.results.subnet.subnet,
            "figures": one.figures,
            "scores": one.evaluation.scores["retrained"],
            "mode": _MODE_LABELS.get(one.results.mode, one.results.mode),
            "inherited": one.results.retrain_metrics["inherited_top1_percent"],
            "retrained": one.results.retrain_metrics.get("retrained_top1_percent"),
        }
        for label, one in budgets.items()
    ]
    steps = []
    for before, label in pairwise(labels):
        low, high = budgets[before], budgets[label]
        right = [one.evaluation.predicted == one.evaluation.actual for one in (high, low)]
        difference = None if same.get(label) in (before, same.get(before, before)) else paired_difference(*right)
        times = high.figures["params"] / low.figures["params"]
        steps.append({"than": before, "label": label, "times": times, "difference": difference})
    return {
        "rows": rows,
        "steps": steps,
        "has_scratch": all("scratch_test_top1_percent" in one.figures for one in budgets.values()),
        "chart": drawings.comparison(
            [(label, "a", one.evaluation.scores["retrained"]) for label, one in budgets.items()]
        ),
        "searches": [
            {"label": label, "progress": progress}
            for label, one in budgets.items()
            if (progress := search_progress(one.results))
        ],
    }
