"""The report: one HTML file that needs no network. The same results and evaluation give the same bytes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from autoformer.complexity import count_macs, count_params
from autoformer.errors import quantity
from autoformer.evaluation import ECE_BINS
from components.evaluate_subnet import sections
from components.evaluate_subnet.charts import amount, number
from components.evaluate_subnet.cost import costs
from components.evaluate_subnet.effects import effects
from components.evaluate_subnet.measure import Evaluation, Measured
from components.evaluate_subnet.results import Results
from components.evaluate_subnet.search_sections import candidates, latency_check, search_progress
from runtime.common.overrides import dotted
from runtime.common.search_names import found_by
from runtime.common.search_split import search_split_note


def render(
    results: Results, evaluation: Evaluation, config: Mapping[str, Any], budgets: Mapping[str, Measured] | None = None
) -> str:
    """The page.

    Args:
        config: the evaluation's configuration.
        budgets: label -> the subnet of each budget, smallest first; the other arguments describe the largest.
    """
    budgets = budgets or {}
    environment = _environment()
    values = _values(results, evaluation)
    page = environment.get_template("report.html.j2").render(
        values
        | {
            "config": config,
            "budgets": _budgets(environment, budgets),
            "ece_bins": ECE_BINS,
            "training": sections.supernet_training(results) + ([] if budgets else sections.retraining(results)),
            "progress": search_progress(results),
            "candidates": candidates(results, sections.chosen_labels(budgets)),
            "latency": latency_check(results.search.table),
            "effects": effects(results),
            "cost": costs(results, evaluation, budgets),
            "origins": [
                {"label": label, "subnet": one.subnet, "mode": one.mode}
                for label, one in ({label: one.results for label, one in budgets.items()} or {"": results}).items()
            ],
            "configurations": {
                step: flat(values) for step, values in ({"evaluate_subnet": config} | results.provenance).items()
            },
        }
    )
    return page.replace(" %", "\u00a0%")  # no line break before a unit


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"fmt": format, "quantity": quantity, "number": number, "amount": amount}
    environment.filters["sentence"] = _sentence
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    return environment


def _sentence(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def _values(results: Results, evaluation: Evaluation, room: int = sections.THUMBNAIL_BYTES) -> dict[str, Any]:
    """Template values of one subnet. `room`: bytes for the images of its mistakes."""
    space, spec = results.space, results.subnet.subnet
    return {
        "results": results,
        "evaluation": evaluation,
        "budget": "",
        "card": results.card,
        "search_split_note": search_split_note(results.card.name),
        "space": space,
        "supernet": space.supernet,
        "spec": spec,
        "search": results.search,
        "found_by": found_by(results.search.metrics),
        "scores": evaluation.scores["retrained"],
        "params": count_params(space, spec),
        "macs": count_macs(space, spec),
        "table": results.search.table,
        "largest_params": count_params(space, space.largest),
        "widest_mlp": int(space.supernet.embed_dim * space.supernet.mlp_ratio),
        "comparison": sections.comparison(results, evaluation),
        "confusion": sections.confusion(results, evaluation),
        "mistakes": sections.mistakes(results, evaluation, room),
        "retrain_provenance": results.provenance["retrain_subnet"],
    }


def _budgets(environment: jinja2.Environment, budgets: Mapping[str, Measured]) -> dict[str, Any] | None:
    """Values of templates/budgets.html.j2, and a chapter for each budget; None without budgets."""
    if not budgets:
        return None
    template, same = environment.get_template("chapter.html.j2"), sections.repeated(budgets)
    chapters: list[Markup] = []
    *_, largest = budgets
    for label, one in budgets.items():
        values = _values(one.results, one.evaluation, sections.THUMBNAIL_BYTES // len(budgets))
        own = {
            "budget": label,
            "budgets": None,
            "is_open": label == same.get(largest, largest),
            "same_as": same.get(label),
        }
        chapters.append(Markup(template.render(values | own | {"training": sections.retraining(one.results)})))
    return sections.side_by_side(budgets) | {"chapters": chapters}


def flat(values: Mapping[str, Any]) -> dict[str, str]:
    """Nested values as one mapping of dotted names to text."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in dotted(values)}
