"""The report: one HTML file that needs no network. Its bytes are a function of results and evaluation alone."""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from autoformer.complexity import count_macs, count_params
from autoformer.evaluation import ECE_BINS
from autoformer.subnet_text import size_text
from components.evaluate_subnet import drawings, sections
from components.evaluate_subnet.charts import element
from components.evaluate_subnet.measure import Evaluation
from components.evaluate_subnet.results import Model, Results
from components.evaluate_subnet.sections import amount, chart, columns, section

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
        sections.training(results),
        sections.search_progress(results),
        sections.candidates(results),
        sections.architecture(results),
        sections.confusion(results, evaluation),
        sections.mistakes(results, evaluation),
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
        (amount(params), f"parameters; {size_text(spec)}"),
        (amount(macs), "multiply-adds for one image"),
        (f"{100 * scores.ece:.1f} %", f"calibration error: mean gap between confidence and accuracy, {ECE_BINS} bins"),
    ]
    drawn = "".join(_tile(value, text) for value, text in tiles)
    rows = [(_label(name, results.mode), _COLOURS[name], found) for name, found in evaluation.scores.items()]
    compared = chart("How much do the weights matter? The same subnet, three ways", drawings.comparison(rows))
    if len(rows) == 2:
        compared = compared.replace("three ways", "two ways")
    text = element("div", "".join(element("p", escape(line)) for line in _findings(results, evaluation)))
    head = element("p", escape(kicker), class_="kicker") + element("h1", escape(title))
    return element("header", head + element("div", drawn, class_="tiles")) + element("section", columns(compared, text))


def _tile(value: str, text: str) -> str:
    figure, _, unit = value.replace("\u00a0", " ").partition(" ")
    return element(
        "div",
        element("b", f"{escape(figure)} <small>{escape(unit)}</small>") + element("span", escape(text)),
        class_="tile",
    )


def _label(name: Model, mode: str) -> str:
    if name == "retrained":
        way = {"finetune": "fine-tuned", "scratch": "from random weights", "inherited": "inherited weights"}
        return f"Chosen subnet, {way.get(mode, mode)}"
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
    if results.provenance["retrain_subnet"].get("search_split_trained_on"):
        lines.append(
            "Once the subnet was chosen, it was trained on the search split too (train_full): accuracy on those images "
            "says nothing of it, and is shown for inherited weights alone."
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


def _provenance(results: Results, config: Mapping[str, Any]) -> str:
    retrain, count = results.provenance["retrain_subnet"], results.space.count()
    main = {
        "seed": str(config.get("seed", "")),
        "data set": f"{results.card.name} ({results.card.licence})",
        "source": results.card.source,
        **{
            f"{split} split": f"{results.card.counts.get(split, 0):,} images, sha256 {digest}"
            for split, digest in results.card.split_hashes.items()
        },
        "search space": f"{results.space.name}, {count:,} subnets"
        if count < 1e9
        else f"{results.space.name}, {count:.3g} subnets",
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
    return section("Where this comes from", drawings.definitions(main), folded)


def flat(value: Any, path: str = "") -> dict[str, str]:
    """Nested values as one mapping of dotted names to text."""
    if isinstance(value, Mapping):
        return {
            name: text
            for key, below in value.items()
            for name, text in flat(below, f"{path}.{key}" if path else str(key)).items()
        }
    return {path: value if isinstance(value, str) else json.dumps(value)}
