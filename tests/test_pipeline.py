"""The pipeline through KFP's local runner, from end to end: real images, real steps, a real MLflow store."""

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from planted import has_secret, leaks
from whole_run import Checkout, WholeRun, only

from runtime.common.config import STEPS

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client(kfp_run: WholeRun) -> "MlflowClient":
    import mlflow

    return mlflow.MlflowClient(kfp_run.checkout.store, kfp_run.checkout.store)


def nested(client: "MlflowClient", parent: str) -> "list[Run]":
    experiment = client.get_experiment_by_name("autoformer")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'"))


def pipeline_runs(client: "MlflowClient") -> "list[Run]":
    experiment = client.get_experiment_by_name("autoformer")
    assert experiment is not None
    return list(
        client.search_runs(
            [experiment.experiment_id], "tags.stage = 'pipeline'", order_by=["attributes.start_time ASC"]
        )
    )


def record(run: WholeRun, step: str) -> dict[str, Any]:
    return dict(json.loads((task_folder(run.folder, step) / "record").read_text()))


def task_folder(run: Path, step: str) -> Path:
    return run / step.replace("_", "-")


def output_metadata(run: WholeRun, step: str, name: str) -> dict[str, Any]:
    """What KFP is told of an output artifact."""
    told = json.loads((task_folder(run.folder, step) / "executor_output.json").read_text())
    return dict(told["artifacts"][name]["artifacts"][0]["metadata"])


# A run that is killed


def test_a_killed_runner_takes_its_step_with_it(kfp_run: WholeRun) -> None:
    assert kfp_run.orphan_seconds < 35  # it notices, writes a checkpoint and ends its MLflow run


def test_the_same_command_goes_on_where_the_killed_run_was(kfp_run: WholeRun) -> None:
    assert "prepare-data: taken from the cache" in kfp_run.output
    assert record(kfp_run, "train_supernet")["resumed_from_step"] >= 2
    assert re.search(r"train_supernet: resumed from step \d+ of 47", kfp_run.output)
    assert not list(kfp_run.checkout.work.glob("*_subnet/*")), "no work is left over"
    assert not list(kfp_run.checkout.work.glob("train_supernet/*"))


# What a person sees, and finds


def test_the_table_at_the_end(kfp_run: WholeRun) -> None:
    chosen = yaml.safe_load((task_folder(kfp_run.folder, "search_subnet") / "search/chosen.yaml").read_text())["subnet"]
    tested = json.loads((task_folder(kfp_run.folder, "evaluate_subnet") / "evaluation/metrics.json").read_text())
    table = dict(re.findall(r"^ +([\w -]*\w) {2,}(.+)$", kfp_run.output, re.MULTILINE))
    assert table["chosen subnet"] == f"depth {chosen['depth']}, width {chosen['embed_dim']}"
    source = yaml.safe_load((task_folder(kfp_run.folder, "search_subnet") / "search/chosen.yaml").read_text())["source"]
    assert f"({table['found by']})" in source
    assert table["heads"] == " ".join(map(str, chosen["num_heads"]))
    assert table["parameters"].startswith(f"{tested['params']:,}")
    assert table["multiply-adds"].startswith(f"{tested['macs']:,}")
    assert table["test split"].startswith(f"{tested['test_top1_percent']:.2f} % top-1")
    assert "random search" in table["search split"]
    assert "there is no champion yet" in table["registry"]
    assert all(re.fullmatch(r"\d+ s", table[step]) for step in STEPS)
    for what in ("report", "model", "model card"):
        assert (kfp_run.checkout.root / table[what]).exists()


def test_the_steps_own_lines_are_shown_and_no_other(kfp_run: WholeRun) -> None:
    assert "  train_supernet: 47 steps, train_loss" in kfp_run.output
    assert "KFP Executor" not in kfp_run.output and "executor_input" not in kfp_run.output
    log = kfp_run.checkout.root / re.findall(r"runs/logs/\S+\.log", kfp_run.output)[0]
    assert "KFP Executor" in log.read_text()


def test_every_output_is_there(kfp_run: WholeRun) -> None:
    found = {str(file.relative_to(kfp_run.folder)) for file in kfp_run.folder.rglob("*") if file.is_file()}
    assert {
        "train-supernet/supernet/ema.safetensors",
        "train-supernet/supernet/history.csv",
        "search-subnet/search/candidates.csv",
        "search-subnet/search/progress.csv",
        "search-subnet/search/chosen.yaml",
        "retrain-subnet/retrain/model/model.safetensors",
        "retrain-subnet/retrain/model/model.json",
        "evaluate-subnet/evaluation/report.html",
        "evaluate-subnet/report",
        "evaluate-subnet/confusions",
        "register-model/registration",
        "register-model/model_card",
        *(f"{step.replace('_', '-')}/record" for step in STEPS[1:]),
    } <= found
    assert not [name for name in found if name.endswith((".tmp", ".old"))]
    candidates = (kfp_run.folder / "search-subnet/search/candidates.csv").read_text().splitlines()
    assert len(candidates) == 1 + 16  # 4 and 4 of evolution, 8 random ones


def test_kfp_is_told_metrics_confusion_and_data(kfp_run: WholeRun) -> None:
    evaluation = task_folder(kfp_run.folder, "evaluate_subnet") / "evaluation"
    metrics = output_metadata(kfp_run, "evaluate_subnet", "metrics")
    assert metrics == json.loads((evaluation / "metrics.json").read_text())
    matrix = output_metadata(kfp_run, "evaluate_subnet", "confusion")["confusionMatrix"]
    counted = json.loads((evaluation / "confusion.json").read_text())
    assert [row["row"] for row in matrix["rows"]] == counted["matrix"]
    assert [each["displayName"] for each in matrix["annotationSpecs"]] == counted["classes"]
    assert sum(map(sum, counted["matrix"])) == 10_000
    for step in ("train_supernet", "search_subnet", "retrain_subnet"):
        assert output_metadata(kfp_run, step, "metrics")
    assert output_metadata(kfp_run, "train_supernet", "supernet")["data_hash"]


# MLflow


def test_one_parent_and_six_nested_runs(kfp_run: WholeRun, client: "MlflowClient") -> None:
    parent = pipeline_runs(client)[0]
    steps = {run.info.run_name: run for run in nested(client, parent.info.run_id)}
    assert sorted(steps) == sorted(STEPS)  # the killed step went on in its own run
    assert {run.info.status for run in [parent, *steps.values()]} == {"FINISHED"}
    assert parent.data.params["cfg/search_subnet.population"] == "4"
    assert all("/" in name for run in [parent, *steps.values()] for name in run.data.params)
    assert steps["train_supernet"].data.params["cfg/train_supernet.batch_size"] == "64"
    assert "cfg/search_subnet.population" not in steps["train_supernet"].data.params
    points = client.get_metric_history(steps["train_supernet"].info.run_id, "train_loss")
    assert [point.step for point in points] == sorted({point.step for point in points}), "no point twice"
    assert points[-1].step == 47


def test_the_best_candidates_are_runs(kfp_run: WholeRun, client: "MlflowClient") -> None:
    steps = {run.info.run_name: run for run in nested(client, pipeline_runs(client)[0].info.run_id)}
    children = nested(client, steps["search_subnet"].info.run_id)
    assert 10 <= len(children) <= 16
    assert all({"arch/depth", "arch/num_heads"} <= run.data.params.keys() for run in children)
    assert all({"val/top1", "cost/params_m", "cost/macs_g"} <= run.data.metrics.keys() for run in children)
    assert sum(run.data.tags.get("chosen") == "True" for run in children) == 1


def test_the_model_is_registered_under_its_alias(kfp_run: WholeRun, client: "MlflowClient") -> None:
    told = json.loads((task_folder(kfp_run.folder, "register_model") / "registration").read_text())
    version = client.get_model_version_by_alias("fashion-mnist-tiny", "champion")
    assert (told["decision"], told["version"]) == ("registered", str(version.version))
    assert version.tags["weights"] == told["weights"]
    assert version.tags["pipeline_run_id"] == pipeline_runs(client)[0].info.run_id


# The same command again, and with a change


def again(
    kfp_run: WholeRun, *arguments: str, code: int = 0
) -> "tuple[set[str], subprocess.CompletedProcess[str], Path]":
    """Run once more; which tasks ran, what was printed, and the new folder."""
    before = set(kfp_run.checkout.root.glob("runs/autoformer-*"))
    result = kfp_run.checkout.run(*arguments, code=code)
    folder = only(set(kfp_run.checkout.root.glob("runs/autoformer-*")) - before)
    return {task.name for task in folder.iterdir()}, result, folder


def test_the_same_run_again_only_asks_the_registry(kfp_run: WholeRun, client: "MlflowClient") -> None:
    ran, result, folder = again(kfp_run)
    assert ran == {"resolve-config", "register-model"}
    assert result.stdout.count("taken from the cache") == 5
    told = json.loads((folder / "register-model" / "registration").read_text())
    assert told["decision"] == "unchanged"
    assert len(client.search_model_versions("name = 'fashion-mnist-tiny'")) == 1
    newest = pipeline_runs(client)[-1]
    assert [run.info.run_name for run in nested(client, newest.info.run_id)] == ["register_model"]


def test_an_edited_step_is_not_taken_from_the_cache(kfp_run: WholeRun) -> None:
    """The hash of a step's source stands where a cluster has the digest of its image, in the cache's key."""
    code = "from pipeline import dag, local; local.name_sources(dag.autoformer); import json; print(json.dumps({"
    code += "name: dict(value)['container']['image'] for name, value in "
    code += "dag.autoformer.pipeline_spec.deployment_spec['executors'].items()}))"

    def images() -> dict[str, str]:
        return dict(json.loads(kfp_run.checkout.command("python", "-c", code).stdout))

    before = images()
    edited = kfp_run.checkout.root / "components" / "evaluate_subnet" / "report.py"
    text = edited.read_text()
    edited.write_text(f"{text}\n# edited\n")
    after = images()
    edited.write_text(text)
    assert {name for name in before if before[name] != after[name]} == {"exec-evaluate-subnet"}


# What cannot work ends with one line


def test_bad_input_is_one_line(kfp_run: WholeRun) -> None:
    """Of the process itself; each kind of bad input is held in test_bad_input_doors."""
    result = kfp_run.checkout.run("--data", "nowhere", code=2)
    assert "nowhere: no such folder; `make data` fetches" in result.stderr
    assert len(result.stderr.splitlines()) == 1 and not result.stdout


def test_a_changed_section_runs_its_step_which_refuses_it_in_one_line(
    kfp_run: WholeRun, client: "MlflowClient"
) -> None:
    """Which steps any other change would run is held in test_caching, and what a new evaluation is in test_dvc."""
    ran, result, _ = again(kfp_run, "--set", "search_subnet.images=5000", code=2)
    assert ran == {"resolve-config", "search-subnet"}
    assert result.stdout.count("taken from the cache") == 2  # prepare_data and train_supernet
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("search_subnet: search_subnet.images = 5000: the search split has")
    assert pipeline_runs(client)[-1].info.status == "FAILED"


def test_no_secret_of_the_environment_is_written_anywhere(kfp_run: WholeRun) -> None:
    """Its records, logs, KFP's inputs and cache, the report, the model and its card, MLflow's store, the package."""
    checkout = kfp_run.checkout
    checkout.python("pipeline.cluster.compile", "--out", "dist/autoformer.yaml")
    written = [checkout.root / name for name in ("runs", "dist")] + [checkout.work]
    written += [Path(checkout.store.removeprefix("sqlite:///")), checkout.root.parent / "mlruns"]
    assert all(path.exists() for path in written)
    assert (checkout.root / "runs" / "logs").exists() and (checkout.root / "runs" / ".kfp_cache").exists()
    assert leaks(*written) == []
    assert not has_secret([kfp_run.first_output, kfp_run.output])


def test_the_copy_is_what_runs(kfp_run: WholeRun) -> None:
    checkout: Checkout = kfp_run.checkout
    code = "import autoformer, components, pipeline; print(autoformer.__file__, components.__file__, pipeline.__file__)"
    places = checkout.command("python", "-c", code).stdout.split()
    assert all(Path(place).is_relative_to(checkout.root) for place in places)
