"""The choice of a search: by accuracy or by loss, among evolution and random search, on the whole search split."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from autoformer.candidates import Candidate, ScoredCandidate
from autoformer.racing import ScoringResult, ScoringTask
from autoformer.randomness import derived_rng
from autoformer.search import Evolution
from autoformer.space import SubnetSpec
from components.search_subnet.score_cache import ScoreCache
from components.search_subnet.search_loop import SearchResult, search
from components.search_subnet.standing import standing
from components.search_subnet.step import write_results
from runtime.common.config import Config, load_config
from runtime.common.sections import SearchSubnet
from runtime.common.tables import read_table

PART, WHOLE = 400, 900  # images that score a candidate, and of the search split


def scored_by(spec: SubnetSpec, images: Any) -> ScoringResult:
    """Wide subnets have the lower loss, deep ones are right more often; images differ in ease."""
    ease = np.random.default_rng(0).normal(2, 2, WHOLE)[images]
    own = np.random.default_rng(sum(spec.num_heads) + round(10 * sum(spec.mlp_ratio))).normal(0, 0.2, WHOLE)[images]
    losses = np.log1p(np.exp(-ease - own)) + 10 / spec.embed_dim
    return ScoringResult(ease + own + 0.2 * spec.depth > 0, losses.astype(np.float32))


def scorer(tasks: Sequence[ScoringTask]) -> Iterator[tuple[ScoringTask, ScoringResult]]:
    yield from ((task, scored_by(task.spec, task.images)) for task in tasks)


def config_of(**section: Any) -> Config:
    small = {"population": 8, "generations": 2, "parents": 3, "mutations": 3, "crossovers": 3, "finalists": 4}
    text = {"name": "choice", "seed": 0, "dataset": "none", "space": "fashion-mnist", "search_subnet": small | section}
    return load_config(json.dumps(text), steps=["search_subnet"])


def searched(folder: Path, config: Config, score: Any = scorer) -> tuple[SearchResult, ScoreCache]:
    section = config.section(SearchSubnet)
    evolution = Evolution(config.space, section.limits, section, derived_rng("evolution", config.seed))
    cache = ScoreCache(folder / "scores.jsonl", WHOLE, score)
    result = search(config, evolution, evolution.ask(), cache, PART, lambda *_: None, lambda *_: None, WHOLE)
    return result, cache


def at(number: int, params: int, top1: float, loss: float | None) -> ScoredCandidate:
    spec = replace(config_of().space.smallest, embed_dim=32 * (number + 1))  # a subnet of its own
    return ScoredCandidate(Candidate(number, spec, "initial", 0, (), params, 1), top1, loss, 100)


def test_the_standing_of_a_search_is_its_best_and_the_front_of_the_objective() -> None:
    """By accuracy 2 beats the larger 3; by loss 3 is ahead of it. 4 was stopped."""
    rows = [(90_000, 80.0, 0.7), (30_000, 75.5, 0.8), (100_000, 82.0, 0.65), (110_000, 81.0, 0.6), (20_000, 99.0, None)]
    scored = [at(number, *row) for number, row in enumerate(rows)]
    best, front = standing(scored[2], scored, "accuracy")
    assert best == "best of 5 candidates: 82.00 %, loss 0.6500, 0.1 M parameters"
    assert front == "front, parameters and accuracy: 0.03 M 75.50 %, 0.09 M 80.00 %, 0.1 M 82.00 %"
    best, front = standing(scored[3], scored, "loss")
    assert best == "best of 5 candidates: 81.00 %, loss 0.6000, 0.11 M parameters"
    assert front.endswith("0.1 M 82.00 %, 0.11 M 81.00 %")
    front = standing(scored[3], scored, "loss", ("loss", "params_m"))[1]
    assert front == (
        "front of 4 candidates, parameters and loss: 0.03 M 0.8000, 0.09 M 0.7000, 0.1 M 0.6500, 0.11 M 0.6000"
    )
    front = standing(scored[3], scored, "loss", ("loss", "macs_g"))[1]
    assert front == "front of 1 candidate, MACs and loss: 1e-09 G 0.6000"  # all have one multiply-add
    many = [at(number, 1000 * number, 50.0 + number, 1.0 - number / 100) for number in range(1, 40)]
    assert standing(many[-1], many, "loss")[1].count("%") == 5
    assert standing(many[-1], many, "loss")[1].endswith(": 0.001 M 51.00 %, 0.01 M 60.00 %, 0.02 M 70.00 %, "
                                                        "0.029 M 79.00 %, 0.039 M 89.00 %")  # fmt: skip


def test_each_generation_of_a_search_is_announced_with_the_best_so_far(tmp_path: Path) -> None:
    config, lines = config_of(racing=None), list[str]()
    section = config.section(SearchSubnet)
    evolution = Evolution(config.space, section.limits, section, derived_rng("evolution", config.seed))
    cache = ScoreCache(tmp_path / "scores.jsonl", WHOLE, scorer)
    silent = lambda *_: None  # noqa: E731
    result = search(config, evolution, evolution.ask(), cache, PART, silent, silent, WHOLE, announce=lines.append)
    assert len(lines) == 2 * 3
    for row, line in zip(result.progress, lines[::2], strict=True):
        start = f"generation {row['generation']} of 2: best of {row['scored']} candidates"
        assert line.startswith(f"{start}: {row['evolution_best_top1_percent']:.2f} %, loss ")


def on_whole_split(candidate: ScoredCandidate) -> tuple[float, float]:
    result = scored_by(candidate.candidate.spec, np.arange(WHOLE))
    return 100 * float(result.correct.mean()), float(result.losses.mean(dtype=np.float64))


@pytest.mark.parametrize("racing", [None, {"first_images": 60}])
@pytest.mark.parametrize("objective", ["accuracy", "loss"])
def test_the_best_by_the_objective_is_chosen_on_the_whole_split(
    objective: str, racing: dict[str, int] | None, tmp_path: Path
) -> None:
    result, _ = searched(tmp_path, config_of(objective=objective, racing=racing))
    best = {"accuracy": lambda one: -on_whole_split(one)[0], "loss": lambda one: on_whole_split(one)[1]}[objective]
    assert best(result.chosen) == min(map(best, result.finalists))
    complete = [one for one in result.candidates if one.complete]
    assert {one.images for one in complete} == {PART} and (racing is None) == (len(complete) == 48)
    on_part = {"accuracy": lambda one: (-one.top1_percent, one.loss), "loss": lambda one: (one.loss, 0)}[objective]
    finalists = {one.candidate.spec for one in result.finalists}
    first = sorted(complete, key=on_part)[:2]
    assert {one.candidate.spec for one in first} <= finalists and 4 <= len(finalists) <= 6
    for one in result.finalists:
        assert one.images == WHOLE
        assert (one.top1_percent, one.loss) == pytest.approx(on_whole_split(one))
    assert result.metrics["chosen_loss"] == result.chosen.loss
    assert result.metrics["chosen_top1_percent"] == result.chosen.top1_percent
    if objective == "loss":
        assert result.chosen.candidate.spec.embed_dim == 128


def test_a_race_by_loss_ends_in_the_choice_of_the_exact_search(tmp_path: Path) -> None:
    losses = {}
    for name, racing in (("exact", None), ("race", {"first_images": 60})):
        (tmp_path / name).mkdir()
        result, _ = searched(tmp_path / name, config_of(objective="loss", racing=racing, random_baseline=False))
        losses[name] = result.metrics["chosen_loss"]
        scored = result.metrics["images_scored"]
        stopped = [one for one in result.candidates if not one.complete]
        assert (name == "race") == bool(stopped) == (scored < 24 * PART)
        for one in stopped:
            right = scored_by(one.candidate.spec, np.arange(PART)).correct.mean()
            assert one.top1_percent == pytest.approx(100 * right, abs=6)
    assert losses["race"] == pytest.approx(losses["exact"], abs=0.003)


def test_a_subnet_that_random_search_found_is_chosen_where_it_is_the_best_and_that_is_written(tmp_path: Path) -> None:
    config = config_of(generations=0, population=4, parents=2, mutations=2, crossovers=2)
    for seed in range(20):
        (tmp_path / str(seed)).mkdir()
        config = config.model_copy(update={"seed": seed})
        result, _ = searched(tmp_path / str(seed), config)
        write_results(
            tmp_path / str(seed) / "out", config, {"": result}, {"code": "c0de", "inputs": {"supernet": "none"}}
        )
        random = bool(result.metrics["chosen_is_random"])
        assert random == (result.chosen.candidate.origin == "baseline")
        source = yaml.safe_load((tmp_path / str(seed) / "out" / "chosen.yaml").read_text())["source"]
        assert f"({'random search' if random else 'evolution'})" in source
        metrics = result.metrics
        best = max(metrics["evolution_best_top1_percent"], metrics["random_best_top1_percent"])
        assert metrics["chosen_top1_percent"] == best
        difference = metrics["evolution_best_top1_percent"] - metrics["random_best_top1_percent"]
        assert metrics["evolution_minus_random_percent"] == pytest.approx(difference)
        low, high = (metrics[f"evolution_minus_random_{end}_percent"] for end in ("low", "high"))
        assert low <= difference + 1e-9 and difference - 1e-9 <= high
        rows = read_table(tmp_path / str(seed) / "out" / "finalists.csv")
        assert [row["images"] for row in rows] == [str(WHOLE)] * len(rows)
        if random:
            return
    raise AssertionError("random search was never ahead in 20 seeds")


def test_a_resumed_search_reads_the_losses_of_the_first_try(tmp_path: Path) -> None:
    config = config_of(objective="loss", racing={"first_images": 60})
    result, first = searched(tmp_path, config)

    def no_more(tasks: Sequence[ScoringTask]) -> Iterator[Any]:
        assert not tasks
        return iter(())

    again, second = searched(tmp_path, config, no_more)
    assert again == result and first.images_scored_now > 0 == second.images_scored_now
