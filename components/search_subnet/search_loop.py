"""The search: evolution or NSGA-II, then random search with as many candidates, then the choice.

The best `finalists` of both searches are scored on the whole search split, even if the search used a part of it, and
the best of them is chosen.

Letters in shapes: N images that score a candidate, m images of one round of a race.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import numpy as np

from autoformer.candidates import Candidate, Origin, ScoredCandidate
from autoformer.errors import quantity
from autoformer.front import front_of
from autoformer.latency import LatencyTable
from autoformer.racing import Flags, Indices, Race, ScoringResult
from autoformer.randomness import derived_rng
from autoformer.search import Evolution, random_baseline
from autoformer.space import SubnetSpec
from components.search_subnet.score_cache import ScoreCache
from components.search_subnet.standing import standing
from runtime.common.config import Config
from runtime.common.search_names import FRONT_SIZE
from runtime.common.sections import SearchSubnet

_RANDOM: tuple[Origin, ...] = ("initial", "baseline")


class SearchResult(NamedTuple):
    """All candidates, the finalists, a row for each generation, and metrics of the whole search.

    Attributes:
        finalists: best first, scored on the whole search split. The first is chosen.
        front: with method front, the candidates of both searches that no other dominates, cheapest first.
    """

    candidates: list[ScoredCandidate]
    finalists: list[ScoredCandidate]
    progress: list[dict[str, Any]]
    metrics: dict[str, float]
    front: list[ScoredCandidate]

    @property
    def chosen(self) -> ScoredCandidate:
        return self.finalists[0]


def search(
    config: Config,
    evolution: Evolution,
    first: list[Candidate],
    cache: ScoreCache,
    images: int,
    show: Callable[[int, str], None],
    log: Callable[[dict[str, float], int], None],
    whole_split: int | None = None,
    announce: Callable[[str], None] = lambda line: None,
) -> SearchResult:
    """Run the evolution to its end, then random search with as many candidates, and choose.

    Args:
        evolution: after its first `ask`.
        first: the candidates of that `ask`.
        cache: scores candidates on any image of the search split.
        images: N; the search uses the first N images of the split.
        whole_split: images of the whole split; None for N.
        show: called with the number of finished candidates and the best score as text.
        log: called with the metrics of each generation, and its number.
        announce: called with lines about each generation.
    """
    section = config.section(SearchSubnet)
    races = _Races(section, images, cache, show, evolution.known)
    progress: list[dict[str, Any]] = []
    candidates = first
    objectives = section.front_objectives if section.method == "front" else ()
    if objectives:
        announce(f"front of {', '.join(objectives)}: no race, every candidate is scored on {quantity(images, 'image')}")
    while candidates:
        scored = races.run(candidates, section.parents, rivals=races.scored)
        evolution.tell(scored)
        best, generation = evolution.best(1)[0], evolution.generation - 1
        log(_generation_metrics(scored, races, best.top1_percent), generation)
        for line in standing(best, races.scored, section.objective, objectives):
            announce(f"generation {generation} of {section.generations}: {line}")
        counts = {"scored": len(races.scored), "images_scored": races.images_scored}
        progress.append({"generation": generation, **counts, "evolution_best_top1_percent": best.top1_percent})
        candidates = evolution.ask()

    evolved, evolution_images, baseline = len(races.scored), races.images_scored, list[ScoredCandidate]()
    if section.random_baseline:
        baseline = _random_search(config, races, evolved, evolution.table)
        for row in progress:
            row["random_best_top1_percent"] = races.best(baseline[: row["scored"]]).top1_percent
    metrics = {
        "candidates_scored": races.subnets_scored,
        "images_scored": evolution_images,
        "images_scored_percent": 100 * evolution_images / (evolved * images),
    }
    if evolution.known:
        metrics["known_scores"] = len(evolution.known)
    if section.random_baseline:
        metrics["random_images_scored"] = races.images_scored - evolution_images
    front = front_of(races.scored, objectives) if objectives else []
    metrics |= {FRONT_SIZE: len(front)} if front else {}
    finalists = find_finalists(races.scored, races.best_of_each_search(), cache, section, whole_split or images)
    return SearchResult(races.scored, finalists, progress, _choice(finalists, cache, baseline) | metrics, front)


def find_finalists(
    scored: Sequence[ScoredCandidate],
    always: Sequence[ScoredCandidate],
    cache: ScoreCache,
    section: SearchSubnet,
    whole_split: int,
) -> list[ScoredCandidate]:
    """The best scored candidates, and those of `always`, scored on the whole split; best first."""
    complete = sorted((one for one in scored if one.complete), key=lambda one: one.rank(section.objective))
    by_spec: dict[SubnetSpec, ScoredCandidate] = {}
    for one in [*complete[: section.finalists], *always]:
        by_spec.setdefault(one.candidate.spec, one)
    split = np.arange(whole_split)
    results = cache.score([*by_spec], split, lambda: None)
    on_split = [
        ScoredCandidate.measured(one.candidate, result) for one, result in zip(by_spec.values(), results, strict=True)
    ]
    return sorted(on_split, key=lambda one: one.rank(section.objective))


def _choice(
    finalists: Sequence[ScoredCandidate], cache: ScoreCache, baseline: Sequence[ScoredCandidate]
) -> dict[str, float]:
    """Metrics of the chosen finalist, and the difference of evolution's and random search's best on the whole split."""
    from autoformer.evaluation import paired_difference

    metrics = metrics_of_chosen(finalists[0])
    if baseline:
        drawn = {one.candidate.spec for one in baseline}
        random = next(one for one in finalists if one.candidate.spec in drawn)
        evolved = next(one for one in finalists if not one.is_baseline)
        correct = (cache[one.candidate.spec].correct for one in (evolved, random))
        difference = paired_difference(*correct)
        metrics |= {
            "evolution_best_top1_percent": evolved.top1_percent,
            "random_best_top1_percent": random.top1_percent,
            "evolution_minus_random_percent": difference.percent,
            "evolution_minus_random_low_percent": difference.interval.low,
            "evolution_minus_random_high_percent": difference.interval.high,
        }
    return metrics


def metrics_of_chosen(chosen: ScoredCandidate) -> dict[str, float]:
    assert chosen.loss is not None
    metrics = {
        "chosen_top1_percent": chosen.top1_percent,
        "chosen_loss": chosen.loss,
        "chosen_params_m": chosen.candidate.params / 1e6,
        "chosen_macs_g": chosen.candidate.macs / 1e9,
        "chosen_is_random": float(chosen.is_baseline),
    }
    if chosen.candidate.latency_ms is not None:
        metrics["chosen_latency_ms"] = chosen.candidate.latency_ms
    return metrics


def _random_search(config: Config, races: "_Races", count: int, table: LatencyTable | None) -> list[ScoredCandidate]:
    """Score `count` random candidates; their ids follow those of evolution."""
    section, scored = config.section(SearchSubnet), list[ScoredCandidate]()
    rng = derived_rng("random baseline", config.seed)
    drawn = random_baseline(config.space, section.limits, count, section.tries, rng, table)
    candidates = [replace(candidate, id=candidate.id + count) for candidate in drawn]
    for start in range(0, len(candidates), section.population):
        # only random search's best is reported, so the race may stop all others
        scored += races.run(candidates[start : start + section.population], 1, rivals=scored, similar=_RANDOM)
    return scored


class _Races:
    """Runs the races of a search, and collects the scored candidates.

    Counts and strata come from the races, not from the cache, which in a resumed search also has later results.
    """

    def __init__(
        self, section: SearchSubnet, images: int, cache: ScoreCache, show: Callable[[int, str], None],
        known: Sequence[ScoredCandidate] = (),
    ) -> None:  # fmt: skip
        self.scored: list[ScoredCandidate] = []
        self._known = {one.candidate.spec: one for one in known}  # complete scores of an earlier search
        self._section, self._images, self._cache, self._show = section, images, cache, show
        self._complete: dict[SubnetSpec, ScoringResult] = {}  # subnets scored on all images -> results (N,)
        self._requested: dict[SubnetSpec, Flags] = {}  # images that each subnet was scored on (N,)

    @property
    def subnets_scored(self) -> int:
        return len(self._requested)

    @property
    def images_scored(self) -> int:
        """Images summed over subnets; a subnet that was drawn twice counts once."""
        return sum(int(images.sum()) for images in self._requested.values())

    def run(
        self,
        candidates: Sequence[Candidate],
        keep: int,
        rivals: Sequence[ScoredCandidate],
        similar: Sequence[Origin] = get_args(Origin),
    ) -> list[ScoredCandidate]:
        """Race candidates against each other and against complete rivals.

        Args:
            keep: number of best candidates that the race never stops.
            similar: origins of the candidates that define the strata. Offspring of evolution differ less from each
                other than random candidates.
        """
        known = {c.id: self._complete_score(c) for c in candidates if c.spec in self._complete or c.spec in self._known}
        racers = [candidate for candidate in candidates if candidate.id not in known]
        objective = self._section.objective
        scores = [rival.score(objective) for rival in (*rivals, *known.values()) if rival.complete]
        origins = {scored.candidate.spec: scored.candidate.origin for scored in reversed(self.scored)}
        results_before = [result for spec, result in self._complete.items() if origins[spec] in similar]
        values = [result.values(objective) for result in results_before]
        race = Race(self._section.racing, len(racers), self._images, keep, values, scores, objective)
        for entrants, images in race.rounds():
            finished = len(candidates) - len(race.live)
            self._score_round(race, {entrant: racers[entrant].spec for entrant in entrants}, images, finished)
        results = known
        for entrant, candidate in enumerate(racers):
            if race.answered[entrant] == self._images:
                results[candidate.id] = self._complete_score(candidate)
            else:
                top1 = self._estimated_top1(race, entrant, candidate.spec)
                results[candidate.id] = ScoredCandidate(candidate, top1, None, race.answered[entrant])
        scored = [results[candidate.id] for candidate in candidates]
        self.scored += scored
        self._show_progress(0)
        return scored

    def _score_round(self, race: Race, specs: Mapping[int, SubnetSpec], images: Indices, finished: int) -> None:
        """Score the entrants of a round on its images (m,). `finished`: number of candidates without further images."""
        for spec in specs.values():
            self._requested.setdefault(spec, np.zeros(self._images, dtype=bool))[images] = True
        is_last = race.answered[next(iter(specs))] + len(images) == self._images
        done = itertools.count(finished + 1) if is_last else itertools.repeat(finished)
        results = self._cache.score([*specs.values()], images, lambda: self._show_progress(next(done)))
        values = [result.values(self._section.objective) for result in results]
        race.record(dict(zip(specs, values, strict=True)))
        if is_last:
            everything = np.arange(self._images)
            self._complete |= {spec: self._cache[spec].on(everything) for spec in specs.values()}

    def _estimated_top1(self, race: Race, entrant: int, spec: SubnetSpec) -> float:
        """Estimated accuracy of a stopped candidate in percent, from the images that it was scored on."""
        if race.objective == "accuracy":
            return 100 * race.estimates[entrant].score
        assert race.strata is not None
        images = race.strata.order()[: race.answered[entrant]]
        predicted = np.mean([result.correct for result in self._complete.values()], axis=0)
        top1 = 100 * race.strata.estimate_mean(self._cache[spec].correct[images], predicted, images)
        return min(max(top1, 0.0), 100.0)

    def _complete_score(self, candidate: Candidate) -> ScoredCandidate:
        if candidate.spec in self._complete:
            return ScoredCandidate.measured(candidate, self._complete[candidate.spec])
        return self._known[candidate.spec]._replace(candidate=candidate)

    def best(self, scored: Sequence[ScoredCandidate]) -> ScoredCandidate:
        """The best complete candidate."""
        return min((one for one in scored if one.complete), key=lambda one: one.rank(self._section.objective))

    def best_of_each_search(self) -> list[ScoredCandidate]:
        searches = ([one for one in self.scored if one.is_baseline == baseline] for baseline in (False, True))
        return [self.best(scored) for scored in searches if scored]

    def _show_progress(self, finished: int) -> None:
        complete = [scored for scored in self.scored if scored.complete]
        best = f"best {self.best(complete).top1_percent:.2f} %" if complete else ""
        self._show(len(self.scored) + finished, best)


def _generation_metrics(scored: Sequence[ScoredCandidate], races: _Races, best: float) -> dict[str, float]:
    """Metrics of a generation. The mean includes estimates of stopped candidates, the best does not."""
    complete = any(one.complete for one in scored)
    return ({"search/generation_best_top1_percent": races.best(scored).top1_percent} if complete else {}) | {
        "search/best_top1_percent": best,
        "search/generation_mean_top1_percent": sum(one.top1_percent for one in scored) / len(scored),
        "search/scored": len(races.scored),
        "search/complete": sum(one.complete for one in races.scored),
        "search/images_scored": races.images_scored,
    }
