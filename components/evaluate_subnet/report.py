"""The report: one HTML file that needs no network. The same results and evaluation give the same bytes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from autoformer.complexity import count_macs, count_params
from autoformer.evaluation import ECE_BINS
from components.evaluate_subnet import sections
from components.evaluate_subnet.charts import number
from components.evaluate_subnet.effects import effects
from components.evaluate_subnet.measure import Evaluation
from components.evaluate_subnet.results import Results
from runtime.common.search_split import search_split_note


def render(results: Results, evaluation: Evaluation, config: Mapping[str, Any]) -> str:
    """The page. `config`: the evaluation's configuration."""
    space, spec, retrain_provenance = results.space, results.subnet.subnet, results.provenance["retrain_subnet"]
    steps = {"evaluate_subnet": config, **results.provenance}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"fmt": format, "number": number, "amount": sections.amount}
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    page = environment.get_template("report.html.j2").render(
        results=results,
        evaluation=evaluation,
        config=config,
        card=results.card,
        search_split_note=search_split_note(results.card.name),
        space=space,
        supernet=space.supernet,
        spec=spec,
        search=results.search,
        scores=evaluation.scores["retrained"],
        params=count_params(space, spec),
        macs=count_macs(space, spec),
        table=results.search.table,
        largest_params=count_params(space, space.largest),
        widest_mlp=int(space.supernet.embed_dim * space.supernet.mlp_ratio),
        ece_bins=ECE_BINS,
        comparison=sections.comparison(results, evaluation),
        training=sections.training(results),
        progress=sections.search_progress(results),
        candidates=sections.candidates(results),
        effects=effects(results),
        confusion=sections.confusion(results, evaluation),
        mistakes=sections.mistakes(results, evaluation),
        retrain_provenance=retrain_provenance,
        configurations={step: flat(values) for step, values in steps.items()},
    )
    return page.replace(" %", "\u00a0%")  # no line break before a unit


def flat(value: Any, path: str = "") -> dict[str, str]:
    """Nested values as one mapping of dotted names to text."""
    if isinstance(value, Mapping):
        return {
            name: text
            for key, below in value.items()
            for name, text in flat(below, f"{path}.{key}" if path else str(key)).items()
        }
    return {path: value if isinstance(value, str) else json.dumps(value)}
