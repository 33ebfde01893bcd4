"""The predictor of scores: ridge regression by hand and against numpy's least squares, and the search that uses it."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
from run_steps import contents
from small import small_space

from autoformer.candidates import Candidate, ScoredCandidate
from autoformer.limits import Limits
from autoformer.named import load_space
from autoformer.predictor import PENALTIES, Ridge, one_hot, predict
from autoformer.racing import ScoringResult, ScoringTask
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


def test_choices_become_columns_by_hand() -> None:
    features = one_hot(SPACE, [SubnetSpec(2, 12, (3, 1), (1.0, 1.3)), SubnetSpec(1, 8, (2,), (2.0,))])
    assert features.astype(int).tolist() == [
        [0, 1, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        [1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]


def test_ridge_by_hand() -> None:
    """Two subnets at x = -1 and 1 score 1 and 3. Without a penalty 2 + x; with 2 the slope is 2 / (2 + 2)."""
    features, scores = np.array([[-1.0], [1.0]]), [1.0, 3.0]
    assert Ridge(features, scores, 0.0)(np.array([[3.0], [0.0]])).tolist() == pytest.approx([5.0, 2.0])
    assert Ridge(features, scores, 2.0)(np.array([[3.0], [0.0]])).tolist() == pytest.approx([3.5, 2.0])


@pytest.mark.parametrize("penalty", [0.1, 3.0])
@pytest.mark.parametrize("known", [10, 60])
def test_ridge_is_least_squares_with_a_row_for_each_penalised_weight(known: int, penalty: float) -> None:
    """The intercept's column has no such row."""
    features, rng = one_hot(SPACE, drawn(80)), np.random.default_rng(0)
    scores = rng.normal(size=known)
    columns = features.shape[1]
    rows = np.hstack([np.ones((known, 1)), features[:known]])
    penalties = np.hstack([np.zeros((columns, 1)), np.sqrt(penalty) * np.eye(columns)])
    twin = np.linalg.lstsq(np.vstack([rows, penalties]), np.concatenate([scores, np.zeros(columns)]))[0]
    expected = twin[0] + features[known:] @ twin[1:]
    np.testing.assert_allclose(Ridge(features[:known], scores, penalty)(features[known:]), expected, atol=1e-9)


def test_the_penalty_has_the_least_error_when_each_subnet_is_left_out() -> None:
    features, rng = one_hot(SPACE, drawn(25)), np.random.default_rng(1)
    scores = features @ rng.normal(size=features.shape[1]) + 0.5 * rng.normal(size=25)

    def error(penalty: float) -> float:
        others = (np.arange(25) != left_out for left_out in range(25))
        misses = [
            Ridge(features[rest], scores[rest], penalty)(features[~rest])[0] - scores[~rest][0] for rest in others
        ]
        return float(np.square(misses).sum())

    assert Ridge(features, scores).penalty == min(PENALTIES, key=error)
    assert 1e-2 < Ridge(features, scores).penalty < 1e3  # the choice is not an end of the range


@pytest.mark.parametrize("known", [1, 2, 500])
def test_additive_scores_are_predicted_and_few_or_equal_ones_end_in_no_error(known: int) -> None:
    def score(spec: SubnetSpec) -> float:
        return spec.embed_dim + 2 * sum(spec.num_heads) - sum(spec.mlp_ratio)

    specs = drawn(550)
    predicted = predict(SPACE, {spec: score(spec) for spec in specs[:known]}, specs[known : known + 50])
    assert np.isfinite(predicted).all()
    if known == 500:
        assert np.corrcoef(predicted, [score(spec) for spec in specs[500:]])[0, 1] > 0.99
    if known == 1:
        assert set(predicted) == {score(specs[0])}


LARGE = load_space("fashion-mnist")


def quality(spec: SubnetSpec) -> float:
    """Adds up over the blocks, best at width 96, with one interaction of depth and width."""
    blocks = sum(number * heads for number, heads in enumerate(spec.num_heads, start=1)) - sum(spec.mlp_ratio)
    return 50 + blocks - abs(spec.embed_dim - 96) / 8 + (spec.depth == 4 and spec.embed_dim == 96)


def generations(predictor: int, seed: int) -> list[list[Candidate]]:
    settings = EvolutionSettings(
        population=20, generations=4, parents=6, mutations=10, crossovers=10, predictor=predictor
    )
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
