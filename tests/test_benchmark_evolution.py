"""Searches compared over several seeds: intervals and volumes by hand, and both commands on tiny data."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from run_steps import SPACE, arguments, config_of, run
from tiny import TinyData

from autoformer.candidates import ScoredCandidate
from autoformer.complexity import count_params
from autoformer.front import front_of
from autoformer.limits import Limits
from autoformer.racing import ScoringResult, ScoringTask
from autoformer.space import SubnetSpec
from benchmarks import evolution, front
from benchmarks.front import Plane, Point, volumes
from benchmarks.searches import mean_interval
from runtime.common.config import load_config

SMALL = {"population": 6, "generations": 2, "parents": 3, "mutations": 3, "crossovers": 2, "images": 80}


def test_the_interval_is_students_over_the_seeds() -> None:
    """1, 2, 3, 4: mean 2.5, deviation 1.2910, t(0.975, 3) = 3.1824, so 2.5 -+ 2.0543."""
    assert mean_interval([1.0, 2.0, 3.0, 4.0]) == pytest.approx((2.5, 0.4457, 4.5543), abs=1e-4)
    assert mean_interval([0.5, 0.5]) == pytest.approx((0.5, 0.5, 0.5))


Tasks = Iterable[ScoringTask]


def answers(task: ScoringTask, quality: float) -> ScoringResult:
    margin = np.linspace(-2, 3, 400)[task.images] + quality
    return ScoringResult(margin > 0, np.log1p(np.exp(-margin)).astype(np.float32))


def test_a_search_that_can_find_more_than_chance_is_ahead_and_one_that_cannot_is_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Answers by the mean heads and ratio, which evolution improves step by step; or by nothing at all."""
    text = ["space=autoformer-tiny", "search_subnet.images=400", "search_subnet.limits={}", "search_subnet.racing=null"]
    config = load_config("demo", text)

    def climbing(tasks: Tasks) -> Iterator[ScoringResult]:
        yield from (answers(one, np.mean(one.spec.mlp_ratio) + np.mean(one.spec.num_heads) - 7.25) for one in tasks)

    def flat(tasks: Tasks) -> Iterator[ScoringResult]:
        yield from (answers(one, 0.0) for one in tasks)

    pairs = evolution.compare(config, climbing, 400, 5)
    assert all(one.loss < 0 <= one.points for one in pairs)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"seed {seed}" for seed in range(5)]
    assert {one.evolved.images for one in pairs} == {one.random.images for one in pairs} == {400}
    values = {row.name: row.value for row in evolution.rows(pairs)}
    assert values["evolution minus random search, loss (below 0 is better): to"] < 0
    assert values["seeds of 5 in which evolution has the lower loss"] == 5
    level = evolution.compare(config, flat, 400, 2)
    assert [one.points for one in level] == [one.loss for one in level] == [0, 0]


def test_a_volume_is_the_dominated_part_of_a_rectangle_with_a_stated_reference() -> None:
    """Sizes 100 to 300, errors 20 (reference) to 10 (best): half the width by half the height, and beyond it."""
    plane = Plane(100, 300, reference=20.0, best=10.0)
    assert plane.volume([(200, 15.0)]) == 0.25
    assert plane.volume([(100, 10.0)]) == 1.0
    assert plane.volume([(200, 15.0), (250, 10.0)]) == 0.25 + 0.25 * 0.5
    assert plane.volume([(200, 20.0), (300, 10.0), (50, 21.0)]) == 0.0 == plane.volume([])
    assert plane._replace(best=20.0).volume([(100, 20.0)]) == 0.0  # nothing beats the smallest subnet


def test_all_searches_and_seeds_share_the_rectangle() -> None:
    """Only the second seed's evolution has the best accuracy, 90; the smallest subnet has 80. No limits: 10 to 30."""
    space = load_config("demo", ["space=fashion-mnist"]).space
    smallest, largest = (count_params(space, spec) for spec in (space.smallest, space.largest))
    middle = (smallest + largest) // 2
    config = load_config("demo", ["space=fashion-mnist", "search_subnet.limits={}"])
    assert front.legal_params(space, Limits()) == (smallest, largest)
    assert front.legal_params(space, Limits.on_params(smallest + 5, middle)) == (smallest + 5, middle)

    def at(params: int, accuracy: float) -> Point:
        return Point(params, accuracy, 1 - accuracy / 100)

    empty: dict[front.Name, list[Point]] = {name: [] for name in front.NAMES}
    found = [empty | {"NSGA-II": [at(smallest, 85), at(middle, 70)]}, empty | {"evolution": [at(middle, 90)]}]
    by_name = volumes(config, found, at(smallest, 80), "accuracy")
    assert by_name["NSGA-II"] == [0.5, 0] and by_name["random search"] == [0, 0]
    assert by_name["evolution"] == pytest.approx([0, 0.5], abs=1e-5)
    by_loss = volumes(config, found, at(smallest, 80), "loss")
    assert by_loss["NSGA-II"] == pytest.approx(by_name["NSGA-II"])


def test_searches_of_equal_cost_start_alike_and_are_measured_on_seen_and_unseen_images(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Accuracy by heads and ratios. 400 of 500 images score; each front is measured on the other 100."""
    small = ["images=400", "limits={}", "population=8", "generations=2", "parents=4", "mutations=4", "crossovers=4"]
    overrides = ["space=autoformer-tiny", *(f"search_subnet.{setting}" for setting in small), *front.OVERRIDES]
    config = load_config("demo", overrides)
    images = np.random.default_rng(0).normal(0, 1, 500)

    def result_of(spec: SubnetSpec, on: Any) -> ScoringResult:
        margin = images[on] + np.mean(spec.mlp_ratio) + np.mean(spec.num_heads) - 6.5
        return ScoringResult(margin > 0, np.log1p(np.exp(-margin)).astype(np.float32))

    seen: list[front.Found] = []
    searches = front.searches
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(front, "searches", lambda *given: seen.append(searches(*given)) or seen[-1])
        score = lambda tasks: (result_of(task.spec, task.images) for task in tasks)  # noqa: E731
        result = front.compare(config, score, 500, 2)
    for found in seen:
        assert {name: len(candidates) for name, candidates in found.items()} == dict.fromkeys(front.NAMES, 24)
        assert all(one.complete and one.images == 400 for candidates in found.values() for one in candidates)
        assert first_generation(found["NSGA-II"]) == first_generation(found["evolution"])
        assert found["NSGA-II"] != found["evolution"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["seed 0", "seed 1"]

    def losses(specs: Iterable[SubnetSpec], on: Any) -> list[tuple[int, float]]:
        return [(count_params(config.space, spec), float(result_of(spec, on).losses.mean())) for spec in specs]

    for of, on in (("loss on search images", np.arange(400)), ("loss on unseen images", np.arange(400, 500))):
        chosen = [
            {
                name: c if of.endswith("search images") else front_of(c, ("loss", "params_m"))
                for name, c in found.items()
            }
            for found in seen
        ]
        points = [{name: losses((one.candidate.spec for one in c[name]), on) for name in c} for c in chosen]
        ((_, reference),) = losses([config.space.smallest], on)
        best = min(loss for found in points for pairs in found.values() for _, loss in pairs)
        plane = Plane(*front.legal_params(config.space, Limits()), reference, best)
        for name in front.NAMES:
            expected = [plane.volume(found[name]) for found in points]
            assert result["volumes"][of][name] == pytest.approx(expected) and 0 < min(expected) < 1
    values = {row["name"]: row["value"] for row in result["rows"]}
    first, second = (result["volumes"]["accuracy on unseen images"][name] for name in ("NSGA-II", "random search"))
    difference = values["accuracy on unseen images, NSGA-II minus random search: mean"]
    assert difference == pytest.approx(np.mean(first) - np.mean(second))


def first_generation(found: list[ScoredCandidate]) -> list[ScoredCandidate]:
    return [one for one in found if one.candidate.generation == 0]


@pytest.fixture(scope="module")
def supernet(tiny_data: TinyData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOFORMER_WORK", str(root / "work"))
        patch.setenv("AUTOFORMER_TRACKING", "off")
        given = arguments("train_supernet", tiny_data, root, root / "supernet", config_of("train_supernet", epochs=1))
        assert run("train_supernet", given) == 0
    return root / "supernet"


@pytest.mark.parametrize("benchmark", [evolution, front], ids=["evolution", "front"])
def test_the_command_compares_over_a_supernet_that_exists(
    benchmark: ModuleType, supernet: Path, tiny_data: TinyData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ["--config", config_file(tmp_path)]
    command = [*config, "--supernet", str(supernet), "--data", str(tiny_data.data), "--seeds", "2"]
    data = ["--card", str(tiny_data.card_path), "--search-split", str(tiny_data.search)]
    capsys.readouterr()
    assert benchmark.main([*command, *data]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[:2]] == ["seed 0", "seed 1"]
    if benchmark is evolution:
        shown = [re.fullmatch(r"seed (\d): evolution .* ([+-]\d+\.\d\d) points", line) for line in lines[:2]]
        points = [float(found[2]) for found in shown if found]
        mean = next(line for line in lines if "accuracy: mean" in line)
        assert float(mean.split()[-2]) == pytest.approx(sum(points) / 2, abs=0.01)
    else:
        assert sum("NSGA-II minus evolution: mean" in line for line in lines) == 4  # two scores, seen and unseen images
    for arguments_, says in (
        ([*command[:-1], "1", *data], "--seeds 1: an interval needs 2 or more"),
        (command, "--supernet needs --card and --search-split too"),
        (config, "its space is not the demo's; name its --supernet"),
        ([*command, *data, "--supernet", str(tmp_path / "none")], "none: no such file or folder; it is made by train_"),
    ):
        assert benchmark.main(arguments_) == 2
        error = capsys.readouterr().err
        name = benchmark.__name__.split(".")[-1]
        assert says in error and error.startswith(f"benchmarks.{name}: ") and error.count("\n") == 1


def config_file(folder: Path) -> str:
    """The demo with another space and a small search."""
    text = load_config("demo").model_dump(mode="json")
    text |= {"space": SPACE, "threads": 1, "search_subnet": SMALL}
    (folder / "small.yaml").write_text(yaml.safe_dump(text))
    return str(folder / "small.yaml")
