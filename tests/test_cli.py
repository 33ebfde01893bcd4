"""Shared by all command lines: exit codes, one-line errors, progress, and the end with the runner."""

import argparse
import json
import multiprocessing
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from started import started

from autoformer.errors import AutoFormerError
from runtime.common import console as cli
from runtime.common.config import ROOT, Config
from runtime.common.console import Progress, existing, repeat_failure
from runtime.common.exit_codes import BAD_INPUT
from runtime.steps.command import run_step, step_parser

STEP = "evaluate_subnet"
LINE = "work: 6/10 images, 2/s, 0.0 min left"


def refuse(arguments: argparse.Namespace, config: Config) -> None:
    raise AutoFormerError(f"{config.name}: nothing to do")


def run(body: object = refuse, *argv: str) -> int:
    return run_step(STEP, step_parser(STEP, "A test."), body, ["--config", "smoke", *argv])  # type: ignore[arg-type]


def test_bad_input_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == BAD_INPUT == 2
    assert capsys.readouterr().err == f"{STEP}: smoke: nothing to do\n"
    assert run(refuse, "--set", "sed=1") == BAD_INPUT
    assert capsys.readouterr().err.endswith("unknown key 'sed'; did you mean 'seed'?\n")


def test_overrides_reach_the_step() -> None:
    seen: list[Config] = []
    given = ("--set", "seed=4 name='my run'", "--set", "threads=1")  # the rule of `make SET=…`
    assert run(lambda arguments, config: seen.append(config), *given) == 0
    assert (seen[0].seed, seen[0].name, seen[0].threads) == (4, "my run", 1)


def test_the_runner_gets_the_reason_of_a_failed_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "failure.json"
    monkeypatch.setenv("AUTOFORMER_FAILURE", str(file))
    assert run(lambda arguments, config: None) == 0
    assert not file.exists()
    run()
    assert json.loads(file.read_text()) == {"step": STEP, "message": "smoke: nothing to do", "code": 2}


@pytest.mark.parametrize(
    ("body", "code", "line"),
    [
        (lambda arguments, config: os.kill(os.getpid(), signal.SIGKILL), 137, "was killed, as where memory runs out"),
        (lambda arguments, config: os._exit(1), 137, "was killed"),
        (lambda arguments, config: 1 // 0, 1, "ZeroDivisionError; its traceback is above"),
        (refuse, 2, "smoke: nothing to do"),
        (lambda arguments, config: os.kill(os.getpid(), signal.SIGTERM), 143, "stopped by SIGTERM"),
    ],
)
def test_a_runner_ends_with_the_code_of_its_step(
    body: object,
    code: int,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """KFP's local runner and DVC state no more than that a step has failed."""
    file = tmp_path / "failure.json"
    monkeypatch.setenv("AUTOFORMER_FAILURE", str(file))
    process = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(run(body)))
    process.start()
    process.join(30)
    assert process.exitcode
    capfd.readouterr()
    assert repeat_failure("pipeline", file) == code
    assert capfd.readouterr().err.startswith(f"{STEP}: {line}")


def test_a_runner_whose_step_has_written_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert repeat_failure("pipeline", tmp_path / "none.json") == 1
    assert capsys.readouterr().err == "pipeline: a step failed; its messages are above\n"


def test_a_missing_input_names_its_maker(tmp_path: Path) -> None:
    assert existing(tmp_path, "nobody") == tmp_path
    with pytest.raises(AutoFormerError, match=r"gone: no such file or folder; it is made by train_supernet"):
        existing(tmp_path / "gone", "train_supernet")


def test_a_bug_is_not_called_bad_input() -> None:
    with pytest.raises(ZeroDivisionError):
        run(lambda arguments, config: 1 // 0)


class Clock:
    """Replaces the module `time`; the test moves the seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(cli, "time", clock)
    monkeypatch.delenv("AUTOFORMER_TTY", raising=False)
    return clock


def test_without_a_terminal_there_is_one_line_a_minute_and_one_at_the_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("work", 240, "images") as progress:
        for done in range(1, 121):
            clock.now += 1
            progress.update(done, f"loss {done}")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "work: 60/240 images, 1/s, 3.0 min left loss 60",
        "work: 120/240 images, 1/s, 2.0 min left loss 120",
        "work: 120/240 images, 1/s, 2.0 min left",
    ]


def test_rate_and_time_left_leave_out_what_an_earlier_try_did(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("work", 10, "images", initial=4) as progress:
        clock.now += 1
        progress.update(6)
    assert capsys.readouterr().out == f"{LINE}\n"
    with Progress("work", 10, "images", initial=4) as progress:
        clock.now += 3
        progress.update(10)
    assert capsys.readouterr().out == "work: 10/10 images, 2/s, took 3 s\n"


def read_until(terminal: int, text: str) -> str:
    """The output on a terminal, up to the read that completes `text`."""
    drawn = ""
    while text not in drawn:
        readable, _, _ = select.select([terminal], [], [], 10)
        assert readable, f"nothing more came after {drawn!r}"
        drawn += os.read(terminal, 10_000).decode()
    return drawn


def test_a_bar_is_drawn_on_the_terminal_that_the_runner_names(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """KFP pipes what a step prints; the bar goes to the terminal itself, and no line to the pipe."""
    master, slave = pty.openpty()
    monkeypatch.setenv("AUTOFORMER_TTY", os.ttyname(slave))
    try:
        with Progress("work", 10, "images") as progress:
            time.sleep(0.15)  # tqdm draws ten times a second at most
            progress.update(7, "loss 0.5")
            drawn = read_until(master, "loss 0.5")
    finally:
        os.close(slave)
        os.close(master)
    assert "work:  70%" in drawn and "7/10" in drawn and "images/s" in drawn
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("has_terminal", [True, False])
def test_a_result_on_the_way_is_a_line_of_its_own_in_logs_and_beside_a_bar(
    has_terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    master, slave = pty.openpty()
    monkeypatch.delenv("AUTOFORMER_TTY", raising=False)
    if has_terminal:
        monkeypatch.setenv("AUTOFORMER_TTY", os.ttyname(slave))
    try:
        with Progress("work", 10, "images") as progress:
            time.sleep(0.15)
            progress.update(7, "loss 0.5")
            if has_terminal:
                read_until(master, "loss 0.5")
            progress.print_above("work: a first score of 81.25 %")
            if has_terminal:
                assert read_until(master, " \r").strip() == ""  # the bar makes room for the line
            assert capsys.readouterr().out == "work: a first score of 81.25 %\n"
    finally:
        os.close(slave)
        os.close(master)


def test_a_terminal_that_is_gone_is_no_error(clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUTOFORMER_TTY", str(tmp_path / "no" / "terminal"))
    with Progress("work", 1, "images") as progress:
        progress.update(1)


WAITING_STEP = """
import time
from runtime.steps.command import run_step, step_parser

def wait(arguments, config):
    print("running", flush=True)
    time.sleep(60)

raise SystemExit(run_step("evaluate_subnet", step_parser("evaluate_subnet", ""), wait, ["--config", "smoke"]))
"""


def test_a_command_does_not_collect_garbage_as_it_ends() -> None:
    """It takes seconds once torch and MLflow are imported. What was registered first runs last."""
    code = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 1000)); "
    code += "from runtime.common.console import Parser; Parser(); print(gc.get_freeze_count())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "0\nTrue\n"


def test_a_step_ends_when_its_runner_is_killed() -> None:
    with started(["sleep", "60"]) as runner:
        environment = os.environ | {"AUTOFORMER_RUNNER_PID": str(runner.pid)}
        command = [sys.executable, "-c", WAITING_STEP]
        with started(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as step:
            assert step.stdout is not None and step.stdout.readline() == "running\n"
            assert step.poll() is None
            runner.kill()
            runner.wait()
            _, error = step.communicate(timeout=30)
            assert step.returncode == 143
            assert error == "evaluate_subnet: stopped by SIGTERM; the same command resumes from there\n"
