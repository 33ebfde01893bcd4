"""Template values of a search: progress, candidates, and predicted latencies."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from markupsafe import Markup

from autoformer.candidates import ScoredCandidate
from autoformer.errors import quantity
from autoformer.evaluation import wilson_interval
from autoformer.front import costs_of, front_of, in_words, value_of
from autoformer.latency import LatencyTable
from autoformer.limits import UNITS
from autoformer.pareto import pareto_front
from autoformer.subnet_text import shape_text, size_text
from components.evaluate_subnet import drawings
from components.evaluate_subnet.charts import Scale, amount, scale
from components.evaluate_subnet.drawings import Axis, Series
from components.evaluate_subnet.results import Results

MOST_LINES = 300  # lines of the parallel coordinates
MOST_CHOICES = 6  # ticks on an axis of the parallel coordinates
_ORIGINS = {
    "initial": "drawn at random for the initial population",
    "fill": "drawn at random to fill its generation",
    "baseline": "random search",
    "earlier": "among the best of an earlier search",
}
_TITLES = {
    "params_m": "parameters, millions",
    "macs_g": "MACs without relative position, billions",
    "latency_ms": "latency, ms",
    "accuracy": "top-1 accuracy on the search split, inherited weights, %",
    "loss": "loss on the search split, nats; lower is better",
}


def search_progress(results: Results) -> dict[str, Any] | None:
    search = results.search
    names = ((search.method, "a", "evolution_best_top1_percent"), ("random", "b", "random_best_top1_percent"))
    series: list[Series] = [
        (name, css, search.progress[column]) for name, css, column in names if column in search.progress
    ]
    if not series:
        return None
    scored, best = series[0][2][-1]
    y_title = "top-1 of the best-ranked so far, search split, %"
    interval = wilson_interval(round(best / 100 * search.images), search.images) if search.images else None
    return {
        "best": best,
        "random": series[1][2][-1][1] if len(series) == 2 else None,
        "scored": scored,
        "uncertainty": 50 * (interval.high - interval.low) if interval else None,  # ± points
        "chart": drawings.curves(series, "candidates scored", y_title, steps=True, digits=2),
    }


def candidates(results: Results, labels: Mapping[int, str] | None = None) -> dict[str, Any]:
    """Charts and tables of candidates. `labels`: candidate's index -> budgets that chose it, None without budgets."""
    search = results.search
    outcomes, chosen = search.candidates, search.chosen
    texts = {chosen: "chosen"} if not labels else {index: f"chosen for {text}" for index, text in labels.items()}
    labels = labels or texts
    objectives = search.objectives or ("accuracy", "params_m")
    (score,) = (name for name in objectives if name not in UNITS)
    costs = [name for name in objectives if name in UNITS]
    charted = [*costs, *(["latency_ms"] if search.table and "latency_ms" not in costs else [])]
    complete = [index for index, outcome in enumerate(outcomes) if outcome.complete]
    if search.objectives:
        front = front_of(outcomes, objectives)
    else:
        front = [outcomes[index] for index in _front(outcomes, complete, objectives)]
    members = {index for index, outcome in enumerate(outcomes) if any(outcome is one for one in front)}
    params, best = outcomes[chosen].candidate.params, outcomes[chosen].top1_percent
    drawn = [index for index, outcome in enumerate(outcomes) if outcome.complete or score == "accuracy"]
    return {
        "complete": len(complete),
        "stopped": len(outcomes) - len(complete),
        "better": sum(outcomes[i].candidate.params <= params and outcomes[i].top1_percent > best for i in complete),
        "has_baseline": any(outcome.is_baseline for outcome in outcomes),
        "objectives": in_words(objectives),
        "score": score,
        "front": front,
        "holds_chosen": outcomes[chosen].candidate.spec in {outcome.candidate.spec for outcome in front},
        "members": len(costs) > 1,  # the line of a chart is then not the whole front
        "described": [_described(outcome, texts.get(index, "")) for index, outcome in enumerate(outcomes)],
        "charts": [
            drawings.scatter(
                {index: outcomes[index] for index in drawn},
                _axis(outcomes, drawn, cost),
                _axis(outcomes, drawn, score),
                _front(outcomes, complete, (cost, score)),
                labels,
                members if len(costs) > 1 else None,
            )
            for cost in charted
        ],
        **_parallel(results, complete, score, labels),
    }


def _axis(outcomes: Sequence[ScoredCandidate], drawn: Sequence[int], objective: str) -> Axis:
    return Axis(_TITLES[objective], {index: value_of(outcomes[index], objective) for index in drawn})


def _front(outcomes: Sequence[ScoredCandidate], complete: Sequence[int], objectives: Sequence[str]) -> list[int]:
    """The indices of the complete candidates that no other dominates."""
    return [complete[i] for i in pareto_front([costs_of(outcomes[i], objectives) for i in complete])]


def _parallel(
    results: Results, complete: Sequence[int], score: str, labels: Mapping[int, str]
) -> dict[str, Markup | int]:
    """Parallel coordinates of the complete candidates by score: all, or every n-th and the chosen ones."""
    outcomes, choices = results.search.candidates, results.space.choices
    by_score = sorted(complete, key=lambda index: costs_of(outcomes[index], (score,)), reverse=True)  # worst first
    every = -(-len(by_score) // MOST_LINES)
    drawn = [index for rank, index in enumerate(by_score) if rank % every == 0 or index in labels]
    specs = {index: outcomes[index].candidate.spec for index in drawn}
    scores = {index: value_of(outcomes[index], score) for index in drawn}
    heads = {index: sum(spec.num_heads) for index, spec in specs.items()}
    ratios = {index: fmean(spec.mlp_ratio) for index, spec in specs.items()}
    params = {index: outcomes[index].candidate.params / UNITS["params_m"] for index in drawn}
    best_up = scale(scores.values(), ticks=4)
    if score == "loss":
        best_up = best_up._replace(low=best_up.high, high=best_up.low)
    axes = [
        (Axis("depth", {index: spec.depth for index, spec in specs.items()}), _choices(choices.depth)),
        (Axis("width", {index: spec.embed_dim for index, spec in specs.items()}), _choices(choices.embed_dim)),
        (Axis("heads", heads), scale(heads.values(), ticks=4)),
        (Axis("ratio", ratios), scale(ratios.values(), ticks=4)),
        (Axis("size, M", params), scale(params.values(), ticks=4)),
        (Axis("top-1, %" if score == "accuracy" else "loss", scores), best_up),
    ]
    return {"parallel": drawings.parallel(axes, labels), "every": every}


def _choices(choices: Sequence[float]) -> Scale:
    """An axis with a tick for each choice, or with round ticks if there are many choices or only one."""
    is_short = 1 < len(choices) <= MOST_CHOICES
    return Scale(min(choices), max(choices), tuple(choices)) if is_short else scale(choices, tight=True)


def latency_check(table: LatencyTable | None) -> dict[str, Any] | None:
    """Predicted against measured latency of the subnets that the table was checked with; None if there are none."""
    if table is None or not table.check:
        return None
    worst = max(table.check, key=lambda one: one.error_percent)
    points = [
        (one.measured_ms, one.predicted_ms,
         f"{shape_text(one.subnet)}: predicted {one.predicted_ms:.3g} ms, measured {one.measured_ms:.3g} ms")
        for one in table.check
    ]  # fmt: skip
    return {
        "chart": drawings.against_diagonal(points, "measured latency, ms", "predicted latency, ms"),
        "worst": worst,
        "too_low": sum(one.predicted_ms < one.measured_ms for one in table.check),
    }


def _described(outcome: ScoredCandidate, chosen: str) -> dict[str, Any]:
    """A candidate for report.js, which shows it in the panel beside the charts."""
    candidate, spec = outcome.candidate, outcome.candidate.spec
    origin = _ORIGINS.get(candidate.origin, candidate.origin)
    if not outcome.is_baseline:
        origin += f", generation {candidate.generation}"
    if candidate.parents:
        origin += f", from {' and '.join(map(str, candidate.parents))}"
    return {
        "score": f"{outcome.top1_percent:.2f} %{f' · {chosen}' if chosen else ''}"
        if outcome.complete
        else f"about {outcome.top1_percent:.1f} % · stopped after {quantity(outcome.images, 'image')}",
        "costs": [amount(candidate.params), amount(candidate.macs)]
        + ([] if candidate.latency_ms is None else [f"{candidate.latency_ms:.3g} ms"]),
        "shape": size_text(spec) + ("" if outcome.loss is None else f", loss {outcome.loss:.3f}"),
        "origin": f"candidate {candidate.id}: {origin}",
        "heads": list(spec.num_heads),
        "ratios": [int(ratio) if ratio == int(ratio) else ratio for ratio in spec.mlp_ratio],
    }
