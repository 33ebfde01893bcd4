"""The search: evolution, then random search with as many candidates.

Letters in shapes: N images that score a candidate, m images of one round of a race.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import numpy as np

from autoformer.candidates import Candidate, Origin, ScoredCandidate
from autoformer.racing import Flags, Indices, Race, Racing
from autoformer.randomness import derived_rng
from autoformer.search import Evolution, random_baseline
from autoformer.space import SubnetSpec
from components.search_subnet.score_cache import ScoreCache
from runtime.common.config import Config, SearchSubnet

_RANDOM: tuple[Origin, ...] = ("initial", "baseline")


class SearchResult(NamedTuple):
    """All candidates, the chosen one, a row for each generation, and metrics of the whole search."""

    candidates: list[ScoredCandidate]
    chosen: ScoredCandidate
    progress: list[dict[str, Any]]
    metrics: dict[str, float]


def search(
    config: Config,
    evolution: Evolution,
    first: list[Candidate],
    cache: ScoreCache,
    images: int,
    show: Callable[[int, str], None],
    log: Callable[[dict[str, float], int], None],
) -> SearchResult:
    """Run evolution to its end, then random search with as many candidates.

    Args:
        evolution: after its first `ask`.
        first: the candidates of that `ask`.
        cache: scores candidates.
        images: N.
        show: takes the number of finished candidates and the best score in words.
        log: takes the metrics of each generation, and its number.
    """
    section = config.section(SearchSubnet)
    races = _Races(section.racing, images, cache, show)
    progress: list[dict[str, Any]] = []
    candidates = first
    while candidates:
        scored = races.run(candidates, section.parents, rivals=races.scored)
        evolution.tell(scored)
        best, generation = evolution.best(1)[0].top1_percent, evolution.generation - 1
        log(_generation_metrics(scored, races, best), generation)
        counts = {"scored": len(races.scored), "images_scored": races.images_scored}
        progress.append({"generation": generation, **counts, "evolution_best_top1_percent": best})
        candidates = evolution.ask()

    chosen, evolved, evolution_images = evolution.best(1)[0], len(races.scored), races.images_scored
    assert chosen.loss is not None
    metrics = {
        "chosen_top1_percent": chosen.top1_percent,
        "chosen_loss": chosen.loss,
        "chosen_params_m": chosen.candidate.params / 1e6,
        "chosen_macs_g": chosen.candidate.macs / 1e9,
    }
    if section.random_baseline:
        baseline = _random_search(config, races, evolved)
        metrics["random_best_top1_percent"] = _best(baseline)
        for row in progress:
            row["random_best_top1_percent"] = _best(baseline[: row["scored"]])
    metrics |= {
        "candidates_scored": races.subnets_scored,
        "images_scored": evolution_images,
        "images_scored_percent": 100 * evolution_images / (evolved * images),
    }
    if section.random_baseline:
        metrics["random_images_scored"] = races.images_scored - evolution_images
    return SearchResult(races.scored, chosen, progress, metrics)


def _random_search(config: Config, races: "_Races", count: int) -> list[ScoredCandidate]:
    """Score `count` random candidates; their ids follow those of evolution."""
    section, scored = config.section(SearchSubnet), list[ScoredCandidate]()
    rng = derived_rng("random baseline", config.seed)
    drawn = random_baseline(config.space, section.limits, count, section.tries, rng)
    candidates = [replace(candidate, id=candidate.id + count) for candidate in drawn]
    for start in range(0, len(candidates), section.population):
        # only the best of random search is reported: the race may stop all others
        scored += races.run(candidates[start : start + section.population], 1, rivals=scored, similar=_RANDOM)
    return scored


class _Races:
    """Runs races one after the other, and collects the scored candidates.

    Counts, and what one race learns about the images for the next, come from the races and not from the cache. After a
    kill the cache also holds results that the resumed search has not reached yet.
    """

    def __init__(self, racing: Racing | None, images: int, cache: ScoreCache, show: Callable[[int, str], None]) -> None:
        self.scored: list[ScoredCandidate] = []
        self._racing, self._images, self._cache, self._show = racing, images, cache, show
        self._complete: dict[SubnetSpec, Flags] = {}  # subnets scored on all images, and where they are correct (N,)
        self._requested: dict[SubnetSpec, Flags] = {}  # the images that each subnet was scored on (N,)

    @property
    def subnets_scored(self) -> int:
        return len(self._requested)

    @property
    def images_scored(self) -> int:
        """Over all subnets; a subnet that was drawn twice counts once."""
        return sum(int(images.sum()) for images in self._requested.values())

    def run(
        self,
        candidates: Sequence[Candidate],
        keep: int,
        rivals: Sequence[ScoredCandidate],
        similar: Sequence[Origin] = get_args(Origin),
    ) -> list[ScoredCandidate]:
        """Race candidates against each other and against the complete ones of `rivals`.

        Args:
            keep: number of the best of all of them that the race may not stop.
            similar: origins of the candidates that predict on which images these will differ. Offspring of evolution
                differs less than random candidates.
        """
        known = {c.id: self._complete_score(c) for c in candidates if c.spec in self._complete}
        racers = [candidate for candidate in candidates if candidate.id not in known]
        scores = [rival.top1_percent / 100 for rival in (*rivals, *known.values()) if rival.complete]
        origins = {scored.candidate.spec: scored.candidate.origin for scored in reversed(self.scored)}
        answers = [correct for spec, correct in self._complete.items() if origins[spec] in similar]
        race = Race(self._racing, len(racers), self._images, keep, answers, scores)
        for entrants, images in race.rounds():
            finished = len(candidates) - len(race.live)
            self._score_round(race, {entrant: racers[entrant].spec for entrant in entrants}, images, finished)
        results = known
        for entrant, candidate in enumerate(racers):
            if race.answered[entrant] == self._images:
                results[candidate.id] = self._complete_score(candidate)
            else:
                estimate = 100 * race.estimates[entrant].score
                results[candidate.id] = ScoredCandidate(candidate, estimate, None, race.answered[entrant])
        scored = [results[candidate.id] for candidate in candidates]
        self.scored += scored
        self._show_progress(0)
        return scored

    def _score_round(self, race: Race, specs: Mapping[int, SubnetSpec], images: Indices, finished: int) -> None:
        """Score the entrants of a round on its images (m,); `finished`: candidates that need no more images."""
        for spec in specs.values():
            self._requested.setdefault(spec, np.zeros(self._images, dtype=bool))[images] = True
        is_last = race.answered[next(iter(specs))] + len(images) == self._images
        done = itertools.count(finished + 1) if is_last else itertools.repeat(finished)
        correct = self._cache.score([*specs.values()], images, lambda: self._show_progress(next(done)))
        race.record(dict(zip(specs, correct, strict=True)))
        if is_last:
            self._complete |= {spec: self._cache[spec].correct.copy() for spec in specs.values()}

    def _complete_score(self, candidate: Candidate) -> ScoredCandidate:
        correct, loss_sum = self._complete[candidate.spec], self._cache[candidate.spec].loss_sum
        return ScoredCandidate(
            candidate, 100.0 * int(correct.sum()) / self._images, loss_sum / self._images, self._images
        )

    def _show_progress(self, finished: int) -> None:
        complete = [scored for scored in self.scored if scored.complete]
        self._show(len(self.scored) + finished, f"best {_best(complete):.2f} %" if complete else "")


def _best(scored: Sequence[ScoredCandidate]) -> float:
    """The highest score of complete candidates, in percent."""
    return max(one.top1_percent for one in scored if one.complete)


def _generation_metrics(scored: Sequence[ScoredCandidate], races: _Races, best: float) -> dict[str, float]:
    """The mean includes estimates of stopped candidates; the best does not."""
    complete = any(one.complete for one in scored)
    return ({"search/generation_best_top1_percent": _best(scored)} if complete else {}) | {
        "search/best_top1_percent": best,
        "search/generation_mean_top1_percent": sum(one.top1_percent for one in scored) / len(scored),
        "search/scored": len(races.scored),
        "search/complete": sum(one.complete for one in races.scored),
        "search/images_scored": races.images_scored,
    }
