"""The sections of the report, but for the first and the last. Titles say what was found."""

import json
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from autoformer.candidates import ScoredCandidate
from autoformer.complexity import count_params
from autoformer.evaluation import wilson_interval
from autoformer.pareto import pareto_front
from autoformer.subnet_text import heads_text, ratio_text, ratios_text, size_text
from components.evaluate_subnet import drawings
from components.evaluate_subnet.charts import element
from components.evaluate_subnet.measure import Evaluation
from components.evaluate_subnet.results import Point, Results


def section(title: str, *content: str) -> str:
    return element("section", element("h2", escape(title)) + "".join(content))


def prose(text: str) -> str:
    return element("p", escape(text), class_="note")


def chart(title: str, drawn: str) -> str:
    return element("div", element("h3", escape(title)) + drawn)


def columns(*content: str) -> str:
    return element("div", "".join(content), class_="columns")


def training(results: Results) -> str:
    charts = []
    loss = results.supernet_curves.get("train_loss")
    if loss:
        drawn = drawings.curves([("loss", "a", loss)], "epochs", "training loss of the sampled subnets, nats", digits=2)
        charts.append(chart("Supernet: loss", drawn))
    extremes = [
        (name, name, results.supernet_curves[f"{name}_top1_percent"])
        for name in ("smallest", "middle", "largest")
        if f"{name}_top1_percent" in results.supernet_curves
    ]
    if extremes:
        charts.append(
            chart(_spread(extremes), drawings.curves(extremes, "epochs", "top-1 accuracy on the search split, %"))
        )
    for column, title, y_title, digits in (
        ("train_loss", "Retraining: loss", "training loss, nats", 2),
        ("search_top1_percent", "Retraining: accuracy", "top-1 accuracy on the search split, %", 1),
    ):
        series = _retraining_series(results, column)
        if series:
            charts.append(chart(title, drawings.curves(series, "epochs", y_title, digits=digits)))
    notes = (
        "" if results.retrain_curves else prose("The subnet kept the weights that it inherited: nothing was retrained.")
    )
    title = "Did training settle? One supernet for all subnets, then the chosen one alone"
    return section(title, notes, columns(*charts)) if charts else ""


def _spread(extremes: Sequence[tuple[str, str, Sequence[Point]]]) -> str:
    if len(extremes) < 3:
        return "Supernet: accuracy of its subnets"
    gap = extremes[2][2][-1][1] - extremes[0][2][-1][1]
    return f"Supernet: the largest subnet ends {abs(gap):.1f} points {'above' if gap >= 0 else 'below'} the smallest"


def _retraining_series(results: Results, column: str) -> list[tuple[str, str, Sequence[Point]]]:
    retrained = "fine-tuned" if results.mode == "finetune" else results.mode
    names = ((retrained, "a", results.retrain_curves), ("scratch", "b", results.scratch_curves))
    return [(name, css, curves[column]) for name, css, curves in names if column in curves]


def search_progress(results: Results) -> str:
    progress = results.search.progress
    names = (("evolution", "a", "evolution_best_top1_percent"), ("random", "b", "random_best_top1_percent"))
    series = [(name, css, progress[column]) for name, css, column in names if column in progress]
    if not series:
        return ""
    ends = [points[-1][1] for _, _, points in series]
    scored = f"after {series[0][2][-1][0]:,.0f} candidates"
    if len(ends) == 2:
        relation = "ahead of" if ends[0] > ends[1] else "level with" if ends[0] == ends[1] else "behind"
        title = f"Evolution is {relation} random search {scored} each: {ends[0]:.2f} against {ends[1]:.2f} %"
    else:
        title = f"Evolution reaches {ends[0]:.2f} % {scored}"
    drawn = drawings.curves(
        series, "candidates scored", "best top-1 accuracy so far on the search split, %", steps=True, digits=2
    )
    note = "All candidates are scored with weights inherited from the supernet."
    stopped = sum(not candidate.complete for candidate in results.search.candidates)
    if stopped:
        note += f" {stopped:,} of {len(results.search.candidates):,} were stopped before they were scored whole."
    if results.search.images:
        low, high = wilson_interval(round(ends[0] / 100 * results.search.images), results.search.images)
        note += (
            f" One score on {results.search.images:,} images is uncertain by about ±{50 * (high - low):.1f} points "
            "(95 %), and the best of many is flattered by chance: smaller gaps decide little."
        )
    return section(title, prose(note), drawn)


def candidates(results: Results) -> str:
    found, chosen, size = results.search.candidates, results.search.chosen, results.space.supernet
    whole = [index for index, outcome in enumerate(found) if outcome.complete]
    params = [outcome.candidate.params for outcome in found]
    front = [whole[i] for i in pareto_front([(params[index], -found[index].top1_percent) for index in whole])]
    at_most = [found[index] for index in whole if params[index] <= params[chosen]]
    better = sum(c.top1_percent > found[chosen].top1_percent for c in at_most)
    of_all = f"{len(whole):,}" + ("" if len(whole) == len(found) else " that were scored whole")
    title = (
        f"No candidate as small beats the chosen subnet; {len(front)} of {of_all} are on the Pareto front"
        if not better
        else f"{better} of {of_all} candidates beat the chosen subnet and are no larger"
    )
    stopped = len(found) - len(whole)
    note = f" {stopped:,} faint marks were stopped early: their scores are estimates." if stopped else ""
    data = json.dumps(
        [_described(c, index == chosen) for index, c in enumerate(found)], ensure_ascii=False, separators=(",", ":")
    )
    panel = element(
        "div",
        element("p", "Point at a candidate to see its architecture."),
        class_="panel",
        id="candidate",
        aria_live="polite",
        data_depth=str(size.depth),
        data_heads=str(size.num_heads),
        data_ratio=str(size.mlp_ratio),
    )
    picture = element("div", drawings.scatter(found, front, chosen) + _key(any(c.is_baseline for c in found)))
    return section(
        title,
        prose(
            "Point at a mark, or tap it, to see the candidate; a click pins it. Keys: arrows, Home, End, Escape." + note
        ),
        element("div", picture + panel, class_="columns wide-narrow"),
        element(
            "details",
            element("summary", "The Pareto front as a table") + _front_table([found[index] for index in front]),
        ),
        element("script", data.replace("<", "\\u003c"), type="application/json", id="candidates"),
    )


def _key(baseline: bool) -> str:
    marks = (
        ('<circle class="evolved" cx="11" cy="7" r="5"/>', "evolution"),
        ('<circle class="baseline" cx="11" cy="7" r="4.5" stroke-width="1.6"/>', "random search"),
        ('<line class="line front" x1="0" x2="22" y1="7" y2="7"/>', "Pareto front of those scored whole"),
    )
    keys = (
        f'<span class="key"><svg aria-hidden="true">{mark}</svg>{text}</span>'
        for mark, text in marks
        if baseline or text != "random search"
    )
    return element("p", "".join(keys), class_="note")


def _described(outcome: ScoredCandidate, chosen: bool) -> dict[str, Any]:
    """What the panel beside the scatter plot says of a candidate."""
    candidate, spec = outcome.candidate, outcome.candidate.spec
    origin = {
        "initial": "drawn at random to start evolution",
        "fill": "drawn at random to fill up",
        "baseline": "random search",
    }
    born = origin.get(candidate.origin, candidate.origin)
    if not outcome.is_baseline:
        born += f", generation {candidate.generation}"
    if candidate.parents:
        born += f", from {' and '.join(map(str, candidate.parents))}"
    return {
        "score": f"{outcome.top1_percent:.2f} %{' · chosen' if chosen else ''}"
        if outcome.complete
        else f"about {outcome.top1_percent:.1f} % · stopped after {outcome.images:,} images",
        "cost": f"{amount(candidate.params)} parameters, {amount(candidate.macs)} multiply-adds",
        "shape": size_text(spec) + ("" if outcome.loss is None else f", loss {outcome.loss:.3f}"),
        "origin": f"candidate {candidate.id}: {born}",
        "heads": list(spec.num_heads),
        "ratios": [ratio_text(ratio) for ratio in spec.mlp_ratio],
    }


def _front_table(front: Sequence[ScoredCandidate]) -> str:
    header = ("candidate", "top-1, %", "parameters", "multiply-adds", "depth", "width", "heads", "MLP ratio")
    return drawings.table(header, [_front_row(outcome) for outcome in front])


def _front_row(outcome: ScoredCandidate) -> tuple[str, ...]:
    candidate, spec = outcome.candidate, outcome.candidate.spec
    costs = (amount(candidate.params), amount(candidate.macs))
    shape = (str(spec.depth), str(spec.embed_dim), heads_text(spec), ratios_text(spec))
    return (str(candidate.id), f"{outcome.top1_percent:.2f}", *costs, *shape)


def architecture(results: Results) -> str:
    spec, space = results.subnet.subnet, results.space
    share = 100 * count_params(space, spec) / count_params(space, space.largest)
    blocks = f"{spec.depth} of {space.supernet.depth} blocks"
    title = f"The chosen subnet: {blocks}, {share:.0f} % of the largest subnet's parameters"
    note = prose("Filled: what the subnet uses. Outlined: what the supernet has. Each column has its own scale.")
    return section(title, note, drawings.architecture(space, spec))


def confusion(results: Results, evaluation: Evaluation) -> str:
    classes, matrix = results.card.classes, evaluation.confusion
    recall = np.diag(matrix) / np.maximum(matrix.sum(axis=1), 1)
    present = np.flatnonzero(matrix.sum(axis=1))
    hardest = int(present[np.argmin(recall[present])])
    mistaken = matrix[hardest].copy()
    mistaken[hardest] = 0
    title = f"‘{classes[hardest]}’ is the hardest class: {100 * recall[hardest]:.1f} % right"
    if mistaken.any():
        title += f", most often taken for ‘{classes[int(mistaken.argmax())]}’"
    if len(classes) > drawings.MOST_CLASSES:
        note = prose(f"A matrix of {len(classes):,} classes cannot be read here; the whole of it is in confusion.json.")
        hardest_ones = element("h3", "Hardest classes") + drawings.hardest_classes(matrix, classes, 12)
        pairs = element("h3", "Most frequent confusions") + drawings.top_confusions(matrix, classes, 12)
        return section(title, note, columns(element("div", hardest_ones), element("div", pairs)))
    note = prose(
        "Rows: what the image is. Columns: what the subnet says. Shade: share of the row, on a square-root scale."
    )
    errors = element("div", element("h3", "Most frequent confusions") + drawings.top_confusions(matrix, classes, 8))
    return section(
        title, note, element("div", drawings.confusion(matrix, classes) + errors, class_="columns wide-narrow")
    )


def mistakes(results: Results, evaluation: Evaluation) -> str:
    classes = results.card.classes
    wrong = evaluation.scores["retrained"].images - evaluation.scores["retrained"].correct
    if not evaluation.mistakes:
        return ""
    shown, count = drawings.thumbnails(
        [
            (m.pixels, classes[m.actual], classes[m.predicted], m.probability, m.actual_probability)
            for m in evaluation.mistakes
        ]
    )
    title = f"The {count} most confident of its {wrong:,} mistakes"
    return section(
        title,
        prose("What it said and how sure it was; below, what the label says and the probability that it gave that."),
        shown,
    )


def amount(count: float) -> str:
    """Three significant digits with k, M or G: "312 k", "9.84 M", the space unbreakable."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size * 0.9995:
            figure = count / size
            return f"{figure:.{2 if figure < 9.995 else 1 if figure < 99.95 else 0}f}\u00a0{unit}"
    return f"{count:.0f}"
