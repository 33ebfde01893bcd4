"""The evolutionary search, on tables computed by hand."""

import math
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from autoformer.candidates import Candidate, ScoredCandidate
from autoformer.complexity import COUNTED_MACS, count_macs, count_params
from autoformer.errors import AutoFormerError
from autoformer.front import make_search
from autoformer.limits import Limits
from autoformer.named import load_space
from autoformer.pareto import pareto_front
from autoformer.search import Evolution, EvolutionSettings, cross, mutate, random_baseline
from autoformer.space import SearchSpace, SubnetSpec

SPACE = SearchSpace.model_validate(
    {
        "name": "eight-heads", "image_size": 28, "patch_size": 7, "in_channels": 1, "num_classes": 10,
        "head_dim": 16, "max_relative_position": 3,
        "supernet": {"embed_dim": 128, "depth": 6, "num_heads": 8, "mlp_ratio": 4.0},
        "choices": {
            "embed_dim": [64, 96, 128], "depth": [4, 5, 6], "num_heads": [4, 6, 8], "mlp_ratio": [2.0, 3.0, 4.0],
        },
    }
)  # fmt: skip


def space_with(**choices: list[float]) -> SearchSpace:
    data = SPACE.model_dump()
    return SearchSpace.model_validate(data | {"choices": data["choices"] | choices})


def heads_of(candidate: Candidate) -> int:
    return sum(candidate.spec.num_heads)


def scored(candidates: list[Candidate], score: Callable[[Candidate], float]) -> list[ScoredCandidate]:
    """All complete, with equal losses."""
    return [ScoredCandidate(candidate, score(candidate), 0.0, 100) for candidate in candidates]


class Always(Random):
    """Chooses the first of everything; `random()` gives `value`."""

    def __init__(self, value: float, pick: int = 0) -> None:
        super().__init__(0)
        self.value, self.pick = value, pick

    def random(self) -> float:
        return self.value

    def choice(self, options):  # type: ignore[no-untyped-def]
        return options[self.pick]


def test_mutation_with_probability_zero_changes_nothing() -> None:
    settings = EvolutionSettings(mutation_probability=0.0, structure_probability=0.0)
    parent = SPACE.sample(Random(1))
    assert mutate(SPACE, parent, Random(2), settings) == parent


def test_mutation_cuts_off_and_appends_blocks() -> None:
    space = space_with(depth=[2, 4], embed_dim=[64, 128], num_heads=[4, 8], mlp_ratio=[2.0, 4.0])
    settings = EvolutionSettings(mutation_probability=0.5, structure_probability=0.5)
    deep = SubnetSpec(4, 128, (8, 8, 8, 8), (4.0, 4.0, 4.0, 4.0))
    # random() = 0.4 < 0.5: everything is drawn anew, and the first choice is drawn
    assert mutate(space, deep, Always(0.4, 0), settings) == SubnetSpec(2, 64, (4, 4), (2.0, 2.0))
    shallow = SubnetSpec(2, 64, (4, 4), (2.0, 2.0))
    assert mutate(space, shallow, Always(0.4, -1), settings) == deep
    # random() = 0.5 is not below 0.5: nothing is
    assert mutate(space, deep, Always(0.5, 0), settings) == deep


def test_mutation_has_the_given_probability() -> None:
    settings = EvolutionSettings(mutation_probability=0.2, structure_probability=0.0)
    space = space_with(depth=[6], num_heads=[1, 2, 3, 4, 5, 6, 7, 8])
    parent = SubnetSpec(6, 64, (1,) * 6, (2.0,) * 6)
    rng = Random(0)
    mutants = [mutate(space, parent, rng, settings) for _ in range(3000)]
    changed = sum(heads != 1 for mutant in mutants for heads in mutant.num_heads) / 18000
    assert changed == pytest.approx(0.2 * 7 / 8, abs=0.01)


def test_children_of_equal_depth_take_each_value_from_either_parent() -> None:
    first = SubnetSpec(3, 64, (4, 4, 4), (2.0, 2.0, 2.0))
    second = SubnetSpec(3, 128, (8, 8, 8), (4.0, 4.0, 4.0))
    rng = Random(0)
    children = [cross(first, second, rng) for _ in range(2000)]
    assert all(heads in (4, 8) for child in children for heads in child.num_heads)
    assert sum(child.embed_dim == 64 for child in children) / 2000 == pytest.approx(0.5, abs=0.04)
    assert sum(child.num_heads[1] == 4 for child in children) / 2000 == pytest.approx(0.5, abs=0.04)
    assert len({(child.num_heads, child.mlp_ratio) for child in children}) == 64  # every combination


def test_children_of_unequal_depth_are_whole() -> None:
    """The official code truncates them, and mixes up widths and head counts."""
    short = SubnetSpec(2, 64, (4, 4), (2.0, 2.0))
    long = SubnetSpec(4, 128, (8, 8, 8, 8), (4.0, 4.0, 4.0, 4.0))
    rng = Random(0)
    for _ in range(500):
        child = cross(short, long, rng)
        assert child.depth in (2, 4)
        assert set(child.num_heads[2:]) <= {8} and set(child.mlp_ratio[2:]) <= {4.0}


def test_every_generation_is_ranked_and_every_candidate_scored_once() -> None:
    settings = EvolutionSettings(population=8, generations=3, parents=3, mutations=4, crossovers=4)
    evolution = Evolution(SPACE, Limits(), settings, Random(0))
    asked: list[Candidate] = []
    sizes = []
    while candidates := evolution.ask():
        sizes.append(len(candidates))
        asked += candidates
        evolution.tell(scored(candidates, heads_of))
    assert sizes == [8, 8, 8, 8]
    assert len({candidate.spec for candidate in asked}) == len(asked) == 32
    assert evolution.best(1)[0].top1_percent == max(map(heads_of, asked))  # the last generation's too


def test_parents_come_from_the_best_of_all_generations() -> None:
    settings = EvolutionSettings(population=6, generations=4, parents=2, mutations=3, crossovers=3)
    evolution = Evolution(SPACE, Limits(), settings, Random(3))
    while candidates := evolution.ask():
        allowed = {parent.candidate.id for parent in evolution.best(2)}
        for candidate in candidates:
            assert set(candidate.parents) <= allowed
            assert bool(candidate.parents) == (candidate.origin in ("mutation", "crossover"))
        evolution.tell(scored(candidates, heads_of))


def test_evolution_finds_what_random_search_does_not() -> None:
    """The score is the closeness to one hidden subnet out of 1.8 million."""
    hidden = SPACE.sample(Random(99))

    def score(candidate: Candidate) -> float:
        spec = candidate.spec
        alike = sum(a == b for a, b in zip(spec.num_heads, hidden.num_heads, strict=False))
        alike += sum(a == b for a, b in zip(spec.mlp_ratio, hidden.mlp_ratio, strict=False))
        return alike + 3 * (spec.depth == hidden.depth) + 3 * (spec.embed_dim == hidden.embed_dim)

    evolved, random = [], []
    for seed in range(5):
        evolution = Evolution(SPACE, Limits(), EvolutionSettings(), Random(seed))
        while candidates := evolution.ask():
            evolution.tell(scored(candidates, score))
        evolved.append(evolution.best(1)[0].top1_percent)
        baseline = random_baseline(SPACE, Limits(), len(evolution.scored), 10_000, Random(seed + 100))
        random.append(max(map(score, baseline)))
    assert len(evolution.scored) == 50 * 21  # the official budget, all of it ranked
    assert min(evolved) > max(random)


def test_limits_hold_for_every_candidate_and_both_ends_are_legal() -> None:
    largest = SPACE.largest
    top = count_params(SPACE, largest)
    counts = {"params_m": top, "macs_g": 1}
    assert Limits.on_params(top, top).allow(counts)
    assert not Limits(max_params_m=(top - 1) / 1e6).allow(counts)
    limits = Limits(min_params_m=0.3, max_params_m=0.5, min_macs_g=0.005, max_macs_g=0.009)
    evolution = Evolution(
        SPACE,
        limits,
        EvolutionSettings(population=20, generations=3, parents=5, mutations=10, crossovers=10),
        Random(0),
    )
    while candidates := evolution.ask():
        for candidate in candidates:
            assert candidate.params == count_params(SPACE, candidate.spec)
            assert candidate.macs == count_macs(SPACE, candidate.spec)
            assert 300_000 <= candidate.params <= 500_000
            assert 5_000_000 <= candidate.macs <= 9_000_000
        evolution.tell(scored(candidates, lambda _: 0.0))


@pytest.mark.parametrize("kind", ["none", "published", "ours"])
def test_limits_count_macs_by_the_definition_that_they_name(kind: Any) -> None:
    highest = 2 * count_macs(SPACE, SPACE.smallest, kind)
    limits = Limits(max_macs_g=highest / 1e9, relative_position=kind)
    found = Evolution(SPACE, limits, EvolutionSettings(), Random(0)).ask()
    assert 0.9 * highest < max(count_macs(SPACE, one.spec, kind) for one in found) <= highest
    assert all(one.macs == count_macs(SPACE, one.spec, "none") for one in found)
    assert COUNTED_MACS[kind] in str(limits)
    with pytest.raises(AutoFormerError, match=COUNTED_MACS[kind]) as refused:
        Evolution(SPACE, limits.model_copy(update={"max_macs_g": 1e-6}), EvolutionSettings(tries=5), Random(0)).ask()
    assert f"{count_macs(SPACE, SPACE.smallest, kind):,} {COUNTED_MACS[kind]}" in str(refused.value)


@pytest.mark.parametrize(
    "limits", [Limits(max_params_m=0.001), Limits(min_macs_g=1000), Limits.on_params(10**6, 10**6)]
)
def test_limits_that_no_subnet_meets_end_in_a_clear_error(limits: Limits) -> None:
    smallest = f"{count_params(SPACE, SPACE.smallest):,}"
    with pytest.raises(AutoFormerError, match="no legal candidate in 200 tries under") as told:
        Evolution(SPACE, limits, EvolutionSettings(tries=200), Random(0)).ask()
    assert f"the smallest subnet has {smallest} parameters" in str(told.value)
    assert "\n" not in str(told.value)
    with pytest.raises(AutoFormerError, match="no legal candidate"):
        random_baseline(SPACE, limits, 5, 200, Random(0))


def test_limits_at_the_very_edge_of_a_space_are_met() -> None:
    """Uniform draws would need some 10^13 tries to hit the smallest subnet of AutoFormer-S."""
    space = load_space("autoformer-small")
    smallest, largest = (count_params(space, spec) for spec in (space.smallest, space.largest))
    at_the_bottom = Evolution(space, Limits(max_params_m=smallest / 1e6), EvolutionSettings(tries=200), Random(0)).ask()
    assert [candidate.spec for candidate in at_the_bottom] == [space.smallest]
    at_the_top = Evolution(space, Limits(min_params_m=largest / 1e6), EvolutionSettings(tries=200), Random(0)).ask()
    assert [candidate.spec for candidate in at_the_top] == [space.largest]
    band = Limits.on_params(smallest + 50_000, smallest + 400_000)
    found = random_baseline(space, band, 20, 300, Random(0))
    assert len(found) == 20
    for candidate in found:
        space.check(candidate.spec)
        assert smallest + 50_000 <= candidate.params <= smallest + 400_000


def test_a_space_smaller_than_the_population_is_searched_whole_and_ends() -> None:
    space = space_with(depth=[1], embed_dim=[64, 128], num_heads=[4, 8], mlp_ratio=[2.0])
    evolution = Evolution(
        space,
        Limits(),
        EvolutionSettings(population=10, generations=20, parents=2, mutations=5, crossovers=5, tries=500),
        Random(0),
    )
    first = evolution.ask()
    assert {candidate.spec for candidate in first} == {
        SubnetSpec(1, width, (heads,), (2.0,)) for width in (64, 128) for heads in (4, 8)
    }
    evolution.tell(scored(first, heads_of))
    assert evolution.ask() == []


def test_ties_go_to_the_smaller_subnet_then_to_the_earlier() -> None:
    spec = SPACE.smallest

    def entry_of(id: int, params: int, top1_percent: float) -> ScoredCandidate:
        return ScoredCandidate(Candidate(id, spec, "initial", 0, (), params, 0), top1_percent, 0.0, 100)

    table = [entry_of(0, 900, 80.0), entry_of(1, 700, 80.0), entry_of(2, 700, 80.0), entry_of(3, 100, 79.9)]
    assert [entry.candidate.id for entry in sorted(table, key=lambda entry: entry.rank())] == [1, 2, 0, 3]


def test_the_same_seed_gives_the_same_search() -> None:
    def run(seed: int) -> list[Candidate]:
        evolution = Evolution(
            SPACE,
            Limits(),
            EvolutionSettings(population=10, generations=2, parents=4, mutations=5, crossovers=5),
            Random(seed),
        )
        table: list[Candidate] = []
        while candidates := evolution.ask():
            table += candidates
            evolution.tell(scored(candidates, heads_of))
        return table

    assert run(7) == run(7)
    assert run(7) != run(8)


@pytest.mark.parametrize("method", ["evolution", "front"])
@pytest.mark.parametrize("loss", [None, math.nan, math.inf])
@pytest.mark.parametrize("top1", [50.0, math.nan])
def test_scores_without_a_rank_are_refused(method: Any, loss: float | None, top1: float) -> None:
    settings = EvolutionSettings(population=4, generations=2, parents=2, mutations=2, crossovers=2, method=method)
    search = make_search(SPACE, Limits(), settings, Random(0))
    first = [ScoredCandidate(candidate, top1, loss, 9) for candidate in search.ask()]
    if loss is None and top1 == 50.0:
        search.tell(first)
        with pytest.raises(
            AutoFormerError, match="no complete score to breed from; pass `tell` the scores of the cand"
        ):
            search.ask()
    else:
        with pytest.raises(AutoFormerError, match=r"candidate 0: top1_percent .* not finite has no rank"):
            search.tell(first)
        assert search.best(1) == [] and search.generation == 0


def test_a_population_too_small_for_its_offspring_is_refused() -> None:
    with pytest.raises(AutoFormerError, match=r"mutations 25 \+ crossovers 25 are more than population 10"):
        EvolutionSettings(population=10)


def test_pareto_front() -> None:
    # (cost, -score): 1 is dominated by 0, 4 equals 2 and comes later, 5 costs as much as 3 and scores less
    points = [(1, -70), (2, -70), (3, -80), (5, -90), (3, -80), (5, -85), (9, -90)]
    assert pareto_front(points) == [0, 2, 3]
    assert pareto_front([]) == []
    assert pareto_front([(1, 1)]) == [0]
