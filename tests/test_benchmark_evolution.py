"""Evolution against random search over several seeds: the interval by hand, and the command on tiny data."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from run_steps import SPACE, arguments, config_of, run
from tiny import TinyData

from autoformer.racing import ScoringResult, ScoringTask
from benchmarks import evolution
from benchmarks.seeds import Score, Searches, mean_interval, score_cache
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


def test_a_search_that_can_find_more_than_chance_is_ahead_and_one_that_cannot_is_not(tmp_path: Path) -> None:
    """Answers by the mean heads and ratio, which evolution improves step by step; or by nothing at all."""
    text = ["space=autoformer-tiny", "search_subnet.images=400", "search_subnet.limits={}", "search_subnet.racing=null"]
    config, lines = load_config("demo", text), list[str]()

    def climbing(tasks: Tasks) -> Iterator[ScoringResult]:
        yield from (answers(one, np.mean(one.spec.mlp_ratio) + np.mean(one.spec.num_heads) - 7.25) for one in tasks)

    def flat(tasks: Tasks) -> Iterator[ScoringResult]:
        yield from (answers(one, 0.0) for one in tasks)

    def searches(name: str, score: Score) -> Searches:
        return Searches(config, score_cache(tmp_path, 400, score, name), 400)

    pairs = evolution.compare(searches("climbing", climbing), 5, lines.append)
    assert all(one.loss < 0 <= one.points for one in pairs)
    assert [line.partition(":")[0] for line in lines] == [f"seed {seed}" for seed in range(5)]
    assert {one.evolved.images for one in pairs} == {one.random.images for one in pairs} == {400}
    values = {row.name: row.value for row in evolution.rows(pairs)}
    assert values["evolution minus random search, loss (below 0 is better): to"] < 0
    assert values["seeds of 5 in which evolution has the lower loss"] == 5
    level = evolution.compare(searches("flat", flat), 2, lines.append)
    assert [one.points for one in level] == [one.loss for one in level] == [0, 0]


def test_the_command_compares_over_a_supernet_that_exists(
    tiny_data: TinyData, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOFORMER_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("AUTOFORMER_TRACKING", "off")
    given = arguments(
        "train_supernet", tiny_data, tmp_path, tmp_path / "supernet", config_of("train_supernet", epochs=1)
    )
    assert run("train_supernet", given) == 0
    config = ["--config", config_file(tmp_path)]
    command = [*config, "--supernet", str(tmp_path / "supernet"), "--data", str(tiny_data.data), "--seeds", "2"]
    data = ["--card", str(tiny_data.card_path), "--search-split", str(tiny_data.search)]
    capsys.readouterr()
    assert evolution.main([*command, *data]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = [re.fullmatch(r"seed (\d): evolution .* ([+-]\d+\.\d\d) points", line) for line in lines[:2]]
    points = [float(found[2]) for found in shown if found]
    mean = next(line for line in lines if "accuracy: mean" in line)
    assert float(mean.split()[-2]) == pytest.approx(sum(points) / 2, abs=0.01)
    for arguments_, says in (
        ([*command[:-1], "1", *data], "--seeds 1: an interval needs 2 or more"),
        (command, "--supernet needs --card and --search-split too"),
        (config, "its space is not the demo's; name its --supernet"),
        ([*command, *data, "--supernet", str(tmp_path / "none")], "none: no such file or folder; it is made by train_"),
    ):
        assert evolution.main(arguments_) == 2
        error = capsys.readouterr().err
        assert says in error and error.startswith("benchmarks.evolution: ") and error.count("\n") == 1


def config_file(folder: Path) -> str:
    """The demo with another space and a small search."""
    text = load_config("demo").model_dump(mode="json")
    text |= {"space": SPACE, "threads": 1, "search_subnet": SMALL}
    (folder / "small.yaml").write_text(yaml.safe_dump(text))
    return str(folder / "small.yaml")
