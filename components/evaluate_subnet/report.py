"""The report: one HTML file that needs no network. Its bytes are a function of results and evaluation alone."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from autoformer.complexity import count_macs, count_params
from autoformer.evaluation import ECE_BINS, wilson_interval
from autoformer.pareto import pareto_front
from components.evaluate_subnet import drawings
from components.evaluate_subnet.charts import element
from components.evaluate_subnet.measure import Evaluation
from components.evaluate_subnet.results import Candidate, Model, Point, Results

_HERE = Path(__file__).parent
_WAYS = {
    "finetune": "fine-tuned from the supernet's weights",
    "scratch": "trained from random weights",
    "inherited": "with the supernet's weights as they are",
}
_COLOURS: dict[Model, str] = {"retrained": "a", "inherited": "neutral", "scratch": "b"}


def render(results: Results, evaluation: Evaluation, config: Mapping[str, Any]) -> str:
    """The page. `config`: what decided the evaluation, as plain data."""
    parts = [
        _headline(results, evaluation),
        _training(results),
        _search_progress(results),
        _candidates(results),
        _architecture(results),
        _confusion(results, evaluation),
        _mistakes(results, evaluation),
        _provenance(results, config),
    ]
    title = f"{results.subnet.name} on {results.card.name}"
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        + element("title", escape(title))
        + element("style", (_HERE / "report.css").read_text(encoding="utf-8"))
    )
    script = element("script", (_HERE / "report.js").read_text(encoding="utf-8"))
    text = "\n".join(part for part in parts if part).replace(" %", "\u00a0%")  # no line break before a unit
    body = element("main", text) + script
    return f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>{body}</body>\n</html>\n'


def _section(title: str, *content: str) -> str:
    return element("section", element("h2", escape(title)) + "".join(content))


def _note(text: str) -> str:
    return element("p", escape(text), class_="note")


def _chart(title: str, drawn: str) -> str:
    return element("div", element("h3", escape(title)) + drawn)


def _columns(*content: str) -> str:
    return element("div", "".join(content), class_="columns")


def _headline(results: Results, evaluation: Evaluation) -> str:
    spec, scores = results.subnet.subnet, evaluation.scores["retrained"]
    params, macs = count_params(results.space, spec), count_macs(results.space, spec)
    low, high = scores.top1_interval
    title = (
        f"A vision transformer of {amount(params)} parameters names {scores.top1_percent:.1f} % of unseen images right"
    )
    unseen = f"{scores.images:,} test images that nothing before has seen"
    kicker = f"{results.card.name} · search space {results.space.name} · {unseen}"
    tiles = [
        (f"{scores.top1_percent:.2f} %", f"test accuracy (top-1), 95 % interval {low:.2f} to {high:.2f} %"),
        (amount(params), f"parameters; depth {spec.depth}, width {spec.embed_dim}"),
        (amount(macs), "multiply-adds for one image"),
        (f"{100 * scores.ece:.1f} %", f"calibration error: mean gap between confidence and accuracy, {ECE_BINS} bins"),
    ]
    drawn = "".join(_tile(value, text) for value, text in tiles)
    rows = [(_label(name, results.mode), _COLOURS[name], found) for name, found in evaluation.scores.items()]
    compared = _chart("How much do the weights matter? The same subnet, three ways", drawings.comparison(rows))
    if len(rows) == 2:
        compared = compared.replace("three ways", "two ways")
    text = element("div", "".join(element("p", escape(line)) for line in _findings(results, evaluation)))
    head = element("p", escape(kicker), class_="kicker") + element("h1", escape(title))
    return element("header", head + element("div", drawn, class_="tiles")) + element(
        "section", _columns(compared, text)
    )


def _tile(value: str, text: str) -> str:
    figure, _, unit = value.replace("\u00a0", " ").partition(" ")
    return element(
        "div",
        element("b", f"{escape(figure)} <small>{escape(unit)}</small>") + element("span", escape(text)),
        class_="tile",
    )


def _label(name: Model, mode: str) -> str:
    if name == "retrained":
        return f"Chosen subnet, {_WAYS.get(mode, mode)}"
    return {"inherited": "With inherited weights, untouched", "scratch": "From random weights, same recipe"}[name]


def _findings(results: Results, evaluation: Evaluation) -> list[str]:
    """The comparisons in words: differences with their paired intervals, and the random baseline."""
    lines = []
    for name, difference in evaluation.differences.items():
        low, high = difference.interval
        against = {"inherited": "the inherited weights", "scratch": "training from random weights"}[name]
        lines.append(
            f"Against {against} the retrained subnet is {difference.percent:+.2f} points in test accuracy "
            f"(95 % interval {low:+.2f} to {high:+.2f}): it gains {difference.gained:,} images "
            f"and loses {difference.lost:,}."
        )
    metrics, chosen = results.search.metrics, results.search.candidates[results.search.chosen]
    random_best = metrics.get("random_best_top1_percent")
    if random_best is not None:
        lines.append(
            f"Evolution's choice scored {chosen.top1_percent:.2f} % on the search split; the best of as many random "
            f"subnets scored {random_best:.2f} %, a difference of {chosen.top1_percent - random_best:+.2f} points. "
            "Both with inherited weights."
        )
    scores = evaluation.scores["retrained"]
    top5 = f"Top-5 accuracy is {scores.top5_percent:.2f} %, " if len(results.card.classes) > 5 else ""
    guess = 100 / len(results.card.classes)
    mean = "mean" if top5 else "Mean"
    lines.append(f"{top5}{mean} cross entropy {scores.loss:.3f} nats. Guessing would be right in {guess:.3g} %.")
    return lines


def _training(results: Results) -> str:
    charts = []
    loss = results.supernet_curves.get("train_loss")
    if loss:
        drawn = drawings.curves([("loss", "a", loss)], "epochs", "training loss of the sampled subnets, nats", digits=2)
        charts.append(_chart("Supernet: loss", drawn))
    extremes = [
        (name, name, results.supernet_curves[f"{name}_top1_percent"])
        for name in ("smallest", "middle", "largest")
        if f"{name}_top1_percent" in results.supernet_curves
    ]
    if extremes:
        charts.append(
            _chart(_spread(extremes), drawings.curves(extremes, "epochs", "top-1 accuracy on the search split, %"))
        )
    for column, title, y_title, digits in (
        ("train_loss", "Retraining: loss", "training loss, nats", 2),
        ("search_top1_percent", "Retraining: accuracy", "top-1 accuracy on the search split, %", 1),
    ):
        series = _retraining_series(results, column)
        if series:
            charts.append(_chart(title, drawings.curves(series, "epochs", y_title, digits=digits)))
    notes = (
        "" if results.retrain_curves else _note("The subnet kept the weights that it inherited: nothing was retrained.")
    )
    title = "Did training settle? One supernet for all subnets, then the chosen one alone"
    return _section(title, notes, _columns(*charts)) if charts else ""


def _spread(extremes: Sequence[tuple[str, str, Sequence[Point]]]) -> str:
    if len(extremes) < 3:
        return "Supernet: accuracy of its subnets"
    gap = extremes[2][2][-1][1] - extremes[0][2][-1][1]
    return f"Supernet: the largest subnet ends {abs(gap):.1f} points {'above' if gap >= 0 else 'below'} the smallest"


def _retraining_series(results: Results, column: str) -> list[tuple[str, str, Sequence[Point]]]:
    retrained = "fine-tuned" if results.mode == "finetune" else results.mode
    names = ((retrained, "a", results.retrain_curves), ("scratch", "b", results.scratch_curves))
    return [(name, css, curves[column]) for name, css, curves in names if column in curves]


def _search_progress(results: Results) -> str:
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
    if results.search.images:
        low, high = wilson_interval(round(ends[0] / 100 * results.search.images), results.search.images)
        note += (
            f" One score on {results.search.images:,} images is uncertain by about ±{50 * (high - low):.1f} points "
            "(95 %), and the best of many is flattered by chance: smaller gaps decide little."
        )
    return _section(title, _note(note), drawn)


def _candidates(results: Results) -> str:
    found, chosen = results.search.candidates, results.search.chosen
    front = pareto_front([(candidate.params, -candidate.top1_percent) for candidate in found])
    at_most = [c for c in found if c.params <= found[chosen].params]
    better = sum(c.top1_percent > found[chosen].top1_percent for c in at_most)
    title = (
        f"No candidate as small beats the chosen subnet; {len(front)} of {len(found):,} are on the Pareto front"
        if not better
        else f"{better} of {len(found):,} candidates are no larger than the chosen subnet and score higher"
    )
    data = json.dumps(
        [_described(c, index == chosen) for index, c in enumerate(found)], ensure_ascii=False, separators=(",", ":")
    )
    panel = element(
        "div",
        element("p", "Point at a candidate to see its architecture."),
        class_="panel",
        id="candidate",
        aria_live="polite",
    )
    picture = element("div", drawings.scatter(found, front, chosen) + _key(any(c.is_baseline for c in found)))
    return _section(
        title,
        _note("Point at a mark, or use the arrow keys, to see the candidate; click to pin it."),
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
        ('<line class="line front" x1="0" x2="22" y1="7" y2="7"/>', "Pareto front of all"),
    )
    keys = (
        f'<span class="key"><svg aria-hidden="true">{mark}</svg>{text}</span>'
        for mark, text in marks
        if baseline or text != "random search"
    )
    return element("p", "".join(keys), class_="note")


def _described(candidate: Candidate, chosen: bool) -> dict[str, Any]:
    """What the panel beside the scatter plot says of a candidate."""
    origin = {
        "initial": "drawn at random to start evolution",
        "fill": "drawn at random to fill up",
        "baseline": "random search",
    }
    born = origin.get(candidate.origin, candidate.origin)
    if not candidate.is_baseline:
        born += f", generation {candidate.generation}"
    if candidate.parents:
        born += f", from {' and '.join(candidate.parents)}"
    return {
        "score": f"{candidate.top1_percent:.2f} %{' · chosen' if chosen else ''}",
        "cost": f"{amount(candidate.params)} parameters, {amount(candidate.macs)} multiply-adds",
        "shape": f"depth {candidate.spec.depth}, width {candidate.spec.embed_dim}, loss {candidate.loss:.3f}",
        "origin": f"candidate {candidate.id}: {born}",
        "heads": list(candidate.spec.num_heads),
        "ratios": [f"{ratio:g}" for ratio in candidate.spec.mlp_ratio],
    }


def _front_table(front: Sequence[Candidate]) -> str:
    header = ("candidate", "top-1, %", "parameters", "multiply-adds", "depth", "width", "heads", "MLP ratio")
    rows = [
        (
            c.id, f"{c.top1_percent:.2f}", amount(c.params), amount(c.macs), str(c.spec.depth), str(c.spec.embed_dim),
            " ".join(map(str, c.spec.num_heads)), " ".join(f"{ratio:g}" for ratio in c.spec.mlp_ratio),
        )
        for c in front
    ]  # fmt: skip
    return drawings.table(header, rows)


def _architecture(results: Results) -> str:
    spec, space = results.subnet.subnet, results.space
    share = 100 * count_params(space, spec) / count_params(space, space.largest)
    blocks = f"{spec.depth} of {space.supernet.depth} blocks"
    title = f"The chosen subnet: {blocks}, {share:.0f} % of the largest subnet's parameters"
    note = _note("Filled: what the subnet uses. Outlined: what the supernet has. Each column has its own scale.")
    return _section(title, note, drawings.architecture(space, spec))


def _confusion(results: Results, evaluation: Evaluation) -> str:
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
        note = _note(
            f"The 20 most frequent confusions of {len(classes):,} classes; the whole matrix is in confusion.json."
        )
        return _section(title, note, drawings.top_confusions(matrix, classes, 20))
    note = _note(
        "Rows: what the image is. Columns: what the subnet says. Shade: share of the row, on a square-root scale."
    )
    errors = element("div", element("h3", "Most frequent confusions") + drawings.top_confusions(matrix, classes, 8))
    return _section(
        title, note, element("div", drawings.confusion(matrix, classes) + errors, class_="columns wide-narrow")
    )


def _mistakes(results: Results, evaluation: Evaluation) -> str:
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
    return _section(
        title,
        _note("What it said and how sure it was; below, what the label says and the probability that it gave that."),
        shown,
    )


def _provenance(results: Results, config: Mapping[str, Any]) -> str:
    retrain = results.provenance["retrain_subnet"]
    main = {
        "seed": str(config.get("seed", "")),
        "data set": f"{results.card.name} ({results.card.licence})",
        "source": results.card.source,
        **{
            f"{split} split": f"{results.card.counts.get(split, 0):,} images, sha256 {digest}"
            for split, digest in results.card.split_hashes.items()
        },
        "search space": f"{results.space.name}, {results.space.count():.4g} subnets",
        "subnet": results.subnet.subnet.to_json(),
        "chosen by": results.subnet.source,
        "weights": _WAYS.get(results.mode, results.mode),
        "code": str(retrain.get("code", "not recorded")),
    }
    details = {"evaluate_subnet": config, **results.provenance}
    folded = "".join(
        element(
            "details",
            element("summary", f"{escape(step)}: configuration and inputs") + drawings.definitions(flat(values)),
        )
        for step, values in details.items()
    )
    return _section("Where this comes from", drawings.definitions(main), folded)


def flat(value: Any, path: str = "") -> dict[str, str]:
    """Nested values as one mapping of dotted names to text."""
    if isinstance(value, Mapping):
        return {
            name: text
            for key, below in value.items()
            for name, text in flat(below, f"{path}.{key}" if path else str(key)).items()
        }
    return {path: value if isinstance(value, str) else json.dumps(value)}


def amount(count: float) -> str:
    """Three significant digits with k, M or G: "312 k", "9.84 M", the space unbreakable."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size * 0.9995:
            figure = count / size
            return f"{figure:.{2 if figure < 9.995 else 1 if figure < 99.95 else 0}f}\u00a0{unit}"
    return f"{count:.0f}"
