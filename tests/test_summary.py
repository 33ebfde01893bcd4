"""The table that a run ends with: which search found the subnet, which weights it has, what the reference is."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from latencies import write_latencies

from autoformer.cards import Preprocessing, SubnetCard
from autoformer.files import write_json
from pipeline.summary import summary
from runtime.common.config import load_config

SEARCHED: dict[str, float] = {
    "chosen_top1_percent": 90.5, "chosen_is_random": 0.0, "evolution_minus_random_percent": 0.05,
    "evolution_minus_random_low_percent": -0.31, "evolution_minus_random_high_percent": 0.41,
}  # fmt: skip
RETRAINED: dict[str, float] = {"inherited_top1_percent": 90.5, "retrained_top1_percent": 91.5}
TESTED: dict[str, float] = {
    "test_top1_percent": 90.25, "test_top1_low_percent": 89.65, "test_top1_high_percent": 90.81,
    "inherited_test_top1_percent": 89.5,
}  # fmt: skip


def table(
    folder: Path,
    searched: dict[str, Any],
    retrained: dict[str, Any],
    weights: str,
    tested: dict[str, Any] | None = None,
) -> dict[str, str]:
    config = load_config("demo")
    outputs = {name: folder / name for name in ("search", "retrain", "evaluation", "registration")}
    (folder / "search").mkdir(exist_ok=True)
    chosen = {
        "name": "x",
        "space": config.space.name,
        "source": "a test",
        "subnet": config.space.smallest.to_dict(),
    }
    (folder / "search" / "chosen.yaml").write_text(yaml.safe_dump(chosen))
    for name, metrics in (("search", searched), ("retrain", retrained), ("evaluation", TESTED | (tested or {}))):
        (folder / name).mkdir(exist_ok=True)
        write_json(folder / name / "metrics.json", metrics)
    (folder / "retrain" / "model").mkdir()
    card = SubnetCard(
        space=config.space,
        preprocessing=Preprocessing(mean=(0.5,), std=(0.5,), classes=("a", "b")),
        provenance={"weights": weights},
        subnet=config.space.smallest,
    )
    write_json(folder / "retrain" / "model" / "model.json", card.model_dump(mode="json"))
    write_json(outputs["registration"], {"reason": "registered"})
    lines = summary(config, outputs, {}, []).splitlines()[1:]
    return {line[:24].strip(): line[24:].strip() for line in lines}


def test_accuracies_on_the_search_split_are_followed_by_what_they_are_worth(tmp_path: Path) -> None:
    shown = table(tmp_path, SEARCHED, RETRAINED, "finetune")
    names = list(shown)
    assert names[names.index("search split") + 1] == ""
    assert "no estimate of test accuracy" in shown[""] and "1.1 to 1.7 points above it" in shown[""]
    assert shown["multiply-adds"].endswith("without relative position")


def test_the_latency_is_shown_where_the_search_had_a_table(tmp_path: Path) -> None:
    (tmp_path / "search").mkdir()
    write_latencies(tmp_path / "search" / "latency_table.json", load_config("demo").space)
    shown = table(tmp_path, SEARCHED, RETRAINED, "finetune")
    assert shown["latency"] == "2.71 ms, a processor, 2 cores, 1 thread, batch 1, float32 (predicted)"


@pytest.mark.parametrize(("is_random", "found_by"), [(0.0, "evolution"), (1.0, "random search")])
def test_the_search_that_found_the_subnet_is_named(is_random: float, found_by: str, tmp_path: Path) -> None:
    shown = table(tmp_path, SEARCHED | {"chosen_is_random": is_random}, RETRAINED, "finetune")
    assert shown["found by"] == found_by
    assert "evolution +0.05 against random search (95 % interval -0.31 to +0.41)" in shown["search split"]


def test_two_searches_that_no_image_tells_apart_have_no_interval(tmp_path: Path) -> None:
    """It would be +0.00 to +0.00, as if the difference were known exactly."""
    level = {name: 0.0 for name in SEARCHED if name.startswith("evolution_minus_random")}
    shown = table(tmp_path, SEARCHED | level, RETRAINED, "finetune")
    assert "the best of evolution and of random search right on the same images" in shown["search split"]
    assert "interval" not in shown["search split"]


@pytest.mark.parametrize(("is_random", "found_by"), [(0.0, "NSGA-II"), (1.0, "random search")])
def test_nsga_ii_is_called_by_its_name(is_random: float, found_by: str, tmp_path: Path) -> None:
    """Its mark is the size of the front, a metric that no other search has."""
    searched = SEARCHED | {"chosen_is_random": is_random, "front_candidates": 12}
    shown = table(tmp_path, searched, RETRAINED, "finetune")
    assert shown["found by"] == found_by
    assert "NSGA-II +0.05 against random search (95 % interval -0.31 to +0.41)" in shown["search split"]


def test_the_weights_of_the_model_are_named_and_a_training_that_lost_is_shown(tmp_path: Path) -> None:
    retrained = RETRAINED | {"retrained_top1_percent": 90.5, "finetuned_top1_percent": 88.75}
    shown = table(tmp_path, SEARCHED, retrained, "inherited")
    assert shown["search split"].startswith("inherited 90.50 %, fine-tuned 88.75 %")
    assert shown["test split"].endswith(", inherited")


def test_the_reference_from_scratch_is_called_by_its_epochs(tmp_path: Path) -> None:
    retrained = RETRAINED | {"scratch_top1_percent": 92.0, "scratch_epochs": 9.0}
    shown = table(tmp_path, SEARCHED, retrained, "finetune", {"scratch_test_top1_percent": 90.5})
    assert "from scratch in 9 epochs 92.00 %" in shown["search split"]
    assert "from scratch in 9 epochs 90.50 %" in shown["test split"]


def test_a_reference_from_scratch_that_was_kept_is_shown_once(tmp_path: Path) -> None:
    retrained = RETRAINED | {"scratch_top1_percent": 92.0, "scratch_epochs": 9.0}
    tested = {"scratch_test_top1_percent": 90.5, "finetuned_test_top1_percent": 90.25}
    shown = table(tmp_path, SEARCHED, retrained, "scratch", tested)
    assert shown["test split"].endswith("), from scratch in 9 epochs, inherited 89.50 %, fine-tuned 90.25 %")
