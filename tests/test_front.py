"""NSGA-II: survivors by hand and against a plain twin, limits, fronts, and combinations of keys that are refused."""

import math
from collections.abc import Callable
from random import Random

import pytest
from latencies import table_of
from test_pareto import slow_ranks
from test_search import SPACE, space_with

from autoformer.candidates import Candidate, ScoredCandidate
from autoformer.errors import AutoFormerError
from autoformer.front import FrontSearch, costs_of, front_of, make_search, violation
from autoformer.limits import Limits
from autoformer.search import Evolution, EvolutionSettings
from autoformer.space import SubnetSpec
from runtime.common.config import Config, load_config
from runtime.common.sections import SearchSubnet

SETTINGS = EvolutionSettings(method="front", population=10, generations=4, parents=10, mutations=5, crossovers=4)
Score = Callable[[Candidate], tuple[float, float]]  # accuracy in percent, loss


def entry(
    id: int, params: int, top1: float, loss: float | None = 0.5, heads: int = 4, macs: int = 0
) -> ScoredCandidate:
    spec = SubnetSpec(4, 64, (heads,) * 4, (2.0 + id / 100,) * 4)
    return ScoredCandidate(Candidate(id, spec, "initial", 0, (), params, macs), top1, loss, 100)


def scored(candidates: list[Candidate], score: Score) -> list[ScoredCandidate]:
    return [ScoredCandidate(candidate, *score(candidate), 100) for candidate in candidates]


def rounded(candidate: Candidate) -> tuple[float, float]:
    """Few different accuracies, so that ties are frequent; the loss is another order."""
    return float(candidate.params // 7 % 9 + sum(candidate.spec.num_heads) // 6), candidate.params % 11 / 10


def run(search: Evolution, score: Score = rounded) -> list[Candidate]:
    asked: list[Candidate] = []
    while candidates := search.ask():
        asked += candidates
        search.tell(scored(candidates, score))
    return asked


def front_search(settings: EvolutionSettings = SETTINGS, seed: int = 0, limits: Limits | None = None) -> FrontSearch:
    search = make_search(SPACE, limits or Limits(), settings, Random(seed))
    assert isinstance(search, FrontSearch)
    return search


def test_survivors_by_hand() -> None:
    """Of the front 0 1 2 3 all survive; of the next, 4 5 6 at (500, 60) (600, 65) (800, 70), only its two ends."""
    told = [
        entry(0, 100, 50), entry(1, 200, 60), entry(2, 300, 70), entry(3, 700, 80), entry(4, 500, 60),
        entry(5, 600, 65), entry(6, 800, 70), entry(7, 900, 10), entry(8, 1, 99, loss=None),
    ]  # fmt: skip
    search = front_search(SETTINGS.model_copy(update={"population": 6}))
    search.tell(told)
    # distances of 1 and 2: 200/600 + 20/30 and 500/600 + 20/30; 8 was stopped early and is no survivor
    assert [one.candidate.id for one in search.survivors] == [0, 3, 2, 1, 4, 6]
    search.tell([entry(9, 90, 90), entry(10, 95, 91)])  # they dominate all but each other
    assert [one.candidate.id for one in search.survivors] == [9, 10, 0, 3, 2, 1]


def test_a_tournament_prefers_the_rank_then_the_lonelier_then_the_first_drawn() -> None:
    search = front_search()
    search.tell([entry(0, 100, 50), entry(1, 200, 60), entry(2, 300, 70), entry(3, 700, 80), entry(4, 800, 75)])
    by_id = {one.candidate.id: one for one in search.survivors}

    def winner(first: int, second: int) -> int:
        draws = iter([by_id[first], by_id[second]])
        search.rng.choice = lambda _: next(draws)  # type: ignore[method-assign]
        return search._pick(search.survivors).candidate.id

    assert winner(4, 1) == winner(1, 4) == 1  # rank
    assert winner(1, 2) == winner(2, 1) == 2  # 500/600 is lonelier than 200/600
    assert (winner(0, 3), winner(3, 0)) == (0, 3)  # both ends


def twin_survivors(rivals: list[ScoredCandidate], objectives: tuple[str, ...], count: int) -> list[int]:
    """Ids, best first: the longest chain of dominators, then the crowding distance, from their definitions."""
    costs = [costs_of(one, objectives) for one in rivals]
    ranks = slow_ranks(costs)
    keys = []
    for index, point in enumerate(costs):
        peers = [i for i, rank in enumerate(ranks) if rank == ranks[index]]
        distance = 0.0
        for axis in range(len(point)):
            order = sorted(peers, key=lambda i: costs[i][axis])  # stable: of equals the earlier first
            place, values = order.index(index), [costs[i][axis] for i in order]
            if place in (0, len(order) - 1):
                distance = math.inf
            elif values[-1] > values[0]:
                distance += (values[place + 1] - values[place - 1]) / (values[-1] - values[0])
        keys.append((ranks[index], -distance, index))
    return [rivals[index].candidate.id for *_, index in sorted(keys)[:count]]


@pytest.mark.parametrize("objectives", [None, ("accuracy", "macs_g"), ("params_m", "accuracy", "macs_g")])
def test_the_survivors_of_each_generation_are_those_of_a_plain_twin(objectives: tuple[str, ...] | None) -> None:
    settings = EvolutionSettings.model_validate(SETTINGS.model_dump() | {"objectives": objectives})
    for seed in range(6):
        search = front_search(settings, seed)
        while candidates := search.ask():
            told = scored(candidates, rounded)
            rivals = [*search.survivors, *told]
            search.tell(told)
            expected = twin_survivors(rivals, settings.front_objectives, settings.population)
            assert [one.candidate.id for one in search.survivors] == expected
        assert search.generation == 5 and len(search.scored) == 50


def test_every_candidate_is_new_legal_and_a_child_of_survivors() -> None:
    limits = Limits(min_params_m=0.3, max_params_m=0.5, max_macs_g=0.009)
    search, seen = front_search(limits=limits), set()
    while candidates := search.ask():
        allowed = {one.candidate.id for one in search.survivors}
        assert len(candidates) == SETTINGS.population
        for one in candidates:
            assert 300_000 <= one.params <= 500_000 and one.macs <= 9_000_000 and one.spec not in seen
            assert set(one.parents) <= allowed and bool(one.parents) == (one.origin in ("mutation", "crossover"))
            seen.add(one.spec)
        search.tell(scored(candidates, rounded))


def test_a_told_candidate_outside_the_limits_ranks_after_all_legal_ones() -> None:
    limits = Limits(max_params_m=0.5)
    assert violation(limits, {"params_m": 500_000, "macs_g": 10**9}) == 0
    assert violation(limits, {"params_m": 600_000, "macs_g": 10**9}) == pytest.approx(0.2)
    assert violation(Limits(min_params_m=0.5, max_macs_g=1), {"params_m": 400_000, "macs_g": 15 * 10**8}) == 0.7
    search = front_search(limits=limits)
    first = search.ask()
    too_large = [SPACE.largest, SubnetSpec(5, 128, (8,) * 5, (4.0,) * 5)]
    illegal = [
        ScoredCandidate(Candidate(90 + i, s, "initial", 0, (), 1, 1), 100, 0, 1) for i, s in enumerate(too_large)
    ]
    search.tell([*illegal, *scored(first[:9], rounded)])
    ids = [one.candidate.id for one in search.survivors]
    assert ids[-1] == 91 and 90 not in ids and len(ids) == 10  # of the two, the one with less violation


@pytest.mark.parametrize("generation", range(5))
def test_a_search_resumed_at_any_generation_asks_the_same_candidates(generation: int) -> None:
    whole, resumed = front_search(seed=7), front_search(seed=7)
    asked: list[list[Candidate]] = []
    while candidates := whole.ask():
        asked.append(candidates)
        whole.tell(scored(candidates, rounded))
    for known in asked[:generation]:
        resumed.ask()
        resumed.tell(scored(known, rounded))
    for expected in asked[generation:]:
        assert resumed.ask() == expected
        resumed.tell(scored(expected, rounded))
    assert resumed.ask() == [] and resumed.survivors == whole.survivors
    assert [one for generation in asked for one in generation] != run(front_search(seed=8))


def test_the_front_is_found_where_it_is_known() -> None:
    """Accuracy rises with the heads, parameters with everything: the front has the smallest ratios and widths alone."""

    def score(candidate: Candidate) -> tuple[float, float]:
        return float(sum(candidate.spec.num_heads)), 0.0

    big = EvolutionSettings(method="front", population=40, generations=20, mutations=20, crossovers=20)
    search = front_search(big)
    run(search, score)
    best = front_of(search.scored, big.front_objectives)
    lean = [one for one in best if one.candidate.spec.embed_dim == 64 and set(one.candidate.spec.mlp_ratio) == {2.0}]
    assert best[0].candidate.spec == SPACE.smallest and len(lean) >= 0.8 * len(best) > 8
    evolution = make_search(SPACE, Limits(), big.model_copy(update={"method": "evolution"}), Random(0))
    run(evolution, score)
    assert len(front_of(evolution.scored, big.front_objectives)) < len(best)


def test_latency_is_an_objective_and_a_limit_where_there_is_a_table() -> None:
    table = table_of(SPACE)
    settings = SETTINGS.model_copy(update={"objectives": ("accuracy", "latency_ms")})
    search = make_search(SPACE, Limits(max_latency_ms=40.0), settings, Random(0), table)
    asked = run(search)
    assert len(asked) == 50 and all(one.latency_ms == table.predict(one.spec) <= 40 for one in asked)
    found = front_of(search.scored, settings.front_objectives)
    times = [one.candidate.latency_ms for one in found]
    assert times == sorted(times) and times[0] == min(one.latency_ms for one in asked if one.latency_ms is not None)
    scores = [one.top1_percent for one in found]
    assert scores == sorted(scores) and scores[-1] == max(rounded(one)[0] for one in asked)


def test_a_space_smaller_than_the_population_is_searched_whole_and_ends() -> None:
    space = space_with(depth=[1], embed_dim=[64, 128], num_heads=[4, 8], mlp_ratio=[2.0])
    search = make_search(space, Limits(), SETTINGS.model_copy(update={"tries": 500}), Random(0))
    assert len(run(search)) == 4


def test_a_front_has_each_subnet_once_all_of_equals_and_none_that_was_stopped() -> None:
    twice = entry(1, 200, 60)
    table = [
        entry(0, 100, 50), twice, entry(2, 200, 60), entry(3, 300, 55), entry(4, 90, 99, loss=None),
        twice._replace(candidate=Candidate(9, twice.candidate.spec, "baseline", 0, (), 200, 0)), entry(5, 100, 49, 0.1),
    ]  # fmt: skip
    assert [one.candidate.id for one in front_of(table, ("accuracy", "params_m"))] == [0, 1, 2]
    assert [one.candidate.id for one in front_of(table, ("loss", "params_m"))] == [5]
    assert front_of([table[4]], ("accuracy", "params_m")) == []
    assert costs_of(entry(0, 7, 50, 0.25, macs=3), ("loss", "macs_g", "params_m")) == (3, 7, 0.25)


def section(*settings: str) -> SearchSubnet:
    config: Config = load_config("demo", [f"search_subnet.{setting}" for setting in settings])
    return config.section(SearchSubnet)


def test_method_front_takes_the_objective_and_parameters_and_has_no_race() -> None:
    assert section().method == "evolution" and section().racing is not None
    front = section("method=front", "objective=loss")
    assert front.front_objectives == ("loss", "params_m") and front.racing is None
    assert section("method=front", "objectives=[macs_g, loss]").front_objectives == ("macs_g", "loss")
    again = load_config(load_config("demo", ["search_subnet.method=front"]).model_dump_json())
    assert again.section(SearchSubnet).racing is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["objectives=[loss, params_m]"], "objectives loss, params_m are for method front; set method=front"),
        (["method=front", "objectives=[loss, flops]"], "'flops' is none of accuracy, loss, params_m, macs_g, latency"),
        (["method=front", "objectives=[loss, params_m, loss]"], "objectives loss, params_m, loss: name each once"),
        (["method=front", "objectives=[params_m, macs_g]"], "expected loss, as objective = loss, and no other score"),
        (["method=front", "objectives=[accuracy, params_m]"], "expected loss, as objective = loss"),
        (["method=front", "objectives=[loss, accuracy]"], "and no other score; change one of the two keys"),
        (["method=front", "objectives=[]"], "objectives []: expected loss"),
        (["method=front", "objectives=[loss]"], "one alone has no front; add params_m or macs_g or latency_ms"),
        (["method=front", "objectives=[loss, latency_ms]"], "the objective latency_ms needs a table"),
        (["method=front", "racing={}"], "racing is for method evolution"),
        (["method=front", "racing.confidence=0.9"], "set racing=null, or method=evolution"),
        (["method=nsga"], "search_subnet.method = 'nsga'"),
    ],
)  # fmt: skip
def test_a_bad_combination_is_one_line_that_names_the_remedy(settings: list[str], says: str) -> None:
    with pytest.raises(AutoFormerError) as refused:
        section("objective=loss", *settings)
    assert says in str(refused.value) and "\n" not in str(refused.value)
