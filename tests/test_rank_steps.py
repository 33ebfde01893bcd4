"""Steps in several ranks: kills, restarts, signals, refusals."""

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
from processes import ForkServerProcess, at_step, ended, poison, signal_self, start, wait_until
from run_steps import config_of, contents, run
from together import run_ranks, start_ranks
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from runtime.common import exit_codes
from runtime.common.config import load_config
from runtime.common.processes import REPORT_FOLDER
from runtime.common.records import Failure
from runtime.steps import rank_launch as edge

__all__ = ["sandbox"]
STEP = "train_supernet"
KILL, TERM = (partial(signal_self, number) for number in (signal.SIGKILL, signal.SIGTERM))


def test_ranks_that_were_killed_stopped_and_thrown_back_end_in_the_same_weights(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    """A weight is infinite before step 24. Rank 1 is killed after step 22; then it alone gets a signal after 33."""
    log, spoilt = tmp_path / "log", {rank: [(poison, 23)] for rank in range(2)}
    whole = sandbox.given(STEP, "whole")
    assert run_ranks(STEP, whole, log, spoilt) == [0, 0]
    assert (tmp_path / "log1").read_text() == ""
    assert sandbox.record(whole)["ranks"] == 2
    assert '"back_to_step": 20' in (Path(whole["--out"]) / "rollbacks.json").read_text()

    given = sandbox.given(STEP, "disturbed")
    began = time.monotonic()
    codes = run_ranks(STEP, given, log, {0: spoilt[0], 1: [*spoilt[1], (at_step, 22, KILL)]})
    assert codes == [exit_codes.LOST, -signal.SIGKILL]
    assert time.monotonic() - began < 60
    assert (tmp_path / "log0").read_text().endswith("rank 0 of 2 has lost its connection to the others\n")
    assert not sandbox.work(STEP, "checkpoint-interrupted.pt")

    assert run_ranks(STEP, given, log, {0: spoilt[0], 1: [*spoilt[1], (at_step, 33, TERM)]}) == [143, 143]
    stopped = torch.load(sandbox.work(STEP, "checkpoint-interrupted.pt")[0], weights_only=True)
    step = stopped["trainer"]["step"]
    assert 33 <= step <= 35 and len(stopped["losses"]) == step - 30
    assert f"stopped by SIGTERM at step {step} of 60" in (tmp_path / "log0").read_text()

    assert run_ranks(STEP, given, log, spoilt) == [0, 0]
    assert sandbox.record(given)["resumed_from_step"] == step
    assert contents(Path(given["--out"])) == contents(Path(whole["--out"]))
    assert sandbox.work(STEP, "*") == []


def test_retraining_in_ranks_is_resumed(sandbox: Sandbox, tmp_path: Path) -> None:
    """Two trainings, between which rank 0 alone scores; a signal comes in the second."""
    step, log = "retrain_subnet", tmp_path / "log"
    whole, given = sandbox.given(step, "whole"), sandbox.given(step, "stopped")
    assert run_ranks(step, whole, log) == [0, 0]
    assert run_ranks(step, given, log, {0: [(at_step, 17, TERM, 1)]}) == [143, 143]
    assert run_ranks(step, given, log) == [0, 0]
    assert contents(Path(given["--out"])) == contents(Path(whole["--out"]))


def children(launcher: ForkServerProcess) -> list[psutil.Process]:
    assert launcher.pid is not None
    return psutil.Process(launcher.pid).children()


@pytest.mark.slow
def test_a_launched_step_survives_a_killed_rank_and_passes_signals_on(sandbox: Sandbox, tmp_path: Path) -> None:
    """Real ranks: restarted after SIGKILL, stopped by SIGTERM, resumed."""
    config = config_of(STEP, epochs=12, seed=4)
    whole, given = sandbox.given(STEP, "whole-4", config), sandbox.given(STEP, "launched", config)
    assert run_ranks(STEP, whole, tmp_path / "log") == [0, 0]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("PROCESSES", "2"), ("MAX_RESTARTS", "1"), ("WORKERS", "0")):
            patch.setenv(f"AUTOFORMER_{name}", value)
        launcher = start(STEP, given, tmp_path / "launched")
    try:
        wait_until(lambda: sandbox.work(STEP, "checkpoint.pt"))
        (checkpoint,) = sandbox.work(STEP, "checkpoint.pt")
        (rank,) = [child for child in children(launcher) if child.environ().get("RANK") == "1"]
        rank.kill()
        gone = children(launcher)
        psutil.wait_procs(gone)
        before = checkpoint.stat().st_mtime_ns
        wait_until(lambda: checkpoint.stat().st_mtime_ns != before)
        ranks = children(launcher)
        launcher.terminate()
        assert ended(launcher) == 143
    finally:
        launcher.kill()  # its ranks end, too
    lines = (tmp_path / "launched").read_text().splitlines()
    first, *_, last = [line for line in lines if "images, " not in line]
    assert first == (
        f"{STEP}: rank 1 of 2 was killed by SIGKILL, as where memory runs out; the same command resumes from the last "
        "checkpoint; starting again, 1 of 1"
    )
    assert last.startswith(f"{STEP}: stopped by SIGTERM at step ") and last.endswith(
        "the same command resumes from there"
    )
    assert not any(child.is_running() for child in ranks)
    assert run_ranks(STEP, given, tmp_path / "log") == [0, 0]
    assert contents(Path(given["--out"])) == contents(Path(whole["--out"]))


@pytest.mark.slow
def test_ranks_that_torchrun_restarts_find_each_other(tmp_path: Path) -> None:
    """Its store outlives a restart, and holds the addresses of dead processes."""
    (tmp_path / "gathered.py").write_text(
        """
import os, pathlib, signal
from runtime.common.config import load_config
from runtime.steps.rendezvous import process_group

with process_group(load_config("smoke", ["device=cpu"])) as world:
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    assert world.all_gather(world.rank) == [0, 1]
    if first and world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    counts = world.all_gather(os.environ["TORCHELASTIC_RESTART_COUNT"])
    pathlib.Path("gathered", str(world.rank)).write_text(" ".join(counts))
"""
    )
    (tmp_path / "gathered").mkdir()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    environment = os.environ | {"PYTHONPATH": str(edge.__file__).removesuffix("runtime/steps/rank_launch.py")}
    environment |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    subprocess.run([*torchrun, "gathered.py"], cwd=tmp_path, env=environment, check=True, timeout=240)
    assert [(tmp_path / "gathered" / str(rank)).read_text() for rank in (0, 1)] == ["1 1", "1 1"]


def test_a_batch_that_ranks_cannot_share_is_refused_before_any_process_starts(
    sandbox: Sandbox, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = sandbox.given(STEP, "odd", config_of(STEP, accumulation=2))
    for count, line in (
        ("3", f"{STEP}.batch_size = 50: not a multiple of 6, for 2 forward passes of each of 3 processes; "
              "choose another, or set AUTOFORMER_PROCESSES"),
        ("two", "AUTOFORMER_PROCESSES = two: expected a whole number, 0 or more"),
    ):  # fmt: skip
        monkeypatch.setenv("AUTOFORMER_PROCESSES", count)
        assert run(STEP, given) == 2
        assert capsys.readouterr().err == f"{STEP}: {line}\n"


def test_ranks_report_bad_input_to_the_process_above_them(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(REPORT_FOLDER, str(tmp_path))
    given = sandbox.given(STEP, "bad") | {"--card": str(tmp_path / "none.json")}
    assert [ended(process) for process in start_ranks(STEP, given, tmp_path / "log")] == [2, 2]
    reports = edge.read_reports(tmp_path)
    assert [report.code for report in reports] == [2, 2]
    assert (tmp_path / "log0").read_text() == (tmp_path / "log1").read_text() == ""
    failed = edge._failure({0: failure(0, 2), 1: failure(1, 143)}, reports, 2)
    assert str(failed) == f"{tmp_path}/none.json: no such file or folder; it is made by prepare_data"
    assert failed.exit_code == 2


def failure(rank: int, code: int) -> ProcessFailure:
    return ProcessFailure(rank, 1, code, "")


def test_the_first_cause_is_reported_and_not_its_consequences() -> None:
    stopped = Failure(step=STEP, message="stopped by SIGTERM at step 5 of 9", code=143)
    lost = Failure(step=STEP, message="rank 0 of 3 has lost its connection to the others", code=exit_codes.LOST)
    away = Failure(step=STEP, message="s3://a/b: S3 is away", code=exit_codes.UNAVAILABLE)
    for codes, reports, line, code in (
        ([exit_codes.LOST, exit_codes.UNAVAILABLE, -15], [lost, away], "s3://a/b: S3 is away", exit_codes.UNAVAILABLE),
        ([exit_codes.LOST, -9, -15], [lost], "rank 1 of 3 was killed by SIGKILL, as", 137),
        ([143, -11, exit_codes.LOST], [stopped], "rank 1 of 3 was killed by SIGSEGV; ", 139),
        ([143, 143, 1], [stopped], "rank 2 of 3 failed; its traceback is above", 1),
        ([143, exit_codes.LOST, exit_codes.LOST], [stopped, lost], "stopped by SIGTERM at step 5 of 9", 143),
        ([exit_codes.LOST] * 3, [lost] * 3, "the 3 ranks have lost their connections", exit_codes.LOST),
    ):
        failed = edge._failure({rank: failure(rank, code) for rank, code in enumerate(codes)}, reports, 3)
        assert str(failed).startswith(line) and failed.exit_code == code


def test_a_gpu_for_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def processes(device: str) -> int:
        return edge.processes(load_config("smoke", [f"device={device}"], [STEP]))

    assert (processes("cpu"), processes("auto")) == (1, 1)
    monkeypatch.setattr("runtime.common.processes.DRIVERS", ("/",))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [processes(device) for device in ("cpu", "auto", "cuda", "cuda:1")] == [1, 4, 4, 1]
    monkeypatch.setenv("AUTOFORMER_PROCESSES", "2")
    assert [processes(device) for device in ("cpu", "auto", "cuda")] == [2, 2, 2]
    with pytest.raises(ValueError, match="AUTOFORMER_PROCESSES = 2: device = cuda:1 is one device"):
        processes("cuda:1")
    monkeypatch.setenv("AUTOFORMER_PROCESSES", "5")
    with pytest.raises(ValueError, match="AUTOFORMER_PROCESSES = 5: this machine has 4 GPUs, one for each process"):
        processes("auto")
