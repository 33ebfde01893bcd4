"""The report's cost by step, against tables by hand and the images that real searches have scored."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from earlier import STEP, made, untracked
from evaluation_sample import read_search, write_search
from run_steps import SECTIONS, arguments, config_of, run
from test_report import CLASSES, CONFIG, example
from test_report_search import text_of
from tiny import TinyData

from autoformer.candidates import COLUMNS, Candidate, Origin, ScoredCandidate
from autoformer.complexity import count_macs
from autoformer.errors import AutoFormerError
from autoformer.evaluation import score
from autoformer.named import NamedSubnet, load_space
from autoformer.sampling import make_sampler
from autoformer.space import SearchSpace, SubnetSpec
from components.evaluate_subnet.cost import MOST_STEPS, costs
from components.evaluate_subnet.measure import Evaluation, Measured
from components.evaluate_subnet.report import render
from components.evaluate_subnet.results import Results, read_searches
from runtime.common.tables import read_table, write_table

__all__ = ["made", "untracked"]

# 4 patches of 4 pixels and a class token, 8 channels, one head of 4. Embedding 4 x 4 x 8, classifier 8 x 3: 152 MACs.
# A block: 5 x (4 x 4 x 8 + 2 x 8 x 8) + 2 x 5 x 5 x 4 = 1,480. Depth 1 has 1,632 MACs, depth 2 has 3,112.
SPACE = SearchSpace.model_validate(
    {
        "name": "two", "image_size": 4, "patch_size": 2, "in_channels": 1, "num_classes": 3, "head_dim": 4,
        "max_relative_position": 1, "supernet": {"embed_dim": 8, "depth": 2, "num_heads": 1, "mlp_ratio": 1.0},
        "choices": {"embed_dim": [8], "depth": [1, 2], "num_heads": [1], "mlp_ratio": [1.0]},
    }
)  # fmt: skip
ONE, TWO = SPACE.smallest, SPACE.largest


def curve(epochs: float) -> dict[str, list[tuple[float, float]]]:
    return {"train_loss": [(epochs / 2, 2.0), (epochs, 1.0)]}


def searched(folder: Path, *rows: tuple[SubnetSpec, Origin, bool, int], finalists: bool = True) -> Path:
    """A search's tables: (subnet, origin, complete, images) of each candidate; the finalist is `ONE` on 6 images."""
    scored = [
        ScoredCandidate(Candidate.counted(SPACE, None, number, spec, origin), 50.0, 1.0 if complete else None, images)
        for number, (spec, origin, complete, images) in enumerate(rows)
    ]
    write_table(folder / "candidates.csv", COLUMNS, [one.to_row() for one in scored])
    if finalists:
        write_table(folder / "finalists.csv", COLUMNS, [scored[0]._replace(images=6).to_row()])
    progress = ("generation", "scored", "evolution_best_top1_percent", "random_best_top1_percent")
    write_table(folder / "progress.csv", progress, [])
    (folder / "metrics.json").write_text('{"images_scored": 6, "random_images_scored": 0}')
    return folder


def counted(folder: Path, **supernet: Any) -> tuple[Results, Evaluation]:
    """Results and an evaluation of three sets of weights on 5 test images."""
    results, evaluation = example_of(folder)
    training = SECTIONS["train_supernet"] | {"batch_size": 4, "sampling": "sandwich", "sandwich_random": 0} | supernet
    retraining = SECTIONS["retrain_subnet"] | {"batch_size": 5}
    results = results._replace(
        supernet_curves=curve(3), retrain_curves=curve(2), scratch_curves=curve(5),
        provenance={
            "train_supernet": {"config": {"seed": 7, "train_supernet": training}},
            "retrain_subnet": {"config": {"seed": 7, "retrain_subnet": retraining}},
        },
    )  # fmt: skip
    tested = score(torch.eye(5, 3), torch.tensor([0, 1, 2, 0, 1]))
    scores = {"retrained": tested, "inherited": tested, "scratch": tested}
    return results, evaluation._replace(scores=scores, weights={"retrained": "a", "inherited": "b", "scratch": "c"})


def example_of(folder: Path) -> tuple[Results, Evaluation]:
    other = folder / "other"
    write_search(other, load_space("fashion-mnist"), population=6, generations=1)
    results, evaluation = example(other, CLASSES)
    card = results.card.model_copy(update={"counts": {"train": 10, "search": 6, "test": 5}})
    subnet = NamedSubnet(name="one", space="two", source="a test", subnet=ONE)
    return results._replace(card=card, space=SPACE, subnet=subnet, search=read_search(folder, ONE)), evaluation


def table(results: Results, evaluation: Evaluation, budgets: dict[str, Measured] | None = None) -> list[Any]:
    return [(row.label, row.images, row.macs) for row in costs(results, evaluation, budgets or {})["rows"]]


DRAWN = ((ONE, "initial", True, 4), (TWO, "mutation", False, 2), (ONE, "baseline", True, 4))
BY_HAND = [
    # 2 steps of 4 images in each of 3 epochs, through the largest and the smallest subnet: 24 x (3,112 + 1,632) x 3
    ("Supernet training", 48, 341_568),
    # depth 1 on 6 images (4, then as a finalist on all), depth 2 on 2 before it was stopped: 6 x 1,632 + 2 x 3,112
    ("Search", 8, 16_016),
    ("Retraining (fine-tuning)", 20, 97_920),  # 2 steps of 5 images in each of 2 epochs: 20 x 1,632 x 3
    ("Retraining (reference from scratch)", 40, 195_840),  # the supernet's batches, 5 epochs: 40 x 1,632 x 3
    ("Evaluation", 15, 24_480),  # 3 sets of weights on 5 images: 15 x 1,632
]


def test_images_and_macs_of_each_step_are_those_counted_by_hand(tmp_path: Path) -> None:
    assert (count_macs(SPACE, ONE), count_macs(SPACE, TWO)) == (1_632, 3_112)
    results, evaluation = counted(searched(tmp_path, *DRAWN))
    found = costs(results, evaluation, {})
    assert table(results, evaluation) == BY_HAND
    assert found["total"] == 675_824 and found["largest"].label == "Supernet training" and found["factor"] == 3
    assert "8 images × 3 epochs × 2 subnets" in found["rows"][0].note
    assert "(sandwich, seed 7) drew in all 6 steps" in found["rows"][0].note


@pytest.mark.parametrize("steps", [6, 68])
@pytest.mark.parametrize("rule", ["uniform", "uniform_params"])
def test_a_supernet_has_the_mean_macs_of_the_subnets_that_its_own_sampler_drew(
    rule: Any, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MOST_STEPS, rule, 64)
    results, evaluation = counted(searched(tmp_path, *DRAWN), sampling=rule)
    results = results._replace(supernet_curves=curve(steps / 2))
    drawn, sampler = min(steps, 64), make_sampler(rule, SPACE, 7)
    macs = sum(count_macs(SPACE, sampler(step)[0].subnet or TWO) for step in range(drawn))
    row = costs(results, evaluation, {})["rows"][0]
    assert (row.images, row.macs) == (4 * steps, 3 * 4 * steps * macs // drawn)
    assert f"({rule}, seed 7) drew in {'all' if steps == 6 else 'the first 64 of'} {steps} steps" in row.note


def test_an_adopted_supernet_has_no_training_cost_and_the_report_states_it(tmp_path: Path) -> None:
    adopted = {"checkpoint": "supernet.pth"}
    results, evaluation = counted(searched(tmp_path, *DRAWN), adopt=adopted)
    assert table(results, evaluation) == [("Supernet training", 0, 0), *BY_HAND[1:]]
    assert "adopted an existing supernet" in costs(results, evaluation, {})["rows"][0].note


@pytest.mark.parametrize("lacking", ["configuration", "configuration of the retraining", "seed", "curves", "counts"])
def test_a_training_whose_images_cannot_be_counted_is_not_recorded(lacking: str, tmp_path: Path) -> None:
    results, evaluation = counted(searched(tmp_path, *DRAWN))
    supernet, retrain = (dict(results.provenance[step]["config"]) for step in ("train_supernet", "retrain_subnet"))
    unknown = {"Supernet training"}
    if lacking == "configuration":
        supernet["train_supernet"] = {"epochs": 3}  # of an older version
        unknown |= {"Retraining (reference from scratch)"}
    elif lacking == "configuration of the retraining":
        retrain.clear()
        unknown = {"Retraining (fine-tuning)", "Retraining (reference from scratch)"}
    elif lacking == "seed":
        del supernet["seed"]
    elif lacking == "curves":
        results = results._replace(supernet_curves={})
    else:
        results = results._replace(card=results.card.model_copy(update={"counts": {}}))
        unknown |= {"Retraining (fine-tuning)", "Retraining (reference from scratch)"}
    provenance = {"train_supernet": {"config": supernet}, "retrain_subnet": {"config": retrain}}
    expected = [(label, None, None) if label in unknown else (label, *rest) for label, *rest in BY_HAND]
    assert table(results._replace(provenance=provenance), evaluation) == expected


def test_weights_that_were_kept_had_no_retraining(tmp_path: Path) -> None:
    results, evaluation = counted(searched(tmp_path, *DRAWN))
    bare = results._replace(retrain_curves={}, scratch_curves={})
    assert table(bare, evaluation) == [*BY_HAND[:2], ("Retraining", 0, 0), BY_HAND[-1]]


def test_each_budget_has_its_retraining_and_a_subnet_of_two_budgets_was_trained_and_tested_once(tmp_path: Path) -> None:
    results, evaluation = counted(searched(tmp_path, *DRAWN))
    deep = results._replace(subnet=results.subnet.model_copy(update={"subnet": TWO}))
    budgets = {label: Measured(one, evaluation, {}) for label, one in (("1m", results), ("2m", results), ("3m", deep))}
    assert table(deep, evaluation, budgets) == [
        *BY_HAND[:2],
        ("Retraining 1m (fine-tuning)", 20, 97_920), ("Retraining 1m (reference from scratch)", 40, 195_840),
        ("Retraining 3m (fine-tuning)", 20, 186_720), ("Retraining 3m (reference from scratch)", 40, 373_440),
        ("Evaluation", 30, 71_160),  # 15 x 1,632 + 15 x 3,112
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "finalists", "expected"),
    [
        (((ONE, "earlier", True, 4), (TWO, "mutation", True, 6)), True, {ONE: 6, TWO: 6}),  # ONE as a finalist
        (((ONE, "earlier", True, 4), (TWO, "mutation", True, 4)), True, None),  # of 6 images, so TWO is not all
        (DRAWN, False, None),
    ],
)
def test_scores_of_an_earlier_search_cost_nothing_and_a_search_that_does_not_mark_them_is_not_recorded(
    rows: Any, finalists: bool, expected: Any, tmp_path: Path
) -> None:
    assert read_search(searched(tmp_path, *rows, finalists=finalists), ONE).images_seen == expected


@pytest.mark.parametrize("racing", [None, {"confidence": 0.9, "first_images": 15, "growth": 1.5}])
@pytest.mark.parametrize("budgets", [None, [0.0138, 0.0147]])
def test_a_real_search_costs_the_images_that_it_scored_with_the_longer_race_of_a_subnet_that_two_races_stopped(
    budgets: Any, racing: Any, made: Path, tiny_data: TinyData, tmp_path: Path
) -> None:
    """With finalists beyond the search's images and subnets that both searches drew; the record has the exact count."""
    config = config_of(STEP, racing=racing, budgets=budgets, **({"limits": {}} if budgets else {}))
    given = arguments(STEP, tiny_data, made, tmp_path / "search", config)
    assert run(STEP, given) == 0
    files = sorted((tmp_path / "search").glob("budgets/*.yaml")) or [tmp_path / "search" / "chosen.yaml"]
    chosen = {file.stem if budgets else "": NamedSubnet.from_yaml(file).subnet for file in files}
    seen = read_searches(tmp_path / "search", chosen).popitem()[1].images_seen or {}
    scored = json.loads(Path(given["--record"]).read_text())["images_scored_now"]
    others: dict[SubnetSpec, set[int]] = {}  # images of the shorter races
    for row in read_table(tmp_path / "search" / "candidates.csv"):
        one = ScoredCandidate.from_row(row)
        if not one.complete and one.images < seen[one.candidate.spec] < 80:
            others.setdefault(one.candidate.spec, set()).add(one.images)
    assert sum(seen.values()) <= scored <= sum(seen.values()) + sum(map(sum, others.values()))
    assert racing or (not others and sum(seen.values()) == scored)


def test_the_page_has_the_numbers_beside_the_bars_and_names_what_is_not_recorded(tmp_path: Path) -> None:
    write_search(tmp_path, load_space("fashion-mnist"), population=6, generations=1)
    results, evaluation = example(tmp_path, CLASSES)
    text = text_of(render(results, evaluation, CONFIG)).partition("Cost by step")[2]
    assert "Supernet training not recorded" in text and "Search not recorded" in text
    assert "Evaluation 800 images" in text and "100.0 % 400 test images with each of 2 sets of weights" in text
    assert "3 times its forward pass" in text and "MLflow" in text and "make run" in text


def test_bars_are_as_long_as_their_macs(tmp_path: Path) -> None:
    page = render(*counted(searched(tmp_path, *DRAWN)), CONFIG)
    text = text_of(page)
    assert "Cost by step: supernet training takes 51 % of 676 k counted MACs" in text
    assert "Supernet training 48 images · 342 k MACs · 50.5 %" in text
    assert "Retraining (reference from scratch) 40 images · 196 k MACs · 29.0 %" in text
    bars = re.findall(r'<rect class="fill a" width="([\d.]+)%"', page.partition("Cost by step")[2])
    assert [float(bar) for bar in bars] == [round(100 * macs / 341_568, 2) for _, _, macs in BY_HAND]


def test_a_damaged_table_of_finalists_is_one_line(tmp_path: Path) -> None:
    table = searched(tmp_path, *DRAWN) / "finalists.csv"
    table.write_text(table.read_text().replace("50.0,", "half,"))
    with pytest.raises(AutoFormerError, match=r"finalists.csv: candidate 0: .*half.*; run search_subnet again"):
        read_search(tmp_path, ONE)
