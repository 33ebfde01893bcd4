"""Compare the fronts of NSGA-II, the paper's evolution and random search by their hypervolume.

    python -m benchmarks.front [--seeds N] [--set search_subnet.KEY=VALUE …]
    python -m benchmarks.front --supernet artifacts/supernet --card artifacts/splits/card.json
        --search-split artifacts/splits/search.parquet

Each seed runs the three searches within the same limits, with equally many candidates, each scored on all images of the
search. NSGA-II and evolution start with the same generation. The hypervolume is the part of a rectangle that the
candidates of a search dominate, 0 to 1. The rectangle extends from the smallest to the largest legal number of
parameters, and from the score of the space's smallest subnet, which a useful larger one must beat, to the best score
of any search and seed. Its worst corner is the reference point.

A search selects on its images, so its scores there are optimistic. The front of each search is therefore scored again
on images of the search split that no search used. The intervals are Student's over the seeds, of paired differences.
They cover the draws of the searches, but not other supernets or images.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any, Literal, NamedTuple

import numpy as np

from autoformer.candidates import ScoredCandidate
from autoformer.complexity import count_params
from autoformer.errors import quantity
from autoformer.front import front_of
from autoformer.limits import Limits
from autoformer.pareto import hypervolume
from autoformer.racing import Indices, Objective
from autoformer.space import SearchSpace, SubnetSpec
from benchmarks.rows import Row, measured
from benchmarks.searches import Score, command, config_of, interval_rows, over_the_demo, run_search, shared_scores
from components.search_subnet.score_cache import ScoreCache
from runtime.common.config import Config
from runtime.common.sections import SearchSubnet

OVERRIDES = [
    f"search_subnet.{setting}" for setting in ("method=front", "racing=null", "random_baseline=true", "finalists=1")
]
Name = Literal["NSGA-II", "evolution", "random search"]
NAMES: tuple[Name, ...] = ("NSGA-II", "evolution", "random search")
Found = dict[Name, list[ScoredCandidate]]  # of one seed


class Point(NamedTuple):
    params: int
    accuracy: float  # percent
    loss: float


class Plane(NamedTuple):
    """The rectangle of a hypervolume. `smallest` and `largest`: the legal numbers of parameters."""

    smallest: int
    largest: int
    reference: float  # score of the smallest subnet; lower is better
    best: float

    def volume(self, costs: Sequence[tuple[int, float]]) -> float:
        """The hypervolume of pairs (parameters, score); lower scores are better."""
        width, height = self.largest - self.smallest, self.reference - self.best
        if width <= 0 or height <= 0:
            return 0.0
        points = [((params - self.smallest) / width, (score - self.best) / height) for params, score in costs]
        return hypervolume(points, (1.0, 1.0))


def legal_params(space: SearchSpace, limits: Limits) -> tuple[int, int]:
    low, high = limits.bounds("params_m")
    smallest, largest = (count_params(space, spec) for spec in (space.smallest, space.largest))
    return max(int(low), smallest), int(min(high, largest))


def cost(point: Point, measure: Objective) -> tuple[int, float]:
    return point.params, -point.accuracy if measure == "accuracy" else point.loss


def searches(config: Config, seed: int, cache: ScoreCache, images: int) -> Found:
    """The candidates of the three searches of a seed. `images`: of the search split."""
    section = config.section(SearchSubnet)
    paper = section.model_copy(update={"method": "evolution", "objectives": None, "random_baseline": False})
    found = run_search(config, seed, cache, images).candidates
    evolved = run_search(config.model_copy(update={"search_subnet": paper}), seed, cache, images).candidates
    return {
        "NSGA-II": [one for one in found if not one.is_baseline],
        "evolution": evolved,
        "random search": [one for one in found if one.is_baseline],
    }


def points_of(space: SearchSpace, specs: Sequence[SubnetSpec], cache: ScoreCache, images: Indices) -> list[Point]:
    results = cache.score(specs, images, lambda: None)
    return [
        Point(
            count_params(space, spec), 100 * float(result.correct.mean()), float(result.losses.mean(dtype=np.float64))
        )
        for spec, result in zip(specs, results, strict=True)
    ]


def volumes(
    config: Config, found: Sequence[dict[Name, list[Point]]], smallest: Point, measure: Objective
) -> dict[Name, list[float]]:
    """The hypervolume of each search, a value a seed. `smallest`: the space's smallest subnet on the same images."""
    limits = config.section(SearchSubnet).limits
    costs = [{name: [cost(point, measure) for point in points[name]] for name in NAMES} for points in found]
    best = min(score for of_seed in costs for pairs in of_seed.values() for _, score in pairs)
    plane = Plane(*legal_params(config.space, limits), cost(smallest, measure)[1], best)
    return {name: [plane.volume(of_seed[name]) for of_seed in costs] for name in NAMES}


def rows(of: str, by_name: dict[Name, list[float]]) -> list[Row]:
    """Means of the three searches, and the paired differences with their intervals."""
    means = [Row(f"{of}, {name}: mean", float(np.mean(values)), "") for name, values in by_name.items()]
    differences = (
        interval_rows(
            f"{of}, {one} minus {other}", "", [a - b for a, b in zip(by_name[one], by_name[other], strict=True)]
        )
        for one, other in combinations(NAMES, 2)
    )
    return [*means, *(row for rows in differences for row in rows)]


def compare(config: Config, score: Score, images: int, seeds: int) -> dict[str, Any]:
    """All rows, and by row group the hypervolumes of each seed. Prints a line for each seed.

    `images`: size of the search split.
    """
    section, space = config.section(SearchSubnet), config.space
    part = min(section.images or images, images)
    seen, unseen = np.arange(part), np.arange(part, images)
    on_seen, on_unseen = list[dict[Name, list[Point]]](), list[dict[Name, list[Point]]]()
    with shared_scores(score, images) as cache:
        for seed in range(config.seed, config.seed + seeds):
            found = searches(config, seed, cache, images)
            fronts = {name: front_of(found[name], section.front_objectives) for name in NAMES}
            for points, chosen, where in ((on_seen, found, seen), (on_unseen, fronts, unseen)):
                points.append(
                    {name: points_of(space, [s.candidate.spec for s in chosen[name]], cache, where) for name in NAMES}
                    if len(where) else {name: [] for name in NAMES}
                )  # fmt: skip
            counts = (
                f"{name} {quantity(len(found[name]), 'candidate')}, {len(fronts[name])} on its front" for name in NAMES
            )
            print(f"seed {seed}: {'; '.join(counts)}", flush=True)
        ends = [points_of(space, [space.smallest], cache, where)[0] if len(where) else None for where in (seen, unseen)]
    groups: dict[str, dict[Name, list[float]]] = {}
    for measure in ("accuracy", "loss"):
        for where, points, smallest in zip(("search images", "unseen images"), (on_seen, on_unseen), ends, strict=True):
            if smallest is not None:
                groups[f"{measure} on {where}"] = volumes(config, points, smallest, measure)
    return measured([row for name, group in groups.items() for row in rows(name, group)], volumes=groups)


def measure(quick: bool = False) -> dict[str, Any]:
    """Train a supernet by the demo's recipe, and compare; `quick`: two small searches over a short training."""
    return over_the_demo(compare, config_of("demo", OVERRIDES, quick), 2 if quick else 5, quick)


def main(argv: Sequence[str] | None = None) -> int:
    return command("front", __doc__ or "", compare, OVERRIDES, argv)


if __name__ == "__main__":
    raise SystemExit(main())
