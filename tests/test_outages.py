"""Outages of an MLflow server and of the S3 that holds its artifacts: nothing is lost, and no training waits.

A real training, a real MLflow server, moto's real S3 server. The address of the one has a password in it, which must
be written nowhere.
"""

import csv
import itertools
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from mlflow_server import Line, free_port, server, signal_all, stop, wait_for
from planted import WORD, has_secret, leaks
from run_steps import arguments, argv, config_of
from s3_server import S3Server
from test_register_model import NAME, Made
from tiny import TinyData
from tracking_fixtures import make_empty_store, use_store

from autoformer.errors import AutoFormerError
from autoformer.training import Trainer
from components.train_supernet.step import main as train_supernet
from runtime import tracking
from runtime.common.config import load_config
from runtime.tracking import outbox, store
from runtime.tracking.__main__ import main as resend

pytestmark = pytest.mark.slow
REQUEST_SECONDS = 4  # the timeout of a request to a silent server; a training that waited for it would show it


class Away:
    """The two servers, the line to each, and a folder of the bucket."""

    def __init__(self, root: Path, s3: S3Server) -> None:
        self.root, self.s3 = root, s3
        self.port = free_port()
        self.line, self.s3_line = Line(self.port), Line(int(s3.endpoint.rpartition(":")[2]))
        self.process: subprocess.Popen[bytes] | None = None
        self._servers: list[Any] = []

    def start(self) -> None:
        endpoint = f"http://127.0.0.1:{self.s3_line.port}"
        environment = self.s3.environment | {"AWS_ENDPOINT_URL": endpoint, "AWS_MAX_ATTEMPTS": "1"}
        running = server(self.root, self.port, self.s3.uri("outages"), environment)
        self._servers.append(running)
        self.process = running.__enter__()

    def end(self) -> None:
        for running in self._servers:
            running.__exit__(None, None, None)
        self.line.close()
        self.s3_line.close()

    def objects(self) -> dict[str, bytes]:
        """The objects in S3, by the last three parts of their names."""
        client = boto3.client(
            "s3", endpoint_url=self.s3.endpoint, region_name="us-east-1",
            aws_access_key_id="test", aws_secret_access_key="test",
        )  # fmt: skip
        listed = client.list_objects_v2(Bucket=self.s3.bucket, Prefix="outages/").get("Contents", [])
        return {
            "/".join(entry["Key"].split("/")[-3:]): client.get_object(Bucket=self.s3.bucket, Key=entry["Key"])[
                "Body"
            ].read()
            for entry in listed
        }


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, s3_process: S3Server) -> Iterator[Away]:
    root = tmp_path_factory.mktemp("served")
    empty = make_empty_store(tmp_path_factory.getbasetemp() / "mlflow-store")
    shutil.copyfile(empty, root / "mlflow.db")
    away = Away(root, s3_process)
    away.start()
    wait_for(away.port)
    yield away
    away.end()


@pytest.fixture
def away(served: Away, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Away:
    """Both servers reachable, with short pauses, and named by this process's environment."""
    use_store(f"http://me:{WORD}-password@127.0.0.1:{served.line.port}", tmp_path / "work", monkeypatch)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(REQUEST_SECONDS))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("AUTOFORMER_TRACKING_PATIENCE", "60")
    monkeypatch.setattr(outbox, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(outbox, "FINAL_RETRY_SECONDS", 0.1)
    monkeypatch.setattr(store, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(sys.modules["runtime.tracking.step_logger"], "FLUSH_SECONDS", 0.0)
    for line in (served.line, served.s3_line):
        line.turn("open")
    return served


def client() -> Any:
    return tracking.initialise(tracking.tracking_uri())


def history(run_id: str, metric: str) -> list[tuple[int, float]]:
    """The points of a metric, in the store's order."""
    return [(point.step, point.value) for point in client().get_metric_history(run_id, metric)]


def at_steps(do: dict[int, Callable[[], None]], monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Call functions after some steps of the training; return the times at which steps ended."""
    take_step, times = Trainer.take_step, []

    def armed(self: Trainer) -> Any:
        loss = take_step(self)
        if self.step in do:
            do[self.step]()
        times.append(time.monotonic())
        return loss

    monkeypatch.setattr(Trainer, "take_step", armed)
    return times


def test_training_continues_while_the_server_hangs_and_is_killed_and_started_again(
    away: Away, tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each outage is longer than the pause between two attempts; the server is back only after the training."""

    def hang() -> None:
        assert away.process
        signal_all(away.process, signal.SIGSTOP)

    def kill() -> None:
        assert away.process
        stop(away.process)

    def start_again() -> None:
        away.start()

    times = at_steps({10: hang, 40: kill, 55: start_again}, monkeypatch)
    given = arguments("train_supernet", tiny_data, tmp_path, tmp_path / "supernet", config_of("train_supernet"))
    assert train_supernet(argv(given)) == 0
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(times) == 60 and max(gaps) < REQUEST_SECONDS / 2, "no step waited for the server"

    found = client().search_runs(["1"], "", order_by=["attributes.start_time ASC"])
    runs = {run.data.tags["stage"]: run for run in found}
    assert {stage: run.info.status for stage, run in runs.items()} == {
        "pipeline": "FINISHED",
        "train_supernet": "FINISHED",
    }
    with (tmp_path / "supernet" / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    run_id = runs["train_supernet"].info.run_id
    assert history(run_id, "train_loss") == [(int(row["step"]), float(row["train_loss"])) for row in rows]
    assert len(rows) == 12
    assert away.objects()[f"{run_id}/artifacts/history.csv"] == (tmp_path / "supernet" / "history.csv").read_bytes()
    said = capfd.readouterr()
    assert said.err.count("MLflow does not answer") == 1 and "has all that was kept" in said.err
    assert not list((tmp_path / "work" / "tracking").glob("*.json"))
    assert not leaks(tmp_path, away.root) and not has_secret([said.out, said.err])
    assert not any(has_secret(content) for content in away.objects().values())


@pytest.mark.parametrize("now", ["refused", "cut", "silent", "500", "503"])
def test_a_step_continues_whatever_the_server_answers(
    now: str, away: Away, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    table = tmp_path / "candidates.csv"
    table.write_text("id,top1_percent\n0,80.5\n")
    record: dict[str, Any] = {}
    with tracking.step_run("search_subnet", load_config("smoke", ["seed=1"]), record) as run:
        run.metrics({"score": 0.0}, 0)
        run.flush(wait_seconds=60)
        away.line.turn(now)
        started = time.monotonic()
        for step in range(1, 30):
            run.metrics({"score": float(step)}, step)
        run.table(table)
        assert time.monotonic() - started < 0.5, "a step that logs does not wait"
        run.flush(wait_seconds=1.5)
        threading.Timer(0.2, away.line.turn, ["open"]).start()
    logged = client().get_run(record["mlflow_run_id"])
    assert logged.info.status == "FINISHED"
    assert history(logged.info.run_id, "score") == [(step, float(step)) for step in range(30)]
    assert {f"{logged.info.run_id}/artifacts/candidates.{end}" for end in ("csv", "json")} <= away.objects().keys()
    said = capfd.readouterr().err
    assert said.count("MLflow does not answer") == 1 and not has_secret(said)
    assert not list((tmp_path / "work" / "tracking").glob("*.json"))


def test_messages_to_a_server_that_stays_away_are_kept_in_a_file(
    away: Away, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A step that fails in the outage and is resumed after it sends those of the first try; else a command does."""
    monkeypatch.setenv("AUTOFORMER_TRACKING_PATIENCE", "0.2")
    config, record = load_config("smoke", ["seed=2"]), {}
    with pytest.raises(AutoFormerError, match="no memory"):
        with tracking.step_run("train_supernet", config, record) as run:
            away.line.turn("refused")
            run.metrics({"loss": 3.0}, 1)
            raise AutoFormerError("no memory")
    backlog = tmp_path / "work" / "tracking" / f"{record['mlflow_run_id']}.json"
    assert f"python -m runtime.tracking {backlog}" in capfd.readouterr().err
    away.line.turn("open")
    with tracking.step_run("train_supernet", config, record) as run:
        assert run.run_id == record["mlflow_run_id"]
        run.metrics({"loss": 3.0}, 1)  # logged again from the checkpoint's history
        run.metrics({"loss": 2.0}, 2)
        run.flush(wait_seconds=60)
        assert history(run.run_id, "loss") == [(1, 3.0), (2, 2.0)]
        away.line.turn("refused")
        run.metrics({"loss": 1.0}, 3)
    assert backlog.exists() and not leaks(tmp_path)
    assert resend([str(backlog)]) == 2
    said = capfd.readouterr().err
    assert "try again" in said and not has_secret(said)
    away.line.turn("open")
    assert client().get_run(record["mlflow_run_id"]).info.status == "RUNNING"
    assert resend([str(backlog)]) == 0 and not backlog.exists()
    logged = client().get_run(record["mlflow_run_id"])
    assert logged.info.status == "FINISHED" and "error" not in logged.data.tags
    assert history(logged.info.run_id, "loss") == [(1, 3.0), (2, 2.0), (3, 1.0)]


def test_an_outage_of_s3_delays_files_and_nothing_else(
    away: Away, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUTOFORMER_TRACKING_PATIENCE", "1")
    file = tmp_path / "card.json"
    file.write_text("{}")
    record: dict[str, Any] = {}
    with tracking.step_run("prepare_data", load_config("smoke", ["seed=3"]), record) as run:
        away.s3_line.turn("refused")
        run.artifact(file)
        run.metrics({"train_images": 9.0}, 1)
    run_id = record["mlflow_run_id"]
    assert client().get_run(run_id).info.status == "FINISHED"
    assert history(run_id, "train_images") == [(1, 9.0)]
    assert f"{run_id}/artifacts/card.json" not in away.objects()
    away.s3_line.turn("open")
    assert resend([str(tmp_path / "work" / "tracking" / f"{run_id}.json")]) == 0
    assert away.objects()[f"{run_id}/artifacts/card.json"] == b"{}"
    said = capfd.readouterr().err
    assert "MLflow takes no " in said and not has_secret(said)


def test_a_step_that_begins_in_an_outage_waits_for_its_end(
    away: Away, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config, record = load_config("smoke", ["seed=4"]), {}
    away.line.turn("refused")
    threading.Timer(0.5, away.line.turn, ["open"]).start()
    with tracking.step_run("train_supernet", config, record) as run:
        run.metrics({"loss": 1.0}, 1)
    assert client().get_run(record["mlflow_run_id"]).info.status == "FINISHED"
    said = capfd.readouterr().err
    assert said.count("waiting for it, up to 60 s") == 1 and not has_secret(said)
    away.line.turn("503")
    monkeypatch.setenv("AUTOFORMER_TRACKING_PATIENCE", "0.3")
    with pytest.raises(AutoFormerError, match="cannot be used") as caught:
        with tracking.step_run("train_supernet", config, {}):
            pytest.fail("a step does not begin without its run")
    assert not has_secret(str(caught.value))


def test_a_runner_ends_its_run_after_an_outage(away: Away, tmp_path: Path) -> None:
    config = load_config("smoke", ["seed=5"])
    run_id = tracking.open_pipeline_run(config)
    away.line.turn("503")
    threading.Timer(0.5, away.line.turn, ["open"]).start()
    tracking.close_pipeline_run(run_id, "FINISHED")
    assert client().get_run(run_id).info.status == "FINISHED"
    assert not list((tmp_path / "work" / "tracking").glob("*.json"))


def test_a_model_is_registered_once_though_the_first_try_fails(
    away: Away, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """S3 is away when the model is logged, then the server when the champion is looked up; the third try has both."""
    monkeypatch.setenv("AUTOFORMER_TRACKING_PATIENCE", "0.3")
    made = Made(tmp_path / "made", seed=0, top1_percent=88.0)
    away.s3_line.turn("refused")
    started = time.monotonic()
    assert made.register()[0] == 2
    away.line.turn("refused")
    assert made.register()[0] == 2
    assert time.monotonic() - started < 60  # the usual patience is 300 s
    said = capfd.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("register_model: ")]
    assert len(lines) == 2 and all("cannot be used" in line for line in lines) and not has_secret(said)
    for line in (away.line, away.s3_line):
        line.turn("open")
    code, decided, record = made.register()
    assert (code, decided["decision"], decided["version"]) == (0, "registered", "1")
    assert [version.version for version in client().search_model_versions(f"name = '{NAME}'")] == ["1"]
    assert client().get_run(record["mlflow_run_id"]).info.status == "FINISHED"
    assert any(name.endswith("model.safetensors") for name in away.objects())
    assert not leaks(tmp_path, away.root) and not any(has_secret(content) for content in away.objects().values())


def test_files_come_through_the_server_whose_s3_its_clients_cannot_reach(away: Away, tmp_path: Path) -> None:
    """MLflow's client asks a server with an S3 for addresses there, unless it is configured not to."""
    from mlflow.artifacts import download_artifacts

    (tmp_path / "card.json").write_text("{}")
    record: dict[str, Any] = {}
    with tracking.step_run("prepare_data", load_config("smoke", ["seed=6"]), record) as run:
        run.artifact(tmp_path / "card.json")
    came = download_artifacts(
        run_id=record["mlflow_run_id"], artifact_path="card.json", dst_path=str(tmp_path / "came")
    )
    assert Path(came).read_text() == "{}"
    requests = (away.root / "server.log").read_text()
    assert "mlflow-artifacts/artifacts/" in requests and "mlflow-artifacts/presigned/" not in requests
