"""train_supernet, search_subnet and retrain_subnet in sequence: their files, checked against own computations."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from run_steps import Made, arguments, config_of, contents, run, run_all
from tiny import TinyData, read_idx

from autoformer.checkpoint import load_subnet, load_supernet
from autoformer.complexity import count_macs, count_params
from autoformer.files import hash_path
from autoformer.images.split_files import read_split
from autoformer.space import SubnetSpec
from components.retrain_subnet.step import _keep_the_best
from runtime.common.code import step_code
from runtime.common.tables import read_table

LIMIT = 15_000  # parameters


class Runs(NamedTuple):
    """Two runs of one seed, in separate folders, and one of another seed."""

    first: Made
    twin: Made
    other: Made
    root: Path
    work: Path


@pytest.fixture(scope="module", autouse=True)
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("work")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOFORMER_WORK", str(folder))
        patch.setenv("AUTOFORMER_TRACKING", "off")
        yield folder
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def runs(tiny_data: TinyData, work: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("steps")
    first, twin, other = (
        run_all(tiny_data, root / name, seed) for name, seed in (("first", 0), ("twin", 0), ("other", 1))
    )
    return Runs(first, twin, other, root, work)


@pytest.fixture(scope="module")
def search_split(tiny_data: TinyData) -> tuple[torch.Tensor, torch.Tensor]:
    """Model inputs (n, 1, 28, 28) and labels (n,), read and normalised without the project's own code."""
    pixels, labels = read_idx(tiny_data.data, "train")
    rows = (read_split(tiny_data.search).offsets - 16) // 28**2  # 16 bytes of header
    mean, std = tiny_data.card.mean[0], tiny_data.card.std[0]
    images = (torch.from_numpy(pixels[rows].astype(np.float32))[:, None] / 255 - mean) / std
    return images, torch.from_numpy(labels[rows].astype(np.int64))


@torch.no_grad()
def figures(model: Any, split: tuple[torch.Tensor, torch.Tensor], *spec: SubnetSpec) -> tuple[float, float]:
    """Top-1 in percent and loss."""
    images, labels = split
    logits = model(images, *spec)
    right = int((logits.argmax(dim=1) == labels).sum())
    return 100 * right / len(labels), torch.nn.functional.cross_entropy(logits, labels).item()


def metrics(folder: Path) -> dict[str, float]:
    values: dict[str, float] = json.loads((folder / "metrics.json").read_text())
    return values


def spec_of(row: dict[str, str]) -> SubnetSpec:
    heads = tuple(int(value) for value in row["num_heads"].split(";"))
    ratios = tuple(float(value) for value in row["mlp_ratio"].split(";"))
    return SubnetSpec(int(row["depth"]), int(row["embed_dim"]), heads, ratios)


def chosen_of(made: Made) -> SubnetSpec:
    return SubnetSpec.from_dict(yaml.safe_load((made.search / "chosen.yaml").read_text())["subnet"])


@pytest.mark.parametrize("folder", Made._fields)
def test_one_seed_gives_one_result_to_the_byte(folder: str, runs: Runs) -> None:
    first, twin, other = (contents(getattr(made, folder)) for made in runs[:3])
    assert first == twin
    assert len(first) >= 5
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first if not name.endswith(".json"))


def test_the_folders_hold_what_they_should(runs: Runs) -> None:
    assert set(contents(runs.first.supernet)) == {
        "weights.safetensors", "ema.safetensors", "supernet.json", "history.csv", "metrics.json",
    }  # fmt: skip
    assert set(contents(runs.first.search)) == {
        "candidates.csv", "finalists.csv", "progress.csv", "chosen.yaml", "metrics.json", "provenance.json",
    }  # fmt: skip
    models = {f"{name}/model.{kind}" for name in ("model", "inherited", "scratch") for kind in ("safetensors", "json")}
    assert set(contents(runs.first.retrain)) == models | {"history.csv", "scratch_history.csv", "metrics.json"}


def test_each_score_of_a_training_is_a_line_as_it_is_made_and_so_is_a_decay_that_is_not_reached(
    runs: Runs, tiny_data: TinyData, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(
        "train_supernet", tiny_data, runs.root / "first", runs.root / "shown", config_of("train_supernet")
    )
    assert run("train_supernet", given) == 0
    scored = [row for row in read_table(runs.root / "shown" / "history.csv") if row["middle_top1_percent"]]
    lines = capsys.readouterr().out.splitlines()
    shown = [line for line in lines if "on the search split" in line]
    assert len(shown) == len(scored) > 1
    for row, line in zip(scored, shown, strict=True):
        assert line.startswith(
            f"train_supernet: after {50 * int(row['step']):,} images, on the search split: smallest "
        )
        assert f"middle {float(row['middle_top1_percent']):.2f} %" in line
    record = json.loads(Path(given["--record"]).read_text())
    total = int(scored[-1]["step"])
    assert record["final_ema_decay"] == pytest.approx(min(0.9, 1 - (total - 1) ** (-2 / 3)), abs=1e-5)
    line = f"the averaged weights end with decay {record['final_ema_decay']:.4g}, not ema_decay 0.9"
    assert (line in " ".join(lines)) == (record["final_ema_decay"] < 0.9)


def test_clocks_and_paths_stand_in_the_record_alone(runs: Runs) -> None:
    for folder in runs.first:
        record = json.loads((folder.parent / f"{folder.name}.record.json").read_text())
        assert {"started", "seconds", "succeeded"} <= record.keys()
        assert record["succeeded"] is True
        for name, content in contents(folder).items():
            assert str(runs.root).encode() not in content, name
            assert record["started"][:10].encode() not in content, name


def test_the_work_folder_is_deleted(runs: Runs) -> None:
    assert [path for path in runs.work.rglob("*") if path.is_file()] == []


def test_history_has_a_row_every_log_steps(runs: Runs) -> None:
    history = read_table(runs.first.supernet / "history.csv")
    assert [int(row["step"]) for row in history] == list(range(5, 61, 5))  # 6 epochs of 10 steps
    scored = [int(row["step"]) for row in history if row["largest_top1_percent"]]
    assert scored == [20, 40, 60]
    assert float(history[-1]["train_loss"]) < float(history[0]["train_loss"])
    assert [float(row["epoch"]) for row in history] == [step / 10 for step in range(5, 61, 5)]


def test_the_supernets_figures_are_those_of_its_averaged_weights(
    runs: Runs, search_split: tuple[torch.Tensor, torch.Tensor]
) -> None:
    supernet, card = load_supernet(runs.first.supernet, "ema")
    watched = search_split[0][:50], search_split[1][:50]  # score_images
    found = metrics(runs.first.supernet)
    for name in ("smallest", "middle", "largest"):
        top1, _ = figures(supernet, watched, getattr(card.space, name))
        assert found[f"{name}_top1_percent"] == top1
    assert found["largest_top1_percent"] > 50  # it learnt something


def test_every_candidate_is_in_the_table_with_true_figures(
    runs: Runs, search_split: tuple[torch.Tensor, torch.Tensor]
) -> None:
    supernet, card = load_supernet(runs.first.supernet, "ema")
    rows = read_table(runs.first.search / "candidates.csv")
    assert [int(row["id"]) for row in rows] == list(range(36))  # 3 generations of 6, and as many at random
    scored = search_split[0][:80], search_split[1][:80]
    for row in rows:
        spec = spec_of(row)
        card.space.check(spec)
        assert (int(row["params"]), int(row["macs"])) == (count_params(card.space, spec), count_macs(card.space, spec))
        assert int(row["params"]) <= LIMIT
        top1, loss = figures(supernet, scored, spec)
        assert float(row["top1_percent"]) == top1
        assert float(row["loss"]) == pytest.approx(loss, rel=1e-5)
        assert int(row["images"]) == 80  # fewer than the first round of a race: all are scored whole
    assert count_params(card.space, card.space.largest) > LIMIT  # the limit excludes something


def test_candidates_say_where_they_came_from(runs: Runs) -> None:
    rows = read_table(runs.first.search / "candidates.csv")
    assert [row["origin"] for row in rows[:6]] == ["initial"] * 6
    assert {row["origin"] for row in rows[6:18]} <= {"mutation", "crossover", "fill"}
    assert {row["origin"] for row in rows[18:]} == {"baseline"}
    wanted = {"mutation": 1, "crossover": 2}
    for row in rows:
        parents = [int(parent) for parent in row["parents"].split(";") if parent]
        assert len(parents) == wanted.get(row["origin"], 0)
        assert all(int(rows[parent]["generation"]) < int(row["generation"]) for parent in parents)


def test_the_chosen_subnet_is_the_best_on_the_whole_search_split(runs: Runs) -> None:
    rows = read_table(runs.first.search / "candidates.csv")
    finalists = read_table(runs.first.search / "finalists.csv")
    evolved, baseline = rows[:18], rows[18:]

    def rank(row: dict[str, str]) -> tuple[float, ...]:
        return -float(row["top1_percent"]), float(row["loss"]), int(row["params"]), int(row["id"])

    best = min(finalists, key=rank)
    assert chosen_of(runs.first) == spec_of(best) == spec_of(finalists[0])
    assert {row["images"] for row in finalists} == {"100"} and {row["images"] for row in rows} == {"80"}
    specs = [spec_of(row) for row in finalists]
    for found in (rows, evolved, baseline):
        assert spec_of(min(found, key=rank)) in specs
    found = metrics(runs.first.search)
    drawn = {spec_of(row) for row in baseline}
    random = next(row for row in finalists if spec_of(row) in drawn)
    evolution = next(row for row in finalists if row["origin"] != "baseline")
    low, high = found.pop("evolution_minus_random_low_percent"), found.pop("evolution_minus_random_high_percent")
    assert low <= found["evolution_minus_random_percent"] <= high
    assert found == {
        "chosen_top1_percent": float(best["top1_percent"]),
        "chosen_loss": float(best["loss"]),
        "chosen_params_m": int(best["params"]) / 1e6,
        "chosen_macs_g": int(best["macs"]) / 1e9,
        "chosen_is_random": float(best["origin"] == "baseline"),
        "evolution_best_top1_percent": float(evolution["top1_percent"]),
        "random_best_top1_percent": float(random["top1_percent"]),
        "evolution_minus_random_percent": pytest.approx(
            float(evolution["top1_percent"]) - float(random["top1_percent"])
        ),
        "candidates_scored": len({spec_of(row) for row in rows}),
        "images_scored": 18 * 80,
        "images_scored_percent": 100.0,
        "random_images_scored": 80 * (len({spec_of(row) for row in rows}) - 18),
    }
    assert len({spec_of(row) for row in evolved}) == 18  # evolution proposes no subnet twice


def test_progress_is_the_best_so_far_of_either_search(runs: Runs) -> None:
    rows = read_table(runs.first.search / "candidates.csv")
    top1 = [float(row["top1_percent"]) for row in rows]
    for generation, row in enumerate(read_table(runs.first.search / "progress.csv")):
        end = 6 * (generation + 1)
        assert (int(row["generation"]), int(row["scored"])) == (generation, end)
        assert int(row["images_scored"]) == end * 80
        assert float(row["evolution_best_top1_percent"]) == max(top1[:end])
        assert float(row["random_best_top1_percent"]) == max(top1[18 : 18 + end])


def test_retrained_models_and_their_accuracies(runs: Runs, search_split: tuple[torch.Tensor, torch.Tensor]) -> None:
    supernet, _ = load_supernet(runs.first.supernet, "ema")
    spec = chosen_of(runs.first)
    inherited, card = load_subnet(runs.first.retrain / "inherited")
    assert card.subnet == spec
    for name, tensor in supernet.extract(spec).state_dict().items():
        assert torch.equal(tensor, inherited.state_dict()[name]), name
    found = metrics(runs.first.retrain)
    assert found["inherited_top1_percent"] == figures(supernet, search_split, spec)[0]
    for name, metric in (("model", "retrained"), ("scratch", "scratch")):
        top1, _ = figures(load_subnet(runs.first.retrain / name).model, search_split)
        assert found[f"{metric}_top1_percent"] == top1
    last = read_table(runs.first.retrain / "history.csv")[-1]
    watched = search_split[0][:50], search_split[1][:50]
    assert float(last["search_top1_percent"]) == figures(load_subnet(runs.first.retrain / "model").model, watched)[0]


def test_finetuning_starts_from_the_inherited_weights(runs: Runs) -> None:
    tuned, scratch = (read_table(runs.first.retrain / f"{name}.csv") for name in ("history", "scratch_history"))
    assert float(tuned[0]["train_loss"]) < float(scratch[0]["train_loss"]) - 0.2


def test_the_reference_from_scratch_has_the_recipe_of_the_supernet_and_the_images_of_both_trainings(
    runs: Runs, tiny_data: TinyData, tmp_path: Path
) -> None:
    for mode, epochs in (("finetune", 9), ("inherited", 6)):
        made = retrain(runs, tiny_data, tmp_path / mode, mode=mode, learning_rate=1e-6, clip_grad=None)
        supernet = read_table(runs.first.supernet / "history.csv")
        rows = read_table(made / "scratch_history.csv")
        assert int(rows[-1]["step"]) == 10 * epochs and metrics(made)["scratch_epochs"] == epochs
        assert float(rows[0]["learning_rate"]) == pytest.approx(float(supernet[0]["learning_rate"]), rel=0.02)
    found = contents(tmp_path / "finetune")
    assert found["scratch/model.safetensors"] == contents(runs.first.retrain)["scratch/model.safetensors"]


@pytest.mark.parametrize(("learning_rate", "kept"), [(1e-9, "inherited"), (10.0, "inherited"), (None, None)])
def test_in_mode_best_the_inherited_weights_stay_unless_training_wins_on_the_search_split(
    runs: Runs, tiny_data: TinyData, tmp_path: Path, learning_rate: float | None, kept: str | None
) -> None:
    """Equal is not better; a ruinous rate is worse; and the recipe of the tests may do either."""
    changes = {} if learning_rate is None else {"learning_rate": learning_rate}
    made = retrain(runs, tiny_data, tmp_path / "retrain", mode="best", scratch_reference=False, **changes)
    found, files = metrics(made), contents(made)
    won = found["finetuned_top1_percent"] > found["inherited_top1_percent"]
    weights = load_subnet(made / "model").card.provenance["weights"]
    assert weights == ("finetune" if won else "inherited") and kept in (None, weights)
    assert found["retrained_top1_percent"] == max(found["finetuned_top1_percent"], found["inherited_top1_percent"])
    assert (files["model/model.safetensors"] == files["inherited/model.safetensors"]) == (not won)
    if learning_rate is None:
        assert found["finetuned_top1_percent"] == metrics(runs.first.retrain)["retrained_top1_percent"]
        if won:
            assert files["model/model.safetensors"] == contents(runs.first.retrain)["model/model.safetensors"]


@pytest.mark.parametrize(
    ("inherited", "finetuned", "scratch", "kept"),
    [
        (90.0, 91.0, 92.0, "scratch"),
        (90.0, 92.0, 92.0, "finetune"),
        (90.0, 91.0, None, "finetune"),
        (92.0, 92.0, 92.0, "inherited"),
        (92.0, 91.0, None, "inherited"),
    ],
)
def test_mode_best_keeps_the_best_of_all_that_was_trained(
    inherited: float, finetuned: float, scratch: float | None, kept: str
) -> None:
    """Equal is not better than what costs less."""
    models = {"inherited": "i", "model": "f"} | ({} if scratch is None else {"scratch": "s"})
    found = {"inherited_top1_percent": inherited, "retrained_top1_percent": finetuned}
    found |= {} if scratch is None else {"scratch_top1_percent": scratch}
    assert _keep_the_best(models, found) == kept
    assert models["model"] == kept[0]
    assert models.get("finetuned") == (None if kept == "finetune" else "f")
    assert found["finetuned_top1_percent"] == finetuned
    assert found["retrained_top1_percent"] == max(inherited, finetuned, scratch or 0)


def test_in_mode_best_the_reference_from_scratch_is_evaluated_and_registered_where_it_wins(
    runs: Runs, tiny_data: TinyData, tmp_path: Path
) -> None:
    made = retrain(runs, tiny_data, tmp_path / "retrain", mode="best", learning_rate=10.0)  # ruins the fine-tuning
    found, files = metrics(made), contents(made)
    weights = load_subnet(made / "model").card.provenance["weights"]
    assert weights == ("scratch" if found["scratch_top1_percent"] > found["inherited_top1_percent"] else "inherited")
    assert files["model/model.safetensors"] == files[f"{weights}/model.safetensors"]
    assert files["finetuned/model.safetensors"] != files["model/model.safetensors"]
    assert load_subnet(made / "finetuned").card.provenance["weights"] == "finetune"


def test_inherited_mode_keeps_the_weights(runs: Runs, tiny_data: TinyData, tmp_path: Path) -> None:
    made = retrain(runs, tiny_data, tmp_path / "retrain", mode="inherited", scratch_reference=False)
    files = contents(made)
    assert set(files) == {"metrics.json", *(f"{m}/model.{k}" for m in ("model", "inherited") for k in KINDS)}
    assert files["model/model.safetensors"] == files["inherited/model.safetensors"]
    assert files["inherited/model.safetensors"] == contents(runs.first.retrain)["inherited/model.safetensors"]
    assert load_subnet(made / "model").card.provenance["weights"] == "inherited"


def test_scratch_mode_is_the_scratch_reference(runs: Runs, tiny_data: TinyData, tmp_path: Path) -> None:
    made = retrain(runs, tiny_data, tmp_path / "retrain", mode="scratch", epochs=9)  # of both trainings
    files, reference = contents(made), contents(runs.first.retrain)
    assert files["model/model.safetensors"] == reference["scratch/model.safetensors"]
    assert files["history.csv"] == reference["scratch_history.csv"]
    assert "scratch_history.csv" not in files and not (made / "scratch").exists()
    assert load_subnet(made / "model").card.provenance["weights"] == "scratch"


def test_the_retrained_subnet_inherits_the_weights_that_the_search_scored(
    runs: Runs, tiny_data: TinyData, search_split: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    config = config_of("search_subnet", weights="raw", images=None)
    assert (
        run("search_subnet", arguments("search_subnet", tiny_data, runs.root / "first", tmp_path / "search", config))
        == 0
    )
    made = retrain(
        runs, tiny_data, tmp_path / "retrain", tmp_path / "search", mode="inherited", scratch_reference=False
    )
    spec = load_subnet(made / "model").card.subnet
    top1, _ = figures(load_supernet(runs.first.supernet, "raw").model, search_split, spec)
    assert metrics(made)["inherited_top1_percent"] == metrics(tmp_path / "search")["chosen_top1_percent"] == top1


KINDS = ("safetensors", "json")


def test_retrained_on_all_images_the_search_split_scores_nothing_that_was_trained(
    runs: Runs, tiny_data: TinyData, tmp_path: Path
) -> None:
    """600 images instead of 500: 12 steps an epoch, not 10; and the choice is not scored on what it learnt from."""
    made = retrain(runs, tiny_data, tmp_path / "retrain", split="train_full")
    found, before = metrics(made), metrics(runs.first.retrain)
    assert found == {
        "inherited_top1_percent": before["inherited_top1_percent"],
        "search_split_trained_on": True,
        "scratch_epochs": 9,
    }
    for name, epochs in (("history", 3), ("scratch_history", 9)):
        rows = read_table(made / f"{name}.csv")
        assert [row["search_top1_percent"] for row in rows] == [""] * len(rows)
        assert int(rows[-1]["step"]) == 12 * epochs
    told = {name: load_subnet(made / name).card.provenance for name in ("model", "scratch", "inherited")}
    assert [card.get("search_split_trained_on") for card in told.values()] == [True, True, None]
    assert told["model"]["inputs"].keys() == {"card", "train_full_split", "search_split", "supernet", "search"}
    kept = retrain(runs, tiny_data, tmp_path / "kept", split="train_full", mode="inherited", scratch_reference=False)
    assert "search_split_trained_on" not in metrics(kept) and metrics(kept)["retrained_top1_percent"]


def retrain(runs: Runs, data: TinyData, out: Path, search: Path | None = None, **changes: Any) -> Path:
    given = arguments("retrain_subnet", data, runs.root / "first", out, config_of("retrain_subnet", **changes))
    assert run("retrain_subnet", given | ({"--search": str(search)} if search else {})) == 0
    return out


def test_artifacts_hold_their_provenance(runs: Runs, tiny_data: TinyData) -> None:
    read = {
        "train_supernet": json.loads((runs.first.supernet / "supernet.json").read_text())["provenance"],
        "search_subnet": json.loads((runs.first.search / "provenance.json").read_text()),
        "retrain_subnet": load_subnet(runs.first.retrain / "model").card.provenance,
    }
    paths = {"card": tiny_data.card_path, "train_split": tiny_data.train, "supernet": runs.first.supernet}
    paths |= {"search_split": tiny_data.search, "search": runs.first.search}
    for step, said in read.items():
        assert (said["step"], said["seed"], said["code"]) == (step, 0, step_code(step))
        assert said["config"] == json.loads(config_of(step)) | {
            "device": "auto",
            "space": said["config"]["space"],
            step: said["config"][step],
        }
        assert said["inputs"] == {name: hash_path(paths[name]) for name in said["inputs"]}
    assert read["search_subnet"]["inputs"].keys() == {"card", "search_split", "supernet"}
    assert read["retrain_subnet"]["inputs"].keys() == {"card", "train_split", "search_split", "supernet", "search"}
    assert read["retrain_subnet"]["weights"] == "finetune"
