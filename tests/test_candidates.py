"""Rows of candidates.csv: the evaluation reads what the search writes, for any MLP ratio."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_sample import read_search
from hypothesis import given
from hypothesis import strategies as st

from autoformer.candidates import COLUMNS, Candidate, ScoredCandidate
from autoformer.errors import AutoFormerError
from autoformer.named import NamedSubnet
from autoformer.racing import ScoringResult, ScoringTask
from autoformer.randomness import derived_rng
from autoformer.search import Evolution
from autoformer.space import SubnetSpec
from autoformer.subnet_text import exact_text, from_cells, shape_text, to_cells
from components.search_subnet.score_cache import ScoreCache
from components.search_subnet.search_loop import search
from components.search_subnet.step import write_results
from runtime.common.config import load_config
from runtime.common.tables import read_table, write_table

IMAGES = 40
THIRDS = {
    "name": "thirds", "image_size": 28, "patch_size": 7, "in_channels": 1, "num_classes": 10, "head_dim": 8,
    "max_relative_position": 2, "supernet": {"embed_dim": 48, "depth": 3, "num_heads": 2, "mlp_ratio": 8 / 3},
    "choices": {"embed_dim": [24, 48], "depth": [2, 3], "num_heads": [1, 2], "mlp_ratio": [4 / 3, 8 / 3]},
}  # fmt: skip
SPEC = SubnetSpec(2, 64, (4, 8), (2.0, 3.5))
WHOLE = ScoredCandidate(Candidate(7, SPEC, "crossover", 2, (3, 5), 250_000, 3_000_000), 81.2, 1 / 3, 500)
STOPPED = ScoredCandidate(Candidate(0, SPEC, "baseline", 0, (), 250_000, 3_000_000), 100 / 3, None, 50)


def through_csv(outcome: ScoredCandidate) -> dict[str, str]:
    file = io.StringIO()
    csv.DictWriter(file, COLUMNS).writerow(outcome.to_row())
    (row,) = csv.DictReader(io.StringIO(file.getvalue()), COLUMNS)
    return row


def larger_is_better(tasks: Sequence[ScoringTask]) -> Iterator[tuple[ScoringTask, ScoringResult]]:
    for task in tasks:
        size = task.spec.embed_dim * sum(task.spec.mlp_ratio)
        right = (task.images * 37 + round(size)) % 500 < size
        yield task, ScoringResult(right, (~right).astype(np.float32))


def test_the_evaluation_finds_the_subnet_of_a_search_in_thirds(tmp_path: Path) -> None:
    section = {"population": 6, "generations": 2, "parents": 2, "mutations": 2, "crossovers": 2, "tries": 500}
    text = {"name": "thirds", "seed": 0, "dataset": "none", "space": THIRDS, "search_subnet": section}
    config = load_config(json.dumps(text), steps=["search_subnet"])
    assert config.search_subnet is not None
    evolution = Evolution(
        config.space, config.search_subnet.limits, config.search_subnet, derived_rng("evolution", config.seed)
    )
    memory = ScoreCache(tmp_path / "scores.jsonl", IMAGES, larger_is_better)
    result = search(config, evolution, evolution.ask(), memory, IMAGES, lambda *_: None, lambda *_: None)
    write_results(tmp_path / "search", config, {"": result}, {"code": "c0de", "inputs": {"supernet": "none"}})

    chosen = NamedSubnet.from_yaml(tmp_path / "search" / "chosen.yaml").subnet
    assert 8 / 3 in chosen.mlp_ratio
    config.space.check(chosen)
    found = read_search(tmp_path / "search", chosen)
    assert found.candidates == result.candidates
    assert found.candidates[found.chosen] == result.chosen


@given(st.lists(st.floats(min_value=1 / 64, max_value=2**16), min_size=1, max_size=4))
def test_any_ratio_reads_back_equal(ratios: list[float]) -> None:
    spec = SubnetSpec(len(ratios), 64, (2,) * len(ratios), tuple(ratios))
    outcome = WHOLE._replace(candidate=Candidate(1, spec, "initial", 0, (), 10, 20))
    assert from_cells({column: str(cell) for column, cell in to_cells(spec).items()}) == spec
    assert ScoredCandidate.from_row(through_csv(outcome)) == outcome


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (4.0, "4"), (3.5, "3.5"), (1.3, "1.3"), (12.0, "12"), (1e20, "1e+20"), (2.6666667, "2.6666667"),
        (8 / 3, "2.6666666666666665"), (1e7 + 1, "10000001.0"),
    ],
)  # fmt: skip
def test_a_ratio_is_written_as_short_as_is_exact(ratio: float, text: str) -> None:
    assert exact_text(ratio) == text


def test_the_format_of_a_row_is_fixed() -> None:
    assert list(through_csv(WHOLE).values()) == [
        "7", "crossover", "2", "3;5", "2", "64", "4;8", "2;3.5", "250000", "3000000", "81.2", "0.3333333333333333",
        "500",
    ]  # fmt: skip
    assert list(through_csv(STOPPED).values()) == [
        "0", "baseline", "0", "", "2", "64", "4;8", "2;3.5", "250000", "3000000", "33.333333333333336", "", "50",
    ]  # fmt: skip
    for outcome in (WHOLE, STOPPED):
        assert ScoredCandidate.from_row(through_csv(outcome)) == outcome


def test_text_for_people_is_rounded() -> None:
    assert shape_text(SubnetSpec(2, 64, (4, 8), (2.0, 8 / 3))) == "depth 2, width 64, heads 4 8, ratios 2 2.66667"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"origin": "elsewhere"}, "origin = 'elsewhere': expected one of initial, mutation"),
        ({"top1_percent": "nan"}, "top1_percent = nan: expected a finite number"),
        ({"loss": "inf"}, "loss = inf: expected a finite number"),
        ({"params": "many"}, "invalid literal for int() with base 10: 'many'"),
        ({"mlp_ratio": "2"}, "mlp_ratio has 1 entry for depth 2"),
        ({"parents": "3;x"}, "invalid literal for int() with base 10: 'x'"),
    ],
)
def test_a_damaged_row_is_one_line_that_names_it(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    write_table(tmp_path / "candidates.csv", COLUMNS, [STOPPED.to_row(), WHOLE.to_row() | changes])
    assert len(read_table(tmp_path / "candidates.csv")) == 2
    with pytest.raises(AutoFormerError) as caught:
        read_search(tmp_path, SPEC)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'candidates.csv'}: candidate 7: ") and says in message
    assert message.endswith("; run search_subnet again") and "\n" not in message
