"""The predictor of scores: its process by hand and against a plain twin, and the search that uses it."""

import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
from run_steps import contents
from small import small_space

from autoformer import predictor
from autoformer.candidates import Candidate, ScoredCandidate
from autoformer.complexity import count_params
from autoformer.limits import Limits
from autoformer.named import load_space
from autoformer.predictor import NOISES, RATES, GaussianProcess, coordinates, distances, predict
from autoformer.racing import Floats, ScoringResult, ScoringTask
from autoformer.randomness import derived_rng
from autoformer.search import Evolution, EvolutionSettings
from autoformer.space import SubnetSpec
from components.search_subnet.score_cache import ScoreCache
from components.search_subnet.search_loop import search
from components.search_subnet.step import write_results
from runtime.common.config import load_config
from runtime.common.sections import SearchSubnet

SPACE = small_space()  # widths 8, 12, 16; depths 1, 2, 3; heads 1, 2, 3; ratios 1, 1.3, 2


def drawn(count: int, seed: int = 0) -> list[SubnetSpec]:
    rng, found = Random(seed), dict[SubnetSpec, None]()
    while len(found) < count:
        found[SPACE.sample(rng)] = None
    return list(found)


def test_choices_become_places_by_hand() -> None:
    places = coordinates(SPACE, [SubnetSpec(2, 12, (3, 1), (1.0, 1.3)), SubnetSpec(1, 8, (2,), (2.0,))])
    assert places.astype(int).tolist() == [[1, 1, 3, 1, 0, 1, 2, 0], [0, 0, 2, 0, 0, 3, 0, 0]]
    assert distances(places[:1], places[1:]).ravel().tolist() == [1, 1, 1 + 1, 2 + 2]  # width, depth, heads, ratios


def widths(*choices: int) -> Floats:
    return coordinates(SPACE, [SubnetSpec(1, width, (1,), (1.0,)) for width in choices])


HALVING = (math.log(2), 0.1, 0.1, 0.1)  # rates: the correlation is halved by each step of the width


def test_the_posterior_by_hand() -> None:
    """Widths 8 and 12 score 1 and 3: residuals -1 and 1, with a covariance of 1 + noise and 1 / 2.

    So the weights are -1 and 1 over 1 / 2 + noise, and the mean of width 16 is 2 + (1 / 2 - 1 / 4) / (1 / 2 + noise).
    """
    noisy = GaussianProcess(widths(8, 12), [1.0, 3.0], (*HALVING, 0.5))
    assert noisy(widths(8, 12, 16)).tolist() == pytest.approx([1.5, 2.5, 2.25])
    exact = GaussianProcess(widths(8, 12), [1.0, 3.0], (*HALVING, 0.0))
    assert exact(widths(8, 12, 16)).tolist() == pytest.approx([1.0, 3.0, 2.5])


def test_the_posterior_is_that_of_a_plain_twin() -> None:
    """Conditional mean of a joint normal distribution, with the correlations of subnets one pair at a time."""
    specs, scores = drawn(25), np.random.default_rng(0).normal(size=20)
    rates, noise = (0.3, 0.1, 0.2, 0.05), 0.02

    def places(values: tuple[float, ...], choices: tuple[float, ...]) -> list[int]:
        return [choices.index(value) + 1 for value in values] + [0] * (3 - len(values))

    def correlation(one: SubnetSpec, other: SubnetSpec) -> float:
        apart = [abs(one.embed_dim - other.embed_dim) / 4, abs(one.depth - other.depth)]
        for name in ("num_heads", "mlp_ratio"):
            pair = [places(getattr(spec, name), getattr(SPACE.choices, name)) for spec in (one, other)]
            apart.append(sum(abs(a - b) for a, b in zip(*pair, strict=True)))
        return math.exp(-sum(rate * distance for rate, distance in zip(rates, apart, strict=True)))

    joint = np.array([[correlation(one, other) for other in specs] for one in specs])
    among, across = joint[:20, :20] + noise * np.eye(20), joint[20:, :20]
    expected = scores.mean() + across @ np.linalg.inv(among) @ (scores - scores.mean())
    process = GaussianProcess(coordinates(SPACE, specs[:20]), scores, (*rates, noise))
    np.testing.assert_allclose(process(coordinates(SPACE, specs[20:])), expected, atol=1e-9)


def test_the_likelihood_is_the_normal_density_at_its_best_variance() -> None:
    from scipy.optimize import minimize_scalar
    from scipy.stats import multivariate_normal

    places, scores = coordinates(SPACE, drawn(12)), np.random.default_rng(0).normal(size=12)
    process = GaussianProcess(places, scores)

    def density(hyper: tuple[float, ...]) -> float:
        covariance = np.exp(-sum(rate * apart for rate, apart in zip(hyper, distances(places, places), strict=False)))
        covariance += hyper[-1] * np.eye(12)

        def minus(log_variance: float) -> float:
            return -float(multivariate_normal.logpdf(scores - scores.mean(), cov=math.exp(log_variance) * covariance))

        return -float(minimize_scalar(minus, bounds=(-10, 10), method="bounded").fun)

    first, second = (0.3, 0.1, 0.2, 0.05, 0.02), (1.0, 0.1, 0.4, 0.05, 0.3)
    difference = process.log_likelihood(first) - process.log_likelihood(second)
    assert abs(difference) > 0.1 and difference == pytest.approx(density(first) - density(second), abs=1e-5)


def test_no_single_change_makes_the_chosen_rates_and_noise_more_likely() -> None:
    specs, rng = drawn(60), np.random.default_rng(0)
    scores = [spec.embed_dim / 4 + sum(spec.num_heads) + 0.3 * rng.normal() for spec in specs]
    process = GaussianProcess(coordinates(SPACE, specs), scores)
    best = process.log_likelihood(process.hyper)
    for place, values in enumerate([RATES] * 4 + [NOISES]):
        for value in values:
            changed = (*process.hyper[:place], value, *process.hyper[place + 1 :])
            assert process.log_likelihood(changed) <= best + 1e-6
    assert process.hyper[3] == min(RATES) < process.hyper[2]  # the ratio has no effect, the heads have


def test_equal_scores_and_a_single_one_are_predicted_for_all() -> None:
    specs = drawn(20)
    assert set(predict(SPACE, {specs[0]: 0.1}, specs[1:])) == {0.1}
    assert set(predict(SPACE, dict.fromkeys(specs[:3], 0.1), specs[3:])) == {0.1}


def test_an_effect_that_depends_on_the_width_is_predicted() -> None:
    """More heads are better in wide subnets, and worse in narrow ones: no sum over choices has this order."""
    specs = drawn(400)

    def score(spec: SubnetSpec) -> float:
        return (spec.embed_dim - 12) * sum(spec.num_heads) / spec.depth

    predicted = predict(SPACE, {spec: score(spec) for spec in specs[:200]}, specs[200:])
    assert np.corrcoef(predicted, [score(spec) for spec in specs[200:]])[0, 1] > 0.95


def test_of_many_scores_the_best_train_the_predictor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor, "MOST_KNOWN", 10)
    specs = drawn(40)
    known = {spec: float(number) for number, spec in enumerate(specs[:30])}
    best = {spec: known[spec] for spec in specs[20:30]}
    assert predict(SPACE, known, specs[30:]) == predict(SPACE, best, specs[30:])


LARGE = load_space("fashion-mnist")


def quality(spec: SubnetSpec) -> float:
    """Adds up over the blocks, best at width 96, with one interaction of depth and width."""
    blocks = sum(number * heads for number, heads in enumerate(spec.num_heads, start=1)) - sum(spec.mlp_ratio)
    return 50 + blocks - abs(spec.embed_dim - 96) / 8 + (spec.depth == 4 and spec.embed_dim == 96)


def generations(draws: int | None, seed: int) -> list[list[Candidate]]:
    settings = EvolutionSettings(population=20, generations=4, parents=6, mutations=10, crossovers=10, predictor=draws)
    evolution, found = Evolution(LARGE, Limits(max_params_m=0.25), settings, Random(seed)), list[list[Candidate]]()
    while candidates := evolution.ask():
        evolution.tell([ScoredCandidate(one, quality(one.spec), 0.0, 9) for one in candidates])
        found.append(candidates)
    return found


def test_of_the_offspring_only_the_predicted_best_are_scored_each_legal_once_and_numbered() -> None:
    told = generations(10, 0)
    asked = [candidate for generation in told for candidate in generation]
    assert [candidate.id for candidate in asked] == list(range(100))
    assert len({candidate.spec for candidate in asked}) == 100 and all(c.params <= 250_000 for c in asked)
    parents = {parent for candidate in asked for parent in candidate.parents}
    assert parents < {candidate.id for candidate in asked}
    assert [len(generation) for generation in told] == [20] * 5


def test_a_search_with_a_predictor_is_that_of_its_seed() -> None:
    assert generations(10, 7) == generations(10, 7) != generations(10, 8)


def test_the_first_generation_has_the_larger_of_each_two_draws() -> None:
    settings = EvolutionSettings(population=6, parents=2, mutations=3, crossovers=3, predictor=10)
    twice = settings.model_copy(update={"population": 12, "predictor": None})
    drawn = Evolution(LARGE, Limits(), twice, Random(5)).ask()
    kept = Evolution(LARGE, Limits(), settings, Random(5)).ask()
    pairs = zip(drawn[::2], drawn[1::2], strict=True)
    assert [one.params for one in kept] == [max(first.params, second.params) for first, second in pairs]
    assert [one.id for one in kept] == list(range(6)) and {one.spec for one in kept} < {one.spec for one in drawn}


def test_the_first_generation_has_all_subnets_where_few_are_legal() -> None:
    smallest = count_params(LARGE, LARGE.smallest)
    settings = EvolutionSettings(population=20, parents=2, mutations=3, crossovers=3, predictor=10, tries=200)
    kept = Evolution(LARGE, Limits(max_params_m=smallest / 1e6), settings, Random(0)).ask()
    assert [one.spec for one in kept] == [LARGE.smallest]


def test_the_optimum_of_an_additive_landscape_is_found() -> None:
    """Three heads with ratio 1 add 2 a block, so the best subnet has three of them, and the largest width."""
    settings = EvolutionSettings(population=20, generations=4, parents=6, mutations=10, crossovers=10, predictor=10)

    def added(spec: SubnetSpec) -> float:
        return sum(spec.num_heads) - sum(spec.mlp_ratio) + spec.embed_dim / 4

    def best(seed: int) -> SubnetSpec:
        evolution = Evolution(SPACE, Limits(), settings, Random(seed))
        while candidates := evolution.ask():
            evolution.tell([ScoredCandidate(one, added(one.spec), 0.0, 9) for one in candidates])
        return evolution.best(1)[0].candidate.spec

    optimum = SubnetSpec(3, 16, (3, 3, 3), (1.0, 1.0, 1.0))
    assert [best(seed) for seed in range(3)] == [optimum] * 3


class KilledError(Exception):
    pass


def answers(tasks: Iterable[ScoringTask]) -> Iterator[tuple[ScoringTask, ScoringResult]]:
    """Of 40 images, by quality."""
    for task in tasks:
        margin = np.linspace(-2, 3, 40)[task.images] + quality(task.spec) / 10 - 5
        yield task, ScoringResult(margin > 0, np.log1p(np.exp(-margin)).astype(np.float32))


def searched(folder: Path, most: int) -> tuple[bytes, int]:
    """The search folder as bytes, and the subnets that were scored for it; killed after `most` lines of scores."""
    small = "population=8 generations=3 parents=3 mutations=4 crossovers=4 images=40 predictor=5 racing.first_images=10"
    config = load_config("demo", [f"search_subnet.{setting}" for setting in small.split()])
    section, stored = config.section(SearchSubnet), itertools.count(1)

    def stop() -> None:
        if next(stored) == most:
            raise KilledError

    cache = ScoreCache(folder / "scores.jsonl", 40, answers, stop)
    evolution = Evolution(config.space, section.limits, section, derived_rng("evolution", 0))
    result = search(config, evolution, evolution.ask(), cache, 40, lambda *_: None, lambda *_: None)
    write_results(folder / "out", config, {"": result}, {"code": "", "inputs": {"supernet": ""}})
    return b"".join(content for _, content in sorted(contents(folder / "out").items())), cache.candidates_scored_now


def test_a_search_with_a_predictor_that_is_killed_in_each_generation_ends_in_the_same_bytes(tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole, scored = searched(tmp_path / "whole", -1)
    lines = len((tmp_path / "whole" / "scores.jsonl").read_text().splitlines())
    for most in (5, 20, 15, 15):
        with pytest.raises(KilledError):
            searched(tmp_path / "killed", most)
        (tmp_path / "killed" / "scores.jsonl").open("a").write('{"subnet": {"dep')  # a line that a kill cut off
    assert lines > 60 and not (tmp_path / "killed" / "out").exists()
    resumed, scored_at_last = searched(tmp_path / "killed", -1)
    assert resumed == whole and 0 < scored_at_last < scored
    assert len((tmp_path / "killed" / "scores.jsonl").read_text().splitlines()) == lines
