"""A step that gets a signal saves its work within seconds, and the same command resumes it."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from interrupted import Sandbox, sandbox
from processes import at_candidate, at_step, ended, signal_self, start, wait_until
from run_steps import argv, config_of, contents, run
from started import started
from tracking_fixtures import empty_store, store

from runtime.common import stopping
from runtime.common.config import ROOT

__all__ = ["empty_store", "sandbox", "store"]
TERM, INT = partial(signal_self, signal.SIGTERM), partial(signal_self, signal.SIGINT)


def test_sigterm_in_the_midst_of_a_row(sandbox: Sandbox, tmp_path: Path) -> None:
    """The step is no multiple of any period; a second signal changes nothing."""
    step, given, log = "train_supernet", sandbox.given("train_supernet", "terminated"), tmp_path / "log"

    assert ended(start(step, given, log, (at_step, 33, TERM), (at_step, 33, INT))) == 143
    assert log.read_text().splitlines()[-1] == (
        "train_supernet: stopped by SIGTERM at step 33 of 60; the same command resumes from there"
    )
    assert not Path(given["--out"]).exists()
    assert sandbox.record(given)["succeeded"] is False
    state = torch.load(sandbox.work(step, "checkpoint-interrupted.pt")[0], weights_only=True)
    assert (state["trainer"]["step"], len(state["losses"]), state["history"][-1]["step"]) == (33, 3, 30)

    assert ended(start(step, given, log, (at_step, 34, INT))) == 130
    assert "resumed from step 33 of 60" in log.read_text()
    assert run(step, given) == 0
    assert sandbox.record(given)["resumed_from_step"] == 34
    assert contents(Path(given["--out"])) == sandbox.undisturbed(step)
    assert sandbox.work(step, "*") == []


def test_sigterm_while_the_search_split_is_scored(sandbox: Sandbox, tmp_path: Path) -> None:
    """The row is complete by then; only its accuracies are computed again."""
    step, given, log = "train_supernet", sandbox.given("train_supernet", "scoring"), tmp_path / "log"
    assert ended(start(step, given, log, (in_scoring, TERM))) == 143
    assert "at step 20 of 60" in log.read_text()
    assert run(step, given) == 0
    assert sandbox.record(given)["resumed_from_step"] == 20
    assert contents(Path(given["--out"])) == sandbox.undisturbed(step)


def in_scoring(do: "partial[None]") -> None:
    from runtime.steps.training_loop import SearchSplitAccuracy

    score = SearchSplitAccuracy.top1_percent

    def armed(self: SearchSplitAccuracy, forward: object) -> float:
        do()
        return score(self, forward)  # type: ignore[arg-type]

    SearchSplitAccuracy.top1_percent = armed  # type: ignore[method-assign]


def test_sigterm_in_retraining_and_in_a_search(sandbox: Sandbox, tmp_path: Path) -> None:
    for step, event, note in (
        ("retrain_subnet", (at_step, 17, TERM, 1), "at step 17 of 90"),
        ("search_subnet", (at_candidate, 4, TERM), "after 4 scored candidates"),
    ):
        given, log = sandbox.given(step, f"{step}-terminated"), tmp_path / "log"
        assert ended(start(step, given, log, event)) == 143
        assert log.read_text().splitlines()[-1] == (
            f"{step}: stopped by SIGTERM {note}; the same command resumes from there"
        )
        assert run(step, given) == 0
        assert contents(Path(given["--out"])) == sandbox.undisturbed(step)


def test_a_step_ends_with_its_killed_runner_and_nothing_is_lost(sandbox: Sandbox, tmp_path: Path, store: str) -> None:
    """No orphan continues to write; the status of one MLflow run is KILLED, then FINISHED."""
    from mlflow import MlflowClient

    step, config = "train_supernet", config_of("train_supernet", seed=3)
    given = sandbox.given(step, "orphan", config)
    with started(["sleep", "250"]) as runner, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOFORMER_RUNNER_PID", str(runner.pid))
        process = start(
            step, given, tmp_path / "log", (at_step, 22, partial(os.kill, runner.pid, signal.SIGKILL)), SLOW
        )
        wait_until(lambda: runner.poll() is not None or not process.is_alive())
        assert runner.poll() == -signal.SIGKILL, (tmp_path / "log").read_text()
        began = time.monotonic()
        assert ended(process) == 143
        assert time.monotonic() - began < 20
    work = tmp_path / "work" / step
    (checkpoint,) = work.glob("*/checkpoint-interrupted.pt")
    stopped_at = torch.load(checkpoint, weights_only=True)["trainer"]["step"]
    assert 22 <= stopped_at < 60
    (mlflow_run,) = [r for r in runs(MlflowClient(store)) if r.data.tags["stage"] == step]
    assert mlflow_run.info.status == "KILLED"
    assert run(step, given) == 0
    assert sandbox.record(given)["resumed_from_step"] == stopped_at
    (again,) = [r for r in runs(MlflowClient(store)) if r.data.tags["stage"] == step]
    assert (again.info.run_id, again.info.status) == (mlflow_run.info.run_id, "FINISHED")
    assert contents(Path(given["--out"])) == sandbox.undisturbed(step, config)


def runs(client: object) -> list[object]:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]  # type: ignore[attr-defined]
    return list(client.search_runs(experiments))  # type: ignore[attr-defined]


def slowly(seconds: float) -> None:
    """Slow steps, so that there is still work when the runner is missed."""
    from autoformer.training import Trainer

    take_step = Trainer.take_step

    def slow(self: Trainer) -> object:
        time.sleep(seconds)
        return take_step(self)

    Trainer.take_step = slow  # type: ignore[method-assign,assignment]


SLOW = (slowly, 0.1)
DVC = """
stages:
  train_supernet:
    cmd: {python} -m components.train_supernet {arguments}
    outs: [{out}]
"""


@pytest.mark.slow
def test_dvc_repro_that_is_killed_and_repeated(sandbox: Sandbox, tmp_path: Path) -> None:
    """Started by hand and killed during training: its stage ends too, and the next `dvc repro` resumes it."""
    step, config = "train_supernet", config_of("train_supernet", epochs=40, score_steps=100, checkpoint_steps=50)
    given = sandbox.given(step, "dvc", config) | {
        "--config": "config.yaml",
        "--out": "supernet",
        "--record": "record.json",
    }
    (tmp_path / "config.yaml").write_text(config)
    (tmp_path / "dvc.yaml").write_text(
        DVC.format(python=sys.executable, arguments=" ".join(argv(given)), out="supernet")
    )
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(tmp_path / "dvc"),
    }
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "--no-scm", "--quiet"], cwd=tmp_path, env=environment, check=True)
    with started([*dvc, "repro"], cwd=tmp_path, env=environment) as first:
        wait_until(lambda: sandbox.work(step, "checkpoint.pt") or first.poll() is not None)
        first.kill()
    wait_until(lambda: not list((sandbox.root / "work" / step).glob(".*.lock")))
    assert sandbox.work(step, "checkpoint-interrupted.pt") and not (tmp_path / "supernet").exists()
    subprocess.run([*dvc, "repro"], cwd=tmp_path, env=environment, check=True)
    assert '"resumed_from_step"' in (tmp_path / "record.json").read_text()
    assert contents(tmp_path / "supernet") == sandbox.undisturbed(step, config)


RUNNER = """
import os, subprocess, sys, time
from runtime.common.stopping import Stopped, stoppable
from pipeline.step_processes import StepProcesses

os.environ["AUTOFORMER_RUNNER_PID"] = str(os.getpid())
steps = StepProcesses()
try:
    with stoppable(steps.signal):
        process = subprocess.Popen(["sh", "-c", '"$0" -c "$1"; exit $?', sys.executable, sys.argv[1]])
        process.wait()
except Stopped as stopped:
    steps.stop(float(sys.argv[2]))
    print(stopped, process.wait(), flush=True)
    raise SystemExit(stopped.code)
"""
LOYAL = """
import multiprocessing, pathlib, signal, time
worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
worker.start()
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
pathlib.Path("started").touch()
while not told:
    time.sleep(0.05)
time.sleep(0.5)
pathlib.Path("checkpoint").write_text(f"worker lived: {worker.is_alive()}")
worker.kill()
raise SystemExit(143)
"""
STUBBORN = """
import pathlib, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path("started").touch()
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("number", "step", "patience", "code"),
    [(signal.SIGTERM, LOYAL, 60, 143), (signal.SIGINT, LOYAL, 60, 143), (signal.SIGTERM, STUBBORN, 1, -9)],
)
def test_a_runner_that_gets_a_signal_waits_for_its_steps(
    number: signal.Signals, step: str, patience: int, code: int, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", RUNNER, step, str(patience)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with started(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as runner:
        wait_until((tmp_path / "started").exists)
        runner.send_signal(number)
        told = runner.communicate(timeout=60)[0]
    assert runner.returncode == 128 + number
    assert told == f"stopped by {number.name} {code}\n"
    if step == LOYAL:
        assert (tmp_path / "checkpoint").read_text() == "worker lived: True"


def test_a_runner_waits_for_its_steps_where_everybody_gets_the_signal(tmp_path: Path) -> None:
    """As from systemd: the shell between them ends at once, and the step is no descendant of the runner any more."""
    command = [sys.executable, "-c", RUNNER, LOYAL, "60"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with started(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as runner:
        wait_until((tmp_path / "started").exists)
        (shell,) = psutil.Process(runner.pid).children()
        for process in (psutil.Process(runner.pid), shell, *shell.children()):
            process.send_signal(signal.SIGTERM)
        assert runner.wait(60) == 128 + signal.SIGTERM
    assert (tmp_path / "checkpoint").exists()


SWALLOWED = """
import contextlib, os, signal, time, weakref
from runtime.common.stopping import Stopped, delay_signals, stoppable
class Thing:
    pass
class Final:
    def __del__(self):
        send()
def send(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)
def weakref_callback():
    thing = Thing()
    reference = weakref.ref(thing, send)
    del thing
def finaliser():
    Final()
def library():
    with contextlib.suppress(BaseException):
        send()
def delayed():
    with contextlib.suppress(BaseException), delay_signals():
        send()
def last_statement():
    with contextlib.suppress(BaseException):
        send()
try:
    with stoppable():
        {swallow}()
        if "{swallow}" != "last_statement":
            time.sleep(5)
        print("worked to its end")
except Stopped as stopped:
    print(stopped)
"""


@pytest.mark.parametrize("swallow", ["weakref_callback", "finaliser", "library", "delayed", "last_statement"])
def test_a_signal_whose_exception_is_swallowed_stops_the_work_all_the_same(swallow: str) -> None:
    program = SWALLOWED.replace("{swallow}", swallow)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1:] == ["stopped by SIGTERM"], done.stdout + done.stderr
    assert time.monotonic() - started < 5


CLEANED = """
import contextlib, os, signal, time
from runtime.common.stopping import Stopped, stoppable
@contextlib.contextmanager
def inner():
    try:
        yield
    finally:
        try:
            raise OSError
        except OSError:
            time.sleep(0.3)
            print("in an error of its own")
        time.sleep(0.3)
try:
    with stoppable():
        try:
            with inner():
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(9)
        except Stopped:
            for _ in range(4):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.3)
            print("whole")
            raise
except Stopped as stopped:
    print(stopped)
"""


def test_a_clean_up_is_interrupted_by_no_later_signal_and_no_timer() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", CLEANED], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["in an error of its own", "whole", "stopped by SIGINT"], done.stderr


def test_a_forked_child_ends_by_sigterm_and_leaves_ctrl_c_to_its_parent() -> None:
    with stopping.stoppable():
        child = os.fork()
        if child == 0:
            ours = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
            os._exit(0 if ours == (signal.SIG_DFL, signal.SIG_IGN) else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, signal.SIG_IGN)


def ask_for_too_much() -> None:
    torch.empty(2**50)


def test_out_of_memory_is_one_line_with_the_accumulation_that_fits(sandbox: Sandbox, tmp_path: Path) -> None:
    """The allocator refuses after step 7. The same command adapts an accumulation of `auto`, not one that was set."""
    step, log, event = "train_supernet", tmp_path / "log", (at_step, 7, ask_for_too_much)
    given = sandbox.given(step, "memory")
    assert ended(start(step, given, log, event)) == 2
    fits = "train_supernet: a forward pass of 50 images does not fit this machine's memory; 25 would fit: "
    assert log.read_text().splitlines()[-1] == f"{fits}the same command resumes with accumulation 2"
    assert not Path(given["--out"]).exists()
    assert run(step, given) == 0
    assert ended(start(step, sandbox.given(step, "memory", config_of(step, accumulation=1)), log, event)) == 2
    assert log.read_text().splitlines()[-1] == (
        f"{fits}set train_supernet.accumulation=2, which makes other draws of mixing, erasing and stochastic depth, "
        "and start it again"
    )


@pytest.mark.parametrize("module", ["components.train_supernet", "commands.predict", "pipeline.local"])
@pytest.mark.parametrize("imported", ["argparse", "autoformer.errors"])
def test_ctrl_c_while_a_program_imports_is_one_line(module: str, imported: str, tmp_path: Path) -> None:
    """At the import of a module of Python and of one of ours; sitecustomize is imported before any program."""
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTS.format(module=imported))
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    with started([sys.executable, "-m", module], env=environment, stderr=subprocess.PIPE, text=True) as process:
        _, printed = process.communicate(timeout=60)
    assert (process.returncode, printed) == (130, "stopped by SIGINT\n")


INTERRUPTS = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "{module}":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""
