"""The step as a whole, on folders in the formats of the earlier steps."""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_sample import Sample, make_sample
from tiny import TinyData

from autoformer.checkpoint import load_subnet
from autoformer.complexity import count_macs, count_params
from autoformer.evaluation import wilson_interval
from autoformer.images.split_images import load_images
from components.evaluate_subnet.step import main


@pytest.fixture(scope="module", autouse=True)
def untracked() -> Iterator[None]:
    """Nothing of these tests may reach the runs that a person keeps in mlflow.db."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOFORMER_TRACKING", "off")
        yield


@pytest.fixture(scope="module")
def sample(tiny_data: TinyData, tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return make_sample(tmp_path_factory.mktemp("sample"), tiny_data, steps=15)


@pytest.fixture(scope="module")
def evaluation(sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluated") / "evaluation"
    assert run(sample, out) == 0
    return out


def run(sample: Sample, out: Path, *more: str) -> int:
    return main([*sample.arguments, "--out", str(out), "--record", str(out.parent / "run.json"), *more])


def plain_accuracy(folder: Path, data: TinyData) -> float:
    """One image at a time, through timm's interface, normalised as the contract says."""
    model, card = load_subnet(folder)
    images = load_images(data.test, data.data, data.card)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (card.preprocessing.mean, card.preprocessing.std))
    right = 0
    with torch.no_grad():
        for pixels, label in zip(images.pixels, images.labels, strict=True):
            image = (torch.from_numpy(pixels).float() / 255 - mean) / std
            right += int(model.forward_head(model.forward_features(image[None])).argmax()) == label
    return 100 * right / len(images.labels)


def test_metrics_equal_a_plain_loop(sample: Sample, evaluation: Path, tiny_data: TinyData) -> None:
    metrics = json.loads((evaluation / "metrics.json").read_text())
    retrained = plain_accuracy(sample.retrain / "model", tiny_data)
    assert metrics["test_top1_percent"] == pytest.approx(retrained)
    assert metrics["inherited_test_top1_percent"] == pytest.approx(
        plain_accuracy(sample.retrain / "inherited", tiny_data)
    )
    assert metrics["scratch_test_top1_percent"] == pytest.approx(plain_accuracy(sample.retrain / "scratch", tiny_data))
    assert retrained > 30  # it learnt something, so that equality says something
    interval = wilson_interval(round(retrained), 100)
    assert (metrics["test_top1_low_percent"], metrics["test_top1_high_percent"]) == pytest.approx(
        (100 * interval.low, 100 * interval.high)
    )
    card = load_subnet(sample.retrain / "model").card
    assert metrics["params"] == count_params(card.space, card.subnet)
    assert metrics["macs"] == count_macs(card.space, card.subnet)
    assert all(isinstance(value, int | float) for value in metrics.values())


def test_confusion_and_predictions_agree_with_the_metrics(evaluation: Path, tiny_data: TinyData) -> None:
    metrics = json.loads((evaluation / "metrics.json").read_text())
    confusion = json.loads((evaluation / "confusion.json").read_text())
    with (evaluation / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    classes = confusion["classes"]
    assert classes == list(tiny_data.card.classes)
    matrix = np.zeros((10, 10), dtype=int)
    for row in rows:
        matrix[classes.index(row["actual"]), classes.index(row["predicted"])] += 1
    assert matrix.tolist() == confusion["matrix"]
    assert np.trace(matrix) == metrics["test_top1_percent"]  # of 100 images
    assert matrix.sum() == metrics["test_images"] == 100


def test_provenance_names_split_and_weights(evaluation: Path, tiny_data: TinyData) -> None:
    provenance = json.loads((evaluation / "provenance.json").read_text())
    assert provenance["test_split"] == tiny_data.card.split_hashes["test"]
    assert set(provenance["models"]) == {"retrained", "inherited", "scratch"}
    assert provenance["seed"] == 7


def test_a_second_run_writes_the_same_bytes(sample: Sample, evaluation: Path, tmp_path: Path) -> None:
    again = tmp_path / "elsewhere" / "evaluation"
    assert run(sample, again) == 0
    files = sorted(path.name for path in evaluation.iterdir())
    assert files == ["confusion.json", "metrics.json", "predictions.csv", "provenance.json", "report.html"]
    for name in files:
        assert (again / name).read_bytes() == (evaluation / name).read_bytes(), name
        assert str(sample.retrain.parent) not in (again / name).read_text()
    assert json.loads((again.parent / "run.json").read_text())["seconds"] >= 0


def test_without_a_subnet_from_scratch(sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    retrain = tmp_path / "retrain"
    shutil.copytree(sample.retrain, retrain)
    shutil.rmtree(retrain / "scratch")
    (retrain / "scratch_history.csv").unlink()
    assert run(sample, tmp_path / "out", "--retrain", str(retrain)) == 0
    assert "scratch_test_top1_percent" not in json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert "from scratch" not in capsys.readouterr().out


def test_bad_input_is_one_line_and_exit_code_2(
    sample: Sample, tiny_data: TinyData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*more: str) -> str:
        assert run(sample, tmp_path / "out", *more) == 2
        assert not (tmp_path / "out").exists()
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        return lines[0]

    assert "made by search_subnet" in fails("--search", str(tmp_path / "nowhere"))
    assert "card's test split" in fails("--test-split", str(tiny_data.search))
    assert "prepare_data" in fails("--card", str(tmp_path / "card.json"))

    retrain = tmp_path / "retrain"
    shutil.copytree(sample.retrain, retrain)
    (retrain / "inherited" / "model.safetensors").unlink()
    assert "model.safetensors" in fails("--retrain", str(retrain))

    card = json.loads((sample.retrain / "model" / "model.json").read_text())
    card["preprocessing"]["classes"][0] = "Top hat"
    shutil.copytree(sample.retrain, retrain, dirs_exist_ok=True)
    (retrain / "model" / "model.json").write_text(json.dumps(card))
    assert "trained for 10 classes (Top hat" in fails("--retrain", str(retrain))

    search = tmp_path / "search"
    shutil.copytree(sample.search, search)
    table = (search / "candidates.csv").read_text()
    (search / "candidates.csv").write_text(table.replace("macs", "flops", 1))
    assert "no column 'macs'" in fails("--search", str(search))
    (search / "candidates.csv").write_text(table.splitlines()[0] + "\n")
    assert "chosen.yaml" in fails("--search", str(search))


def test_checks_need_no_torch(sample: Sample, tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys\nfrom components.evaluate_subnet.step import main\n"
        "code = main(sys.argv[1:])\nassert code == 2, code\nassert 'torch' not in sys.modules, 'torch was imported'"
    )
    arguments = [*sample.arguments, "--out", str(tmp_path / "out"), "--record", str(tmp_path / "run.json")]
    bad = [*arguments, "--retrain", str(tmp_path / "nowhere")]
    result = subprocess.run([sys.executable, "-c", code, *bad], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
