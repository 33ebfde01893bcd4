"""MLflow runs: how they nest, resume and end. Every test uses a real store."""

# ruff: noqa: F401, F811 - fixtures are imported, and then asked for by name

import os
import signal
import sqlite3
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import free_port
from processes import PATIENCE_SECONDS, ended, fork_server
from tracking_fixtures import empty_store, store, use_store

from autoformer.candidates import Candidate, ScoredCandidate
from autoformer.errors import AutoFormerError
from autoformer.space import SubnetSpec
from components.resolve_config.step import component_outputs
from runtime import tracking
from runtime.common.code import package_code
from runtime.common.config import STEPS, Config, load_config
from runtime.common.redaction import without_password
from runtime.common.stopping import Stopped, stoppable
from runtime.tracking.step_logger import child_run

SPEC = SubnetSpec(2, 64, (4, 8), (2.0, 3.5))
CANDIDATE, OTHER = (
    ScoredCandidate(Candidate(id, SPEC, "mutation", 2, (3,), 250_000, 3_000_000), 81.25, 0.5, 3000) for id in (7, 8)
)


@pytest.fixture(scope="session")
def config() -> Config:
    return load_config("smoke")


def client() -> Any:
    return tracking.initialise(tracking.tracking_uri())


def runs(filter_string: str = "") -> list[Any]:
    experiment = client().get_experiment_by_name("autoformer")
    return list(client().search_runs([experiment.experiment_id], filter_string))


def history(run_id: str, metric: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client().get_metric_history(run_id, metric))


def test_a_step_logs_everything_to_its_run(
    store: str,
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KFP_RUN_ID", "kfp-1")
    parent = tracking.open_pipeline_run(config, {"preset": "smoke"})
    monkeypatch.setenv("AUTOFORMER_PARENT_RUN_ID", parent)
    table = tmp_path / "candidates.csv"
    table.write_text("id,origin,top1_percent,loss\n0,initial,80.5,\n1,mutation,81,0.5\n")
    record: dict[str, Any] = {}
    provenance = {"code": "c0de", "inputs": {"card": "a" * 64, "train_split": "b" * 64}}
    with tracking.step_run("search_subnet", config, record, provenance) as run:
        for step in range(5):
            run.row({"step": step, "train_loss": 1 / (step + 1)})
        run.metrics({"search/best_top1_percent": 81.0}, step=3)
        run.subnet(config.space.smallest)
        run.table(table)
        run.artifact(table)
        run.child_runs([child_run(one, [SPEC]) for one in (CANDIDATE, OTHER)])
    tracking.close_pipeline_run(parent, "FINISHED")

    logged = client().get_run(record["mlflow_run_id"])
    assert logged.info.status == client().get_run(parent).info.status == "FINISHED"
    assert logged.data.tags["mlflow.parentRunId"] == parent == record["mlflow_parent_run_id"]
    expected = {"stage": "search_subnet", "code": "c0de", "data_hash": "a" * 64, "kfp_run_id": "kfp-1"}
    assert expected.items() <= logged.data.tags.items()
    assert {"git_commit", "dvc_revision"} <= set(logged.data.tags)
    assert logged.data.params["cfg/search_subnet.population"] == str(config.search_subnet.population)  # type: ignore[union-attr]
    assert logged.data.params["arch/depth"] == str(config.space.smallest.depth)
    assert not any(key.startswith("cfg/train_supernet") for key in logged.data.params)
    assert history(logged.info.run_id, "train_loss") == [(step, 1 / (step + 1)) for step in range(5)]
    assert {i.dataset.name: i.dataset.digest for i in logged.inputs.dataset_inputs} == {
        "fashion-mnist/card": "a" * 36, "fashion-mnist/train_split": "b" * 36,
    }  # fmt: skip
    shown_table = client().load_table(logged.info.experiment_id, "candidates.json", [logged.info.run_id])
    shown_table = shown_table.astype(object).where(shown_table.notna(), None)
    assert shown_table["top1_percent"].tolist() == [80.5, 81] and shown_table["origin"].tolist() == [
        "initial",
        "mutation",
    ]
    assert [file.path for file in client().list_artifacts(logged.info.run_id)] == ["candidates.csv", "candidates.json"]
    children = runs("tags.stage = 'candidate'")
    assert {child.info.run_name for child in children} == {"candidate 7", "candidate 8"}
    assert all(child.info.status == "FINISHED" for child in children)
    assert all(child.data.tags["mlflow.parentRunId"] == logged.info.run_id for child in children)
    whole = client().get_run(parent).data
    assert whole.params["cfg/train_supernet.epochs"] and whole.tags["preset"] == "smoke"


def test_a_candidate_becomes_flat_parameters_and_metrics() -> None:
    assert child_run(CANDIDATE, [SPEC]) == {
        "name": "candidate 7",
        "params": {
            "arch/depth": 2, "arch/embed_dim": 64, "arch/num_heads": "4;8", "arch/mlp_ratio": "2;3.5",
            "arch/mean_num_heads": 6.0, "arch/mean_mlp_ratio": 2.75,
        },
        "metrics": {"val/top1": 81.25, "val/loss": 0.5, "cost/params_m": 0.25, "cost/macs_g": 0.003},
        "tags": {
            "origin": "mutation", "generation": "2", "parents": "3", "images": "3000", "chosen": "True",
            "front": "False",
            "arch": "depth 2, width 64, heads 4 8, ratios 2 3.5",
        },
    }  # fmt: skip


def test_a_step_that_failed_resumes_its_own_run(
    store: str,
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parent = tracking.open_pipeline_run(config)
    monkeypatch.setenv("AUTOFORMER_PARENT_RUN_ID", parent)
    records: list[dict[str, Any]] = [{}, {}, {}]
    with (
        pytest.raises(AutoFormerError, match="loss is nan"),
        tracking.step_run("train_supernet", config, records[0]) as run,
    ):
        run.metrics({"loss": 3.0}, 1)
        run.metrics({"loss": 2.0}, 2)
        run.child_runs([child_run(one, [SPEC]) for one in (CANDIDATE,)])
        raise AutoFormerError("the loss is nan")
    failed = client().get_run(records[0]["mlflow_run_id"])
    assert (failed.info.status, failed.data.tags["error"]) == ("FAILED", "the loss is nan")

    with tracking.step_run("train_supernet", config, records[1]) as run:
        assert client().get_run(run.run_id).info.status == "RUNNING"
        run.metrics({"loss": 2.0}, 2)  # again: the checkpoint was older than the last point
        run.metrics({"loss": 1.0}, 3)
        run.child_runs([child_run(one, [SPEC]) for one in (CANDIDATE,)])
    assert records[1] == records[0]
    finished = client().get_run(records[1]["mlflow_run_id"])
    assert finished.info.status == "FINISHED" and "error" not in finished.data.tags
    assert history(finished.info.run_id, "loss") == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert len(runs("tags.stage = 'candidate'")) == 1

    with tracking.step_run("train_supernet", config, records[2], {"code": "other"}):
        pass
    assert records[2]["mlflow_run_id"] != records[1]["mlflow_run_id"]  # a finished run of other work stays as it is


def test_a_step_that_was_killed_after_its_run_had_finished_resumes_that_run(store: str, config: Config) -> None:
    """Under each runner: ours, DVC, and KFP on a cluster. Its points are logged once."""
    ours = {"AUTOFORMER_PARENT_RUN_ID": tracking.open_pipeline_run(config)}
    provenance = {"code": "c0de", "inputs": {"card": "a" * 64}}
    for runner in (ours, {"KFP_RUN_ID": "kfp-1"}, {}):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in runner.items():
                patch.setenv(name, value)
            ids = []
            for inputs in (provenance, provenance, {**provenance, "inputs": {"card": "b" * 64}}):
                record: dict[str, Any] = {}
                with tracking.step_run("retrain_subnet", config, record, inputs) as run:
                    run.metrics({"loss": 2.0}, 1)
                ids.append(record["mlflow_run_id"])
        assert ids[0] == ids[1] != ids[2]
        assert history(ids[0], "loss") == [(1, 2.0)]
        assert client().get_run(ids[0]).info.status == "FINISHED"


def test_an_unfinished_pipeline_run_is_resumed(store: str, config: Config) -> None:
    first = tracking.open_pipeline_run(config)
    assert tracking.open_pipeline_run(config) == first
    tracking.close_pipeline_run(first, "KILLED")
    assert tracking.open_pipeline_run(config) == first
    other = load_config("smoke", ["seed=5"])
    assert tracking.open_pipeline_run(other) != first
    tracking.close_pipeline_run(first, "FINISHED")
    assert tracking.open_pipeline_run(config) != first


def test_steps_of_dvc_find_one_parent_by_config_and_data(
    store: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    records: list[dict[str, Any]] = [{}, {}]
    for step, record in zip(("prepare_data", "train_supernet"), records, strict=True):
        with tracking.step_run(step, config, record):
            assert client().get_run(record["mlflow_parent_run_id"]).info.status == "RUNNING"
        assert client().get_run(record["mlflow_parent_run_id"]).info.status == "FINISHED"
    parent = records[0]["mlflow_parent_run_id"]
    assert records[1]["mlflow_parent_run_id"] == parent
    monkeypatch.setattr(tracking.runs, "dvc_revision", lambda: "other data")
    for other in (config, load_config("smoke", ["seed=5"])):
        with tracking.step_run("prepare_data", other, records[0]):
            assert records[0]["mlflow_parent_run_id"] != parent
    assert len(runs("tags.stage = 'pipeline'")) == 3


def on_a_cluster(monkeypatch: pytest.MonkeyPatch, kfp_run: str) -> dict[str, Config]:
    """What the steps of a KFP run get: its id, no parent of ours, and their own sections of the configuration."""
    monkeypatch.setenv("KFP_RUN_ID", kfp_run)
    monkeypatch.delenv("AUTOFORMER_PARENT_RUN_ID", raising=False)
    parts = component_outputs("smoke", "", -1, 0.0, package_code(), image="", data="", data_hash="d4ta")
    return {step: load_config(part, steps=[step]) for step, part in zip(STEPS, parts, strict=False)}


def test_the_steps_of_a_kfp_run_find_one_parent_by_its_id(
    store: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds what a run of the local runner holds, though only the last step has the whole configuration."""
    local = tracking.open_pipeline_run(config, {"data_hash": "d4ta", "runner": "kfp.local"})
    tracking.close_pipeline_run(local, "FINISHED")
    nested, parents = {}, set()
    for step, part in on_a_cluster(monkeypatch, "kfp-1").items():
        record: dict[str, Any] = {}
        inputs = {"data": "d4ta"} if step == "prepare_data" else {"card": "c4rd"}
        with tracking.step_run(step, part, record, {"inputs": inputs}):
            parents.add(record["mlflow_parent_run_id"])
            assert client().get_run(record["mlflow_parent_run_id"]).info.status == "RUNNING"
        assert client().get_run(record["mlflow_parent_run_id"]).info.status == "FINISHED"
        nested[step] = client().get_run(record["mlflow_run_id"])
    (parent,) = parents
    ours, theirs = (client().get_run(run_id) for run_id in (parent, local))
    assert (ours.info.run_name, ours.data.params) == (theirs.info.run_name, theirs.data.params)
    different = {"pipeline", "opened_by", "runner"}
    assert {key: value for key, value in ours.data.tags.items() if key not in different} == {
        **{key: value for key, value in theirs.data.tags.items() if key not in different},
        "kfp_run_id": "kfp-1",
    }
    assert [file.path for file in client().list_artifacts(parent)] == ["config.yaml"]
    assert all(run.data.tags["mlflow.parentRunId"] == parent for run in nested.values())
    assert {run.info.status for run in nested.values()} == {"FINISHED"}


def test_a_kfp_run_that_failed_leaves_no_run_at_work_and_a_retry_resumes_them(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = on_a_cluster(monkeypatch, "kfp-2")["train_supernet"]
    records: list[dict[str, Any]] = [{}, {}, {}]
    with pytest.raises(AutoFormerError), tracking.step_run("train_supernet", part, records[0]):
        raise AutoFormerError("the loss is nan")
    assert [run.info.status for run in runs()] == ["FAILED", "FAILED"]
    with pytest.raises(Stopped), tracking.step_run("train_supernet", part, records[1]):
        raise Stopped(signal.SIGTERM)  # as in a pod that is evicted
    assert [run.info.status for run in runs()] == ["KILLED", "KILLED"]
    with tracking.step_run("train_supernet", part, records[2]):
        pass
    assert records[0] == records[1] == records[2]
    assert [run.info.status for run in runs()] == ["FINISHED", "FINISHED"]
    # another KFP run of the same parameters, whose other steps came from the cache
    last = on_a_cluster(monkeypatch, "kfp-3")["register_model"]
    with tracking.step_run("register_model", last, records[0]):
        pass
    assert records[0]["mlflow_parent_run_id"] != records[1]["mlflow_parent_run_id"]
    params = client().get_run(records[0]["mlflow_parent_run_id"]).data.params
    assert params["cfg/train_supernet.epochs"] and params["cfg/search_subnet.population"]


def test_the_run_of_kfp_is_used_and_left_for_kfp_to_end(
    store: str,
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = client().create_run(client().create_experiment("kfp"), run_name="task").info
    client().log_param(given.run_id, "config", "kfp's own parameter")
    monkeypatch.setenv("MLFLOW_RUN_ID", given.run_id)
    record: dict[str, Any] = {}
    with tracking.step_run("prepare_data", config, record) as run:
        run.metrics({"train_images": 9})
    logged = client().get_run(given.run_id)
    assert record["mlflow_run_id"] == given.run_id and "mlflow_parent_run_id" not in record
    assert logged.info.status == "RUNNING" and logged.info.run_name == "task"
    assert logged.data.metrics == {"train_images": 9} and logged.data.params["config"] == "kfp's own parameter"
    assert logged.data.tags["stage"] == "prepare_data"


@pytest.mark.parametrize(("variable", "value"), [("RANK", "1"), ("AUTOFORMER_TRACKING", "off")])
def test_nothing_is_tracked_on_other_ranks_or_when_switched_off(
    variable: str, value: str, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_store(f"sqlite:///{tmp_path}/never.db", tmp_path, monkeypatch)
    monkeypatch.setenv(variable, value)
    with tracking.step_run("train_supernet", config, {}) as run:
        run.metrics({"loss": 1.0})
        run.child_runs([child_run(one, [SPEC]) for one in (CANDIDATE,)])
    assert list(tmp_path.iterdir()) == []


def test_messages_that_mlflow_refuses_delay_nothing(
    store: str,
    config: Config,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    record: dict[str, Any] = {}
    started = time.monotonic()
    with tracking.step_run("prepare_data", config, record) as run:
        run.params({"images": 1})
        run.params({"images": 2})  # a parameter never changes
        run.artifact(tmp_path / "never written.json")
        run.metrics({"after": 1.0})
    assert time.monotonic() - started < 10
    assert client().get_run(record["mlflow_run_id"]).data.metrics == {"after": 1.0}
    backlog = tmp_path / "work" / "tracking" / f"{record['mlflow_run_id']}.json"
    assert backlog.exists()
    assert f"python -m runtime.tracking {backlog}" in capsys.readouterr().err


def test_a_server_that_does_not_exist_is_one_clear_line(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_store(f"http://somebody:secret@127.0.0.1:{free_port()}", tmp_path, monkeypatch)
    monkeypatch.setenv("AUTOFORMER_TRACKING_PATIENCE", "0")
    started = time.monotonic()
    with pytest.raises(AutoFormerError) as caught, tracking.step_run("train_supernet", config, {}):
        pytest.fail("the step must not start")
    assert time.monotonic() - started < 20
    assert "\n" not in str(caught.value) and "MLFLOW_TRACKING_URI" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_patience_that_is_no_number_is_refused_before_anything_runs(
    store: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOFORMER_TRACKING_PATIENCE", "5 min")
    for begin in (tracking.open_pipeline_run, lambda config: tracking.step_run("prepare_data", config, {}).__enter__()):
        with pytest.raises(AutoFormerError, match=r"^AUTOFORMER_TRACKING_PATIENCE=5 min: expected a number of seconds"):
            begin(config)


def test_passwords_are_not_shown() -> None:
    assert without_password("https://me:secret@mlflow.example:5000/x") == "https://mlflow.example:5000/x"
    assert without_password("sqlite:////data/mlflow.db") == "sqlite:////data/mlflow.db"


def step_that_waits(step: str, environment: dict[str, str], pipe: Connection) -> None:
    """Runs in a process of its own."""
    os.environ.clear()
    os.environ.update(environment)
    record: dict[str, Any] = {}
    with stoppable(), tracking.step_run(step, load_config("smoke"), record) as run:
        run.metrics({"loss": 1.0}, 1)
        run.flush(wait_seconds=60)
        pipe.send(record["mlflow_run_id"])
        time.sleep(600)


@pytest.mark.slow
def test_two_first_users_of_a_fresh_store_and_both_ways_to_be_killed(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_store(f"sqlite:///{tmp_path / 'fresh.db'}", tmp_path / "work", monkeypatch)
    context, steps, ids = fork_server(), [], []
    for step in ("train_supernet", "search_subnet"):
        receiver, sender = context.Pipe(duplex=False)
        steps.append((context.Process(target=step_that_waits, args=(step, dict(os.environ), sender)), receiver))
        steps[-1][0].start()
    try:
        for _, receiver in steps:
            assert receiver.poll(PATIENCE_SECONDS)
            ids.append(receiver.recv())
        steps[0][0].terminate()
        steps[1][0].kill()
        assert [ended(process) for process, _ in steps] == [128 + signal.SIGTERM, -signal.SIGKILL]
    finally:
        for process, _ in steps:
            process.kill()
    assert all(ids)
    assert [client().get_run(run_id).info.status for run_id in ids] == ["KILLED", "RUNNING"]
    assert len(runs("tags.stage = 'pipeline'")) == 1
    for step_name, run_id in zip(("train_supernet", "search_subnet"), ids, strict=True):
        record: dict[str, Any] = {}
        with tracking.step_run(step_name, config, record) as run:
            run.metrics({"loss": 0.5}, 2)
        assert record["mlflow_run_id"] == run_id
        assert history(run_id, "loss") == [(1, 1.0), (2, 0.5)]
    assert {run.info.status for run in runs()} == {"FINISHED"}
    assert len(runs()) == 3


def test_a_locked_sqlite_file_is_waited_for_beyond_mlflows_own_retries(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One try of MLflow's waits 5 s for the lock; another process holds it for 6 s."""
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1)
    monkeypatch.setattr("runtime.tracking.store.POLL_SECONDS", 0.2)
    holder = sqlite3.connect(store.removeprefix("sqlite:///"), isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN EXCLUSIVE")
    release = threading.Timer(6.0, holder.rollback)
    release.start()
    try:
        assert tracking.initialise(store).search_registered_models(max_results=1) == []
    finally:
        release.join()
        holder.close()
