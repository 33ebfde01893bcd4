"""The benchmarks of the predictor and of zero-cost proxies: figures by hand, and the commands on tiny data."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from earlier import made, untracked
from test_benchmark_evolution import answers, config_file
from tiny import TinyData
from torch import nn

from autoformer.vit import AutoFormer
from benchmarks import predictor, proxies
from benchmarks.predictor import Seed
from runtime.common.config import load_config

__all__ = ["made", "untracked"]


def test_evaluations_are_counted_until_evolutions_best_loss() -> None:
    early, late = Seed([5.0, 4.0, 4.0, 3.0], [5.0, 3.0, 2.0, 2.0]), Seed([5.0, 3.0, 3.0, 3.0], [5.0, 4.0, 4.0, 3.5])
    assert [one.reached(one.predictor) for one in (early, late)] == [2, None]
    assert [one.share(one.predictor) for one in (early, late)] == [0.5, 1.0]
    values = {row.name: row.value for row in predictor.rows([early, late])}
    assert values["predictor's evaluations to evolution's best loss / all of evolution's: mean"] == 0.75
    assert values["evolution's own / all of evolution's: mean"] == 0.75  # 4 and 2 of 4
    assert values["seeds of 2 in which the predictor reaches it"] == 1
    assert values["best loss after 1/4 of the evaluations, predictor minus evolution: mean"] == 0
    assert values["best loss after 1/2 of the evaluations, predictor minus evolution: mean"] == 0  # -1 and 1
    assert values["best loss after all evaluations, predictor minus evolution: mean"] == -0.25


def test_the_predictor_is_ahead_where_choices_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    text = ["space=autoformer-tiny", "search_subnet.images=400", "search_subnet.limits={}", *predictor.OVERRIDES]
    config = load_config("demo", text)

    def additive(tasks: Any) -> Any:
        for one in tasks:
            yield answers(one, np.mean(one.spec.mlp_ratio) + np.mean(one.spec.num_heads) - 7.25)

    found = predictor.compare(config, additive, 400, 3)
    assert [len(each) for one in found for each in one] == [100] * 6
    assert sum(one.share(one.predictor) for one in found) / 3 <= 0.7
    assert sum(one.share(one.evolution) for one in found) / 3 > 0.8
    lines = capsys.readouterr().out.splitlines()
    shown = [
        re.fullmatch(r"seed \d: best loss of evolution .* after \d+ of 100 evaluations; .*", line) for line in lines
    ]
    assert len(shown) == 3 and all(shown)


def test_proxies_by_hand() -> None:
    """Logits ln 3 and 0 have probabilities 3/4 and 1/4, hence gradients -1/4 and 1/4 of the loss for class 0."""
    model = nn.Linear(1, 2, bias=False)
    model.weight.data = torch.tensor([[math.log(3)], [0.0]])
    saliency, norm = proxies.snip(model, torch.ones(1, 1), torch.tensor([0]))
    assert saliency == pytest.approx(math.log(3) / 4) and norm == pytest.approx(math.sqrt(2) / 4)
    flowing = nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    flowing[1].weight.data, flowing[2].weight.data = (
        torch.tensor([[1.0, -2.0], [3.0, 4.0]]),
        torch.tensor([[-1.0, 2.0]]),
    )
    # outputs |1| + |2| = 3 and 7, weighted 1 and 2: 17, once for each of the two layers
    assert proxies.synflow(flowing, (2,)) == pytest.approx(math.log(34))


def test_synflow_is_finite_for_the_deepest_subnet_of_the_demo() -> None:
    space = load_config("demo").space
    model = AutoFormer.from_spec(space, space.largest)
    shape = (space.in_channels, space.image_size, space.image_size)
    assert 10 < proxies.synflow(model, shape) < 100


def test_correlations_by_hand() -> None:
    """Ranks 1 2 3 4 5 against 2 1 3 4 5: Spearman 1 - 6 x 2 / 120 = 0.9, Kendall (9 - 1) / 10."""
    values = {"parameters": [2.0, 1.0, 3.0, 4.0, 5.0], "other": [5.0, 4.0, 3.0, 2.0, 1.0]}
    found = proxies.correlations(values, [1.0, 2.0, 3.0, 4.0, 5.0], np.random.default_rng(0))
    assert found["parameters"]["Spearman"][0] == pytest.approx(0.9)
    assert found["parameters"]["Kendall"][0] == pytest.approx(0.8)
    assert found["other"]["Spearman minus that of the parameters"][0] == pytest.approx(-1.9)
    low, high = found["parameters"]["Spearman"][1:]
    assert low < 0.9 <= high <= 1


@pytest.mark.parametrize(("part", "count"), [(predictor, ["--seeds", "2"]), (proxies, ["--subnets", "6"])])
def test_the_commands_measure_over_a_supernet_that_exists(
    part: Any, count: list[str], made: Path, tiny_data: TinyData, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(proxies, "FEW", 20)
    monkeypatch.setattr(proxies, "RESAMPLES", 20)
    given = ["--config", config_file(tmp_path), "--supernet", str(made / "supernet"), "--data", str(tiny_data.data)]
    given += ["--card", str(tiny_data.card_path), "--search-split", str(tiny_data.search), *count]
    assert part.main(given) == 0
    first = capsys.readouterr().out
    words = {predictor: "the predictor reaches it", proxies: "whole space, 6 subnets, SynFlow, Kendall"}[part]
    assert words in first
    assert part.main([*given, count[0], "1"]) == 2
    assert f"{count[0]} 1: an interval needs 2 or more" in capsys.readouterr().err
