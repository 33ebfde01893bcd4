"""Evolutionary search for the Pareto front of accuracy and cost: NSGA-II (Deb et al. 2002). Torch-free.

It has the ask-and-tell interface, the candidates and the operators of `autoformer.search.Evolution`, with two
differences. The survivors are the best `population` of the former survivors and the last generation, by rank in the
non-dominated sort, then by crowding distance. Each parent wins a binary tournament: of two random survivors, the one
with the better rank, or at equal rank the less crowded one.
"""

from collections.abc import Mapping, Sequence
from random import Random

from autoformer.candidates import ScoredCandidate
from autoformer.latency import LatencyTable
from autoformer.limits import UNITS, Limits
from autoformer.pareto import crowding_distances, pareto_front, sort_into_fronts, whole_front
from autoformer.search import Evolution, EvolutionSettings
from autoformer.space import SearchSpace, SubnetSpec

_FIELDS = {"params_m": "params", "macs_g": "macs"}  # cost -> field of a candidate, where the names differ
# Objective -> its noun, its unit, and the format of a value in that unit.
_IN_WORDS = {
    "params_m": ("parameters", "M", ".3g"), "macs_g": ("MACs", "G", ".3g"), "latency_ms": ("latency", "ms", ".3g"),
    "accuracy": ("accuracy", "%", ".2f"), "loss": ("loss", "", ".4f"),
}  # fmt: skip


def costs_of(scored: ScoredCandidate, objectives: Sequence[str]) -> tuple[float, ...]:
    """The objectives of a complete candidate as numbers to minimise, costs first."""
    assert scored.loss is not None
    scores = {"accuracy": -scored.top1_percent, "loss": scored.loss}
    costs = [_cost(scored, name) for name in objectives if name not in scores]
    return *costs, *(scores[name] for name in objectives if name in scores)


def costs_first(objectives: Sequence[str]) -> list[str]:
    """The objectives in the order that `costs_of` returns."""
    return sorted(objectives, key=lambda name: name not in UNITS)


def value_of(scored: ScoredCandidate, objective: str) -> float:
    """An objective in its unit: millions, billions, milliseconds, percent, nats. A stopped candidate has no loss."""
    if objective == "accuracy":
        return scored.top1_percent
    if objective == "loss":
        assert scored.loss is not None
        return scored.loss
    return _cost(scored, objective) / UNITS[objective]


def _cost(scored: ScoredCandidate, name: str) -> float:
    value: float = getattr(scored.candidate, _FIELDS.get(name, name))
    return value


def value_text(scored: ScoredCandidate, objective: str) -> str:
    """Such as "0.12 M", "90.83 %" or, of a loss, "0.3175"."""
    _, unit, digits = _IN_WORDS[objective]
    return f"{value_of(scored, objective):{digits}} {unit}".rstrip()


def in_words(objectives: Sequence[str]) -> str:
    """Such as "parameters, MACs and loss"."""
    *others, last = (_IN_WORDS[name][0] for name in costs_first(objectives))
    return f"{', '.join(others)} and {last}" if others else last


def front_of(scored: Sequence[ScoredCandidate], objectives: Sequence[str]) -> list[ScoredCandidate]:
    """The complete candidates that no other dominates, cheapest first; each subnet once."""
    by_spec = {one.candidate.spec: one for one in reversed(scored) if one.complete}
    complete = [one for one in scored if by_spec.get(one.candidate.spec) is one]
    return [complete[index] for index in whole_front([costs_of(one, objectives) for one in complete])]


def first_front(scored: Sequence[ScoredCandidate], objectives: Sequence[str]) -> list[ScoredCandidate]:
    """`front_of`, but only the first of candidates with equal objectives."""
    complete = [one for one in scored if one.complete]
    return [complete[index] for index in pareto_front([costs_of(one, objectives) for one in complete])]


def violation(limits: Limits, counts: Mapping[str, float]) -> float:
    """How far a subnet is outside the limits: the relative excess, summed over the costs; 0 for a legal one."""
    total = 0.0
    for cost, count in counts.items():
        low, high = limits.bounds(cost)
        total += max(low - count, 0) / max(low, 1) + max(count - high, 0) / high
    return total


class FrontSearch(Evolution):
    """NSGA-II, by `settings.front_objectives`. Only complete candidates survive.

    `ask` returns only legal candidates. If `tell` gets a candidate outside the limits, it ranks after all legal ones.
    """

    survivors: Sequence[ScoredCandidate] = ()  # best first
    _places: Mapping[SubnetSpec, tuple[int, float]]  # survivor -> rank, minus the crowding distance

    def tell(self, scored: Sequence[ScoredCandidate]) -> None:
        super().tell(scored)
        rivals = [*self.survivors, *(one for one in scored if one.complete)]
        places = self._places_of(rivals)
        best = sorted(places, key=lambda index: (places[index], index))[: self.settings.population]
        self.survivors = [rivals[index] for index in best]
        self._places = {rivals[index].candidate.spec: places[index] for index in best}

    def _places_of(self, rivals: Sequence[ScoredCandidate]) -> dict[int, tuple[int, float]]:
        """The rank, and minus the crowding distance, of each complete candidate."""
        costs = [costs_of(one, self.settings.front_objectives) for one in rivals]
        counts = [self.limits.count(self.space, one.candidate.spec, self.table) for one in rivals]
        places: dict[int, tuple[int, float]] = {}
        for rank, front in enumerate(sort_into_fronts(costs, [violation(self.limits, count) for count in counts])):
            distances = crowding_distances([costs[index] for index in front])
            places |= {index: (rank, -distance) for index, distance in zip(front, distances, strict=True)}
        return places

    def _order(self, scored: Sequence[ScoredCandidate]) -> list[int]:
        places = self._places_of(scored)
        return sorted(places, key=lambda index: (places[index], index))

    def _parents(self) -> Sequence[ScoredCandidate]:
        return self.survivors

    def _pick(self, parents: Sequence[ScoredCandidate]) -> ScoredCandidate:
        first, second = self.rng.choice(parents), self.rng.choice(parents)
        is_better = self._places[second.candidate.spec] < self._places[first.candidate.spec]
        return second if is_better else first


def make_search(
    space: SearchSpace, limits: Limits, settings: EvolutionSettings, rng: Random, table: LatencyTable | None = None,
    known: Sequence[ScoredCandidate] = (),
) -> Evolution:  # fmt: skip
    """`FrontSearch` or `Evolution`, by `settings.method`."""
    kind = FrontSearch if settings.method == "front" else Evolution
    return kind(space, limits, settings, rng, table, known)
