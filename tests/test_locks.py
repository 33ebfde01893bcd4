"""One run at a time in a folder, an output, a checkout: the second gets a one-line error."""

import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from interrupted import Sandbox, sandbox
from processes import at_step, ended, signal_self, start, wait_until
from run_steps import config_of, contents, run
from started import started

from autoformer.errors import AutoFormerError
from pipeline import local, repro
from runtime.common.config import ROOT
from runtime.common.locks import hold_lock

__all__ = ["sandbox"]


def test_two_runs_in_one_folder(sandbox: Sandbox, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The error of the second names the first; once the first is killed, the second resumes."""
    step = "train_supernet"
    given = sandbox.given(step, "two")
    first = start(step, given, tmp_path / "log", (at_step, 15, partial(signal_self, signal.SIGSTOP)))
    try:
        wait_until(lambda: " T " in Path(f"/proc/{first.pid}/stat").read_text())
        for other, what in ((sandbox.given(step, "elsewhere"), "work folder"),
                            (sandbox.given(step, "two", config_of(step, seed=1)), "output")):  # fmt: skip
            assert run(step, other) == 2
            message = capsys.readouterr().err
            assert f"another run is at work in this {what} (process {first.pid} on " in message
            assert message.count("\n") == 1
            assert not Path(other["--out"]).exists() and not Path(other["--record"]).exists()
    finally:
        first.kill()
    assert ended(first) == -signal.SIGKILL
    assert run(step, given) == 0
    assert sandbox.record(given)["resumed_from_step"] == 10
    assert contents(Path(given["--out"])) == sandbox.undisturbed(step)
    assert not list(sandbox.root.rglob(".*.lock"))


def test_a_checkout_runs_one_pipeline_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for runner, name, place_of_lock in ((local, "pipeline", "runs/pipeline"), (repro, "repro", ".dvc/tmp/repro")):
        monkeypatch.setattr(runner, "ROOT", tmp_path)
        with hold_lock(tmp_path / place_of_lock, "checkout"):
            assert runner.main(["--preset", "smoke"]) == 2
        told = capsys.readouterr().err
        expected = (
            rf"{name}: {tmp_path / place_of_lock}: another run is at work in this checkout \(process {os.getpid()} "
        )
        assert re.match(expected, told) and told.count("\n") == 1


HOLDER = """
import os, sys, time
from pathlib import Path
from runtime.common.locks import hold_lock
with hold_lock(Path(sys.argv[1]), "folder"):
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep(60)
    os.wait()
"""


def test_a_child_that_outlives_its_parent_holds_no_lock(tmp_path: Path) -> None:
    """Like the worker of a loader, for a moment."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "folder")]
    with started(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        with pytest.raises(AutoFormerError, match=f"process {parent.pid} on"):
            with hold_lock(tmp_path / "folder", "folder"):
                pass
        parent.kill()
        parent.wait()
        try:
            with hold_lock(tmp_path / "folder", "folder"):
                os.kill(child, 0)  # still there
        finally:
            os.kill(child, signal.SIGKILL)
    assert not list(tmp_path.iterdir())
