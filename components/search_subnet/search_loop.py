"""Evolution, and random search of the same budget, with what each candidate has come to."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args

import numpy as np

from autoformer.candidates import Candidate, Origin, ScoredCandidate
from autoformer.racing import Flags, Indices, Race, Racing
from autoformer.randomness import derived_rng
from autoformer.search import Evolution, random_baseline
from autoformer.space import SubnetSpec
from components.search_subnet.score_cache import ScoreCache
from runtime.common.config import Config, SearchSubnet

_DRAWN: tuple[Origin, ...] = ("initial", "baseline")


class SearchResult(NamedTuple):
    """All candidates, the chosen one, and how the search went."""

    outcomes: list[ScoredCandidate]
    chosen: ScoredCandidate
    progress: list[dict[str, Any]]
    metrics: dict[str, float]


def search(
    config: Config,
    evolution: Evolution,
    first: list[Candidate],
    memory: ScoreCache,
    images: int,
    show: Callable[[int, str], None],
    log: Callable[[dict[str, float], int], None],
) -> SearchResult:
    """Run evolution to its end, then random search of as many candidates.

    Args:
        evolution, first: what its first `ask` gave.
        memory: scores candidates.
        images: that score a candidate, N.
        show: is told of progress: how many candidates are done with, and the best so far in words.
        log: is told the metrics of each generation, and its number.
    """
    section = config.section(SearchSubnet)
    grading = _Grading(section.racing, images, memory, show)
    candidates, ends = first, []
    while candidates:
        found = grading.grade(candidates, section.parents, grading.table)
        evolution.tell(found)
        ends.append(_End(len(grading.table), grading.images_scored))
        log(_generation_metrics(found, evolution, grading), evolution.generation - 1)
        candidates = evolution.ask()

    evolved, baseline = list(grading.table), list[ScoredCandidate]()
    images_of_evolution = grading.images_scored
    if section.random_baseline:
        rng = derived_rng("random baseline", config.seed)
        drawn = random_baseline(config.space, section.limits, len(evolved), section.tries, rng)
        moved = [_renumbered(candidate, len(evolved)) for candidate in drawn]
        for start in range(0, len(moved), section.population):
            # of random search the best alone is of interest, so all others may be stopped
            baseline += grading.grade(moved[start : start + section.population], 1, baseline, _DRAWN)
    chosen = evolution.best(1)[0]
    rows = [_progress_row(generation, end, evolved, baseline) for generation, end in enumerate(ends)]
    metrics = _metrics(chosen, baseline) | {
        "candidates_scored": len(grading.asked),
        "images_scored": images_of_evolution,
        "images_scored_percent": 100 * images_of_evolution / (len(evolved) * images),
    }
    if baseline:
        metrics["random_images_scored"] = grading.images_scored - images_of_evolution
    return SearchResult(grading.table, chosen, rows, metrics)


class _Grading:
    """Grades one group of candidates after the other, and keeps the books.

    What is counted, and what one race tells the next of the images, comes from the races themselves, never from what
    the memory holds: there a search that was killed has left more than the races have come to again.
    """

    def __init__(self, rules: Racing | None, images: int, memory: ScoreCache, show: Callable[[int, str], None]) -> None:
        self.rules, self.images, self.memory, self.show = rules, images, memory, show
        self.table: list[ScoredCandidate] = []
        self.complete: dict[SubnetSpec, Flags] = {}  # whole answers (N,)
        self.asked: dict[SubnetSpec, Flags] = {}  # which images (N,)

    @property
    def images_scored(self) -> int:
        """Over all subnets; one that was drawn twice counts once."""
        return sum(int(asked.sum()) for asked in self.asked.values())

    def grade(
        self,
        candidates: Sequence[Candidate],
        keep: int,
        rivals: Sequence[ScoredCandidate],
        alike: Sequence[Origin] = get_args(Origin),
    ) -> list[ScoredCandidate]:
        """A race of candidates among each other and against the complete ones of `rivals`; the table is told.

        Args:
            keep: how many of the best of them all are never stopped.
            alike: whose answers tell which images the candidates will differ in. What evolution has bred differs
                less than what is drawn at random.
        """
        known = {c.id: self._whole(c) for c in candidates if c.spec in self.complete}
        racers = [candidate for candidate in candidates if candidate.id not in known]
        scores = [o.top1_percent / 100 for o in (*rivals, *known.values()) if o.complete]
        origins = {outcome.candidate.spec: outcome.candidate.origin for outcome in reversed(self.table)}
        before = [answers for spec, answers in self.complete.items() if origins[spec] in alike]
        race = Race(self.rules, len(racers), self.images, keep, before, scores)
        for entrants, images in race.rounds():
            specs = [racers[entrant].spec for entrant in entrants]
            settles = race.answered[entrants[0]] + len(images) == self.images
            told = self._teller(len(candidates) - len(race.live), settles)
            race.record(dict(zip(entrants, self._ask(specs, images, told), strict=True)))
            if settles:
                self.complete |= {spec: self.memory[spec].right.copy() for spec in specs}
        outcomes = dict(known)
        for entrant, candidate in enumerate(racers):
            estimate, answered = race.estimates[entrant], race.answered[entrant]
            stopped = ScoredCandidate(candidate, 100 * estimate.score, None, answered)
            outcomes[candidate.id] = self._whole(candidate) if answered == self.images else stopped
        found = [outcomes[candidate.id] for candidate in candidates]
        self.table += found
        self._tell(0)
        return found

    def _ask(self, specs: Sequence[SubnetSpec], images: Indices, told: Callable[[], None]) -> list[Flags]:
        for spec in specs:
            self.asked.setdefault(spec, np.zeros(self.images, dtype=bool))[images] = True
        return self.memory.ask(specs, images, told)

    def _whole(self, candidate: Candidate) -> ScoredCandidate:
        """Of a candidate whose subnet has answered all images."""
        right, loss_sum = self.complete[candidate.spec], self.memory[candidate.spec].loss_sum
        return ScoredCandidate(candidate, 100.0 * int(right.sum()) / self.images, loss_sum / self.images, self.images)

    def _teller(self, settled: int, settles: bool) -> Callable[[], None]:
        """Called for each answer: shows how many of the race are done with, `settled` and those that answer now."""
        done = itertools.count(settled + 1) if settles else itertools.repeat(settled)
        return lambda: self._tell(next(done))

    def _tell(self, settled: int) -> None:
        best = max((outcome.top1_percent for outcome in self.table if outcome.complete), default=None)
        self.show(len(self.table) + settled, "" if best is None else f"best {best:.2f} %")


class _End(NamedTuple):
    """How far the search was at the end of a generation."""

    candidates: int
    images_scored: int


def _renumbered(candidate: Candidate, offset: int) -> Candidate:
    fields = {name: getattr(candidate, name) for name in candidate.__dataclass_fields__}
    return Candidate(**fields | {"id": candidate.id + offset})


def _best(outcomes: Sequence[ScoredCandidate]) -> float:
    """The best score of complete candidates, in percent."""
    return max(outcome.top1_percent for outcome in outcomes if outcome.complete)


def _generation_metrics(found: Sequence[ScoredCandidate], evolution: Evolution, grading: _Grading) -> dict[str, float]:
    """Of a generation; its mean has the estimates of stopped candidates in it, its best has not."""
    complete = any(outcome.complete for outcome in found)
    return ({"search/generation_best_top1_percent": _best(found)} if complete else {}) | {
        "search/best_top1_percent": evolution.best(1)[0].top1_percent,
        "search/generation_mean_top1_percent": sum(outcome.top1_percent for outcome in found) / len(found),
        "search/scored": len(evolution.scored),
        "search/complete": sum(outcome.complete for outcome in grading.table),
        "search/images_scored": grading.images_scored,
    }


def _progress_row(
    generation: int, end: _End, evolved: Sequence[ScoredCandidate], baseline: Sequence[ScoredCandidate]
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "generation": generation,
        "scored": end.candidates,
        "images_scored": end.images_scored,
        "evolution_best_top1_percent": _best(evolved[: end.candidates]),
    }
    if baseline:
        row["random_best_top1_percent"] = _best(baseline[: end.candidates])
    return row


def _metrics(chosen: ScoredCandidate, baseline: Sequence[ScoredCandidate]) -> dict[str, float]:
    assert chosen.loss is not None
    metrics = {
        "chosen_top1_percent": chosen.top1_percent,
        "chosen_loss": chosen.loss,
        "chosen_params_m": chosen.candidate.params / 1e6,
        "chosen_macs_g": chosen.candidate.macs / 1e9,
    }
    if baseline:
        metrics["random_best_top1_percent"] = _best(baseline)
    return metrics
