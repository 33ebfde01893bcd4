"""Stores that are away for a minute: the part of `make chaos` that waits. It runs on one worker, beside the kills."""

import os
import shutil
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from faulted_steps import House, Row, house, step_runs
from faulty_proxy import Fault, FaultyProxy
from mlflow_server import free_port, server, wait_for
from run_steps import contents, run
from test_outages import Away, away, served
from test_storage_steps import at_steps
from tracking_fixtures import use_store

from autoformer.training import Trainer
from runtime.common.config import ROOT
from runtime.storage.artifacts import local_copy
from runtime.storage.objects import list_objects

__all__ = ["away", "house", "served"]
TAKE_STEP = Trainer.take_step
AWAY_SECONDS = 60.0
DRIVER = ROOT / ".psycopg2"  # `make postgresql` installs it there: the lock of the environment has none


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The trainer's methods are as they were after the test."""
    monkeypatch.setattr(Trainer, "take_step", Trainer.take_step)
    return monkeypatch


def during_training(
    house: House, patched: pytest.MonkeyPatch, name: str, go: Callable[[], object], come: Callable[[], object]
) -> None:
    """Train in this process; `go` after step 5, `come` a minute later, in a thread."""
    step, given, timer = "train_supernet", house.given("train_supernet", name), threading.Timer(AWAY_SECONDS, come)
    house.expected(step)

    def fault() -> None:
        go()
        timer.start()

    at_steps(patched, {5: fault})
    with house.experiment(name):
        house.holds(step, given)
    timer.join()


@pytest.mark.parametrize("now", ["refused", "silent", "503", "slow"])
def test_mlflow_is_away_for_a_minute(now: str, away: Away, house: House, patched: pytest.MonkeyPatch, row: Row) -> None:
    patched.setenv("AUTOFORMER_WORK", str(house.root / "work"))
    patched.setenv("AUTOFORMER_TRACKING_PATIENCE", "300")
    during_training(house, patched, f"mlflow-{now}", partial(away.line.turn, now), partial(away.line.turn, "open"))
    row("MLflow's server", f"{now} for {AWAY_SECONDS:.0f} s", 1)


def test_a_sqlite_file_is_locked_for_most_of_a_minute(house: House, patched: pytest.MonkeyPatch, row: Row) -> None:
    holder = sqlite3.connect(house.root / "mlflow.db", isolation_level=None, check_same_thread=False)
    during_training(house, patched, "locked", partial(holder.execute, "BEGIN EXCLUSIVE"), holder.rollback)
    holder.close()
    row("MLflow's sqlite file", f"locked for {AWAY_SECONDS:.0f} s", 1)


def test_postgresql_restarts(house: House, patched: pytest.MonkeyPatch, tmp_path: Path, row: Row) -> None:
    """Behind MLflow's server; Debian's programs, as their own user, and the driver for that server alone."""
    with postgresql(tmp_path) as (uri, restart):
        port = free_port()
        with server(tmp_path, port, environment={"PYTHONPATH": str(DRIVER)}, store=uri):
            wait_for(port)
            use_store(f"http://127.0.0.1:{port}", house.root / "work", patched)
            during_training(house, patched, "postgresql", partial(restart, "stop"), partial(restart, "start"))
    row("PostgreSQL behind MLflow's server", f"stopped for {AWAY_SECONDS:.0f} s", 1)


@contextmanager
def postgresql(root: Path) -> Iterator[tuple[str, Callable[[str], None]]]:
    """Its address, and a function that stops or starts it."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))  # Debian has them in no PATH
    if not programs or not DRIVER.exists() or os.geteuid():
        pytest.skip("POSTGRESQL IS NOT TESTED HERE: `make postgresql` installs it (as root, on Debian)")
    folder, port = Path(tempfile.mkdtemp(prefix="postgresql-")), free_port()
    shutil.chown(folder, "postgres")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"

    def control(what: str) -> None:
        command = [programs[-1] / "pg_ctl", "-D", str(folder / "data"), "-w", "-l", str(folder / "log"), what]
        more = {"start": ["-o", options], "stop": ["-m", "fast"], "init": ["-o", "-A trust"]}[what]
        subprocess.run([*command, *more], check=True, user="postgres", cwd=folder, stdout=subprocess.DEVNULL)

    control("init")
    control("start")
    try:
        yield f"postgresql+psycopg2://postgres@127.0.0.1:{port}/postgres", control
    finally:
        control("stop")
        shutil.rmtree(folder)


@pytest.mark.parametrize("fault", ["away", "slow", "503", "restarted"])
def test_s3_is_away_for_a_minute(
    fault: str, house: House, faulty: FaultyProxy, patched: pytest.MonkeyPatch, row: Row
) -> None:
    """Checkpoints and weights go to S3; at the end only the weights are there, and they are the same."""
    step, name, store = "train_supernet", f"s3-{fault}", faulty.server.uri(f"chaos-{fault}")
    given, expected = house.given(step, name), house.expected(step)
    patched.setenv("AUTOFORMER_STORE", store)
    patched.setattr("runtime.storage.mirror.EVERY_SECONDS", 0.1)
    timer = threading.Timer(AWAY_SECONDS if fault != "restarted" else 2.0, faulty.forget)

    def go() -> None:
        faulty.is_down = fault in ("away", "restarted")
        faulty.faults = [Fault("answer", "", "SlowDown")] if fault == "503" else []
        faulty.before = lambda line: time.sleep(1.0 if fault == "slow" else 0.0)
        timer.start()

    at_steps(patched, {5: go})
    with house.experiment(name):
        code = run(step, given)
        timer.join()
        patched.setattr(Trainer, "take_step", TAKE_STEP)
        assert code == 0 or run(step, given) == 0
        assert step_runs(step) == ["FINISHED"]
    found = contents(local_copy(Path(given["--out"])))
    assert found == {name.removeprefix("out/"): content for name, content in expected.items()}
    assert list_objects(f"{store}/work") == []
    row("S3", f"{fault}, exit code {code}", 1)
