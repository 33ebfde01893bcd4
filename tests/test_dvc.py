"""The same pipeline through `dvc repro`, in a git and DVC repository of its own, against the run through KFP."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from whole_run import Checkout, WholeRun, bytes_below

from runtime.common.config import STEPS

pytestmark = pytest.mark.slow


@pytest.fixture
def checkout(dvc_checkout: Checkout) -> Checkout:
    return dvc_checkout


@pytest.fixture
def repro(dvc_repro: "subprocess.CompletedProcess[str]") -> "subprocess.CompletedProcess[str]":
    return dvc_repro


@pytest.fixture
def artifacts(checkout: Checkout, repro: "subprocess.CompletedProcess[str]") -> Path:
    return checkout.root / "artifacts"


def dvc(checkout: Checkout, *arguments: str) -> str:
    return checkout.python("dvc", *arguments).stdout


def ran(output: str) -> list[str]:
    return re.findall(r"Running stage '(\w+)'", output)


def test_params_with_edits_of_a_person_are_kept(checkout: Checkout) -> None:
    params = checkout.root / "params.yaml"
    committed = params.read_text()
    params.write_text(committed.replace("seed: 0", "seed: 17"))
    edited = params.read_text()
    assert edited != committed
    result = checkout.python("pipeline.repro", "--preset", "smoke", code=2)
    assert result.stderr.startswith("repro: params.yaml has edits that are neither committed nor a preset")
    assert len(result.stderr.splitlines()) == 1
    assert params.read_text() == edited
    params.write_text(committed)


def test_every_stage_runs_once(repro: "subprocess.CompletedProcess[str]", checkout: Checkout) -> None:
    assert ran(repro.stdout) == list(STEPS)
    assert (checkout.root / "params.yaml").read_text() == checkout.preset.read_text()
    assert "chosen subnet" in repro.stdout and "artifacts/evaluation/report.html" in repro.stdout


@pytest.mark.parametrize(
    ("step", "kfp", "dvc"),
    [
        ("train_supernet", "supernet", "supernet"),
        ("search_subnet", "search", "search"),
        ("retrain_subnet", "retrain", "retrain"),
        ("evaluate_subnet", "evaluation", "evaluation"),
    ],
)
def test_the_two_dags_make_the_same_bytes(kfp_run: WholeRun, artifacts: Path, step: str, kfp: str, dvc: str) -> None:
    """Weights, tables, chosen subnet, accuracies: though the run through KFP was killed, and went on."""
    from_kfp = bytes_below(kfp_run.folder / step.replace("_", "-") / kfp)
    from_dvc = bytes_below(artifacts / dvc)
    assert from_kfp.keys() == from_dvc.keys() and len(from_dvc) > 2
    assert [name for name in from_dvc if from_kfp[name] != from_dvc[name]] == []


def test_the_two_dags_make_the_same_splits(kfp_run: WholeRun, artifacts: Path) -> None:
    """The first run's own: those of the second came from the cache."""
    made = kfp_run.first_folder / "prepare-data"
    for kfp, dvc_name in (
        ("card", "card.json"),
        *((f"{s}_split", f"{s}.parquet") for s in ("train", "search", "test", "train_full")),
    ):
        assert (made / kfp).read_bytes() == (artifacts / "splits" / dvc_name).read_bytes()


def test_a_second_repro_does_nothing(checkout: Checkout, artifacts: Path) -> None:
    assert "Data and pipelines are up to date." in dvc(checkout, "status")
    shutil.rmtree(artifacts / "records")  # as where the results came by `dvc pull`
    again = checkout.python("pipeline.repro")
    assert ran(again.stdout) == []
    assert "Data and pipelines are up to date." in again.stdout
    assert "chosen subnet" in again.stdout


def test_metrics_and_params_are_shown(checkout: Checkout, artifacts: Path) -> None:
    shown = json.loads(dvc(checkout, "metrics", "show", "--json"))[""]["data"]
    tested = json.loads((artifacts / "evaluation" / "metrics.json").read_text())
    assert shown["artifacts/evaluation/metrics.json"]["data"] == tested
    assert len(shown) == 4
    changed = json.loads(dvc(checkout, "params", "diff", "--json"))["params.yaml"]
    assert changed["search_subnet.population"]["new"] == 4
    assert changed["register_model.model_name"]["new"] == "fashion-mnist-tiny"


def test_plots_are_drawn(checkout: Checkout, artifacts: Path) -> None:
    page = (checkout.root / "dvc_plots" / "index.html") if dvc(checkout, "plots", "show") else Path()
    text = page.read_text()
    for title in ("supernet training", "retraining", "search progress", "accuracy against parameters", "confusion"):
        assert title in text
    ignored = checkout.command("git", "status", "--porcelain", "--untracked-files=all").stdout
    assert "dvc_plots" not in ignored and "artifacts" not in ignored


def test_an_experiment_runs_what_it_changes(checkout: Checkout, artifacts: Path) -> None:
    """Then back: DVC's run cache knows that evaluation, but nothing is registered without register_model."""
    metrics = (artifacts / "evaluation" / "metrics.json").read_bytes()
    report = (artifacts / "evaluation" / "report.html").read_bytes()
    output = dvc(checkout, "exp", "run", "--set-param", "evaluate_subnet.mistakes=3")
    assert ran(output) == ["evaluate_subnet", "register_model"]
    params = yaml.safe_load((checkout.root / "params.yaml").read_text())
    assert params["evaluate_subnet"]["mistakes"] == 3
    assert (artifacts / "evaluation" / "metrics.json").read_bytes() == metrics
    assert (artifacts / "evaluation" / "report.html").read_bytes() != report
    assert "evaluate_subnet.mistakes" in dvc(checkout, "exp", "show", "--csv").splitlines()[0]

    record = artifacts / "records" / "register_model.json"
    before = json.loads(record.read_text())
    output = checkout.python("pipeline.repro", "--set", "evaluate_subnet.mistakes=4").stdout
    assert ran(output) == ["register_model"]
    assert "Stage 'evaluate_subnet' is cached" in output
    assert (artifacts / "evaluation" / "report.html").read_bytes() == report
    after = json.loads(record.read_text())
    assert after["started"] != before["started"]
    assert json.loads((artifacts / "registration.json").read_text())["decision"] == "unchanged"
