"""Values of templates/report.html.j2, section by section."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from markupsafe import Markup

from autoformer.evaluation import paired_difference
from autoformer.space import SubnetSpec
from components.evaluate_subnet import drawings
from components.evaluate_subnet.confusions import LARGEST_MATRIX, top_confusions
from components.evaluate_subnet.drawings import Series
from components.evaluate_subnet.measure import Evaluation, Measured
from components.evaluate_subnet.results import Model, Results
from components.evaluate_subnet.search_sections import search_progress

LONG_NAME = 18  # characters of a class name name
THUMBNAIL_BYTES = 3_000_000  # for all mistakes: keeps the report below 5 MB
LISTED_BESIDE_MATRIX, LISTED_INSTEAD = 8, 12  # confusions and hardest classes
_COLOURS: dict[Model, str] = {"retrained": "a", "inherited": "neutral", "finetuned": "neutral", "scratch": "b"}
_MODE_LABELS = {"finetune": "fine-tuned", "scratch": "from random weights", "inherited": "inherited weights"}


def comparison(results: Results, evaluation: Evaluation) -> Markup:
    labels: dict[Model, str] = {
        "retrained": f"Chosen subnet, {_MODE_LABELS.get(results.mode, results.mode)}",
        "inherited": "With inherited weights, untouched",
        "finetuned": "Fine-tuned",
        "scratch": "From random weights, for as many images",
    }
    rows = [
        (labels[name], _COLOURS[name], scores) for name, scores in evaluation.scores.items() if name != results.mode
    ]
    return drawings.comparison(rows)


def supernet_training(results: Results) -> list[tuple[str, Markup]]:
    """Pairs (title, chart) of the supernet's training; empty if nothing was recorded."""
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
    """Pairs (title, chart) of the retraining; empty if nothing was trained."""
    charts = []
    is_scratch = results.mode == "scratch" and not results.scratch_curves  # else fine-tuned, whatever was kept of it
    names = (
        ("scratch" if is_scratch else "fine-tuned", "a", results.retrain_curves),
        ("scratch", "b", results.scratch_curves),
    )
    for column, title, y_title, digits in (
        ("train_loss", "Retraining: loss", "training loss, nats", 2),
        ("search_top1_percent", "Retraining: accuracy", "top-1 accuracy on the search split, %", 1),
    ):
        series: list[Series] = [(name, css, curves[column]) for name, css, curves in names if column in curves]
        if series:
            charts.append((title, drawings.curves(series, "epochs", y_title, digits=digits)))
    return charts


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
    """The mistakes with their images, as many as fit into `room` bytes."""
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


def repeated(budgets: Mapping[str, Measured]) -> dict[str, str]:
    """Label of a budget -> label of the smallest budget that chose the same subnet, if it is another."""
    first: dict[SubnetSpec, str] = {}
    for label, one in budgets.items():
        first.setdefault(one.results.subnet.subnet, label)
    return {label: first[spec] for label, one in budgets.items() if first[spec := one.results.subnet.subnet] != label}


def chosen_labels(budgets: Mapping[str, Measured]) -> dict[int, str]:
    """Index of a candidate -> labels of the budgets that chose it."""
    labels: dict[int, str] = {}
    for label, one in budgets.items():
        index = one.results.search.chosen
        labels[index] = f"{labels[index]}, {label}" if index in labels else label
    return labels


def side_by_side(budgets: Mapping[str, Measured]) -> dict[str, Any]:
    """The budgets as table rows, the gain of each over the next smaller one, and their searches."""
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
