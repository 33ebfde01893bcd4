"""The GPU check at tiny sizes on the CPU: a complete run, a failing part, a hanging part, an interrupted run."""

import json
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.bench import PARTS as BENCHMARKS
from benchmarks.gpu import running
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.parity import tolerance
from benchmarks.gpu.recorder import DTYPES, Recorder, case_of
from benchmarks.gpu.running import BUDGETS, failed, show
from benchmarks.gpu.worker import PARTS
from runtime.common.config import ROOT

TINY = ("--device", "cpu", "--size", "tiny")
Result = dict[str, Any]


def command(*arguments: str, options: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, *options, "-m", "benchmarks.gpu", *arguments]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Result]:
    """What it prints, and its file."""
    file = tmp_path_factory.mktemp("gpu") / "gpu.json"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command(*TINY, "--out", str(file)), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(file.read_text())


def values(ran: tuple[str, Result], part: str, quantity: str) -> dict[str, float]:
    """By case."""
    rows = ran[1]["parts"][part]["rows"]
    found = {row["name"].partition(": ")[0]: row["value"] for row in rows if row["name"].endswith(f": {quantity}")}
    assert found
    return found


# --- the whole run ---


def test_all_parts_run_on_a_cpu_and_are_shown(ran: tuple[str, Result]) -> None:
    printed, result = ran
    assert list(result["parts"]) == list(BUDGETS) and "gpu" in BENCHMARKS
    for part, found in result["parts"].items():
        assert found["rows"] and not found["errors"] and not found["cut"], part
        assert f"\n{part}  ({found['seconds']} s of {found['budget']})\n{show(found)}" in printed
        assert all(math.isfinite(row["value"]) for row in found["rows"])
        assert all(row["holds"] for row in found["rows"] if row["holds"] is not None)
    assert result["machine"]["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert result["machine"]["device"]["device"] == "cpu" and result["machine"]["device"]["threads"] <= 2
    assert sum(found["seconds"] for found in result["parts"].values()) < 8 * 60


def test_errors_are_above_zero_and_below_the_tolerance_and_the_control_is_not(ran: tuple[str, Result]) -> None:
    space, spec = case_of("tiny")
    for precision, dtype in DTYPES.items():
        most = tolerance(space, spec, dtype)
        logits = values(ran, "parity", "logits")
        for form in ("extracted", "supernet"):
            assert 0 < logits[f"tiny {form} {precision}"] < most
            gradient = values(ran, "parity", "worst gradient")[f"tiny {form} {precision}"]
            assert 0 < gradient < tolerance(space, spec, dtype, gradient=True)
        assert logits[f"tiny control {precision}"] > most
        assert 0 < logits[f"official code, {precision}"] < 0.03
    assert values(ran, "parity", "logits")["tiny extracted bf16"] > tolerance(space, spec, DTYPES["fp32"])


def test_every_case_is_compared_with_timm_the_supernet_and_the_gemm_limit(ran: tuple[str, Result]) -> None:
    cases = {f"tiny {kind} {p} {b}" for kind in ("forward", "step") for p in ("bf16", "fp32") for b in (2, 4)}
    for quantity in ("images/s", "of timm", "supernet of extracted", "of GEMMs", "timm of GEMMs"):
        found = values(ran, "speed", quantity)
        assert found.keys() == cases and min(found.values()) > 0
    memory = values(ran, "speed", "memory")
    assert memory["tiny step fp32 4"] > memory["tiny step fp32 2"] > 0
    facts = ran[1]["parts"]["speed"]["facts"]
    kernels = [text for name, text in facts.items() if name.endswith("attention")]
    assert len(kernels) == 8 and all(
        re.match(r"(flash|efficient|cudnn|math) \(aten::_scaled", text) for text in kernels
    )
    assert facts["fp32"].startswith("torch's defaults: matrix products 'highest', TF32 in convolutions")


def test_changing_compiling_scoring_and_feeding_have_figures(ran: tuple[str, Result]) -> None:
    for quantity in ("images/s", "of GEMMs", "changing / staying", "first time / again", "memory"):
        assert len(values(ran, "supernet", quantity)) == 4
    assert values(ran, "compile", "graphs")["tiny step"] == 1
    assert "graphs after each of 3 shapes: [1, " in ran[1]["parts"]["compile"]["facts"]["tiny supernet's block"]
    (rate,), (hours,) = (values(ran, "scoring", quantity).values() for quantity in ("images/s", "hours of a search"))
    assert hours == pytest.approx(1050 * 10_000 / rate / 3600)
    rates = values(ran, "epoch", "images/s")
    fed = values(ran, "epoch", "of the step alone")["tiny with the loader"]
    assert fed == pytest.approx(rates["tiny with the loader"] / rates["tiny step alone"])


def test_what_was_stopped_goes_on_to_the_same_weights(ran: tuple[str, Result]) -> None:
    (twice,) = values(ran, "resume", "twice, largest difference").values()
    resumed = values(ran, "resume", "resumed, largest difference")
    assert len(resumed) == 2 and twice == 0 and set(resumed.values()) == {0}
    assert values(ran, "resume", "exit code after Ctrl-C")["train_supernet"] == 130
    facts = ran[1]["parts"]["resume"]["facts"]
    assert re.search(r"stopped by SIGINT at step \d+ of 40; the same command resumes", facts["Ctrl-C"])
    assert facts["again"].startswith("train_supernet: 40 steps")
    line = re.fullmatch(
        r"a forward pass of 1,024 images does not fit this machine's memory; (\d+) would fit: set "
        r"train_supernet\.accumulation=(\d+), which (?:makes other draws of [a-z, ]+|changes nothing else of the "
        r"recipe), and start it again",
        facts["out of memory"],
    )
    assert line and int(line[1]) * int(line[2]) == 1024  # of runtime.steps.training_setup.out_of_memory


# --- what can go wrong in it: parts of these names, in processes that are forked from this one ---


def sound(recorder: Recorder) -> None:
    recorder.row("case: pid", os.getpid(), "")


def broken(recorder: Recorder) -> None:
    with recorder.attempt("inner"):
        raise KeyError("gone")
    recorder.row("case: after", 1, "")
    raise ValueError("an error\nof two lines")


def dies(recorder: Recorder) -> None:
    recorder.row("case: before", 1, "")
    os._exit(9)


def hangs(recorder: Recorder) -> None:
    recorder.row("case: pid", os.getpid(), "")
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.05)
        recorder.fact("case", "hangs")
    os._exit(0)  # a forked process would wait for itself


def late(recorder: Recorder) -> None:
    if not recorder.cut("what is late"):
        recorder.row("case: late", 1, "")


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "CONTEXT", multiprocessing.get_context("fork"))
    for part in (sound, broken, dies, hangs, late):
        monkeypatch.setitem(PARTS, part.__name__, f"{__name__}:{part.__name__}")
        monkeypatch.setitem(running.BUDGETS, part.__name__, 60)


def test_a_part_that_fails_dies_or_hangs_stops_no_other(
    forked: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(running.BUDGETS, "hangs", 0.5)
    file, seen = tmp_path / "out" / "gpu.json", []
    run = running.Check._run

    def watched(self: running.Check, part: str, budgets_left: float) -> Result:
        found = run(self, part, budgets_left)
        seen.append(json.loads(file.read_text())["parts"])
        return found

    monkeypatch.setattr(running.Check, "_run", watched)
    parts = ("sound", "broken", "dies", "hangs", "late")
    result = running.Check(file, {}, "cpu", "tiny", 2.0).run(parts)
    assert [list(each) for each in seen] == [list(parts[: number + 1]) for number in range(len(parts))]
    assert result == json.loads(file.read_text())
    found = result["parts"]
    assert found["sound"]["rows"] and not found["sound"]["errors"]
    assert found["dies"]["errors"] == ["the process ended with code 9"] and found["dies"]["rows"]
    assert found["hangs"]["cut"] == [f"what follows: killed when its {found['hangs']['budget']} s were over"]
    assert found["hangs"]["rows"] and not found["hangs"]["errors"]
    assert has_ended(found["hangs"]["rows"][0]["value"])
    assert found["broken"]["errors"] == ["inner: KeyError: 'gone'", "broken: ValueError: an error of two lines"]
    assert found["broken"]["rows"][0]["name"] == "case: after"
    assert found["late"]["rows"] and failed(result) == ["broken", "dies"]
    printed = capsys.readouterr().out
    assert "FAILED: broken: ValueError: an error of two lines" in printed and "CUT SHORT, no time for: what" in printed


def has_ended(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_part_without_time_says_what_it_leaves_out(
    forked: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "LAST_SECONDS", 60.0)  # in which it is to end; so short a run has no others
    left = running.Check(tmp_path / "gpu.json", {}, "cpu", "tiny", 1.0).run(["late"])["parts"]["late"]
    assert left["cut"] == ["what is late"] and not left["rows"] and not left["errors"]


def run_main(out: Path) -> None:
    raise SystemExit(main([*TINY, "--out", str(out)]))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 130)])
def test_a_cut_run_keeps_what_it_had(
    forked: None,
    number: signal.Signals,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("benchmarks.gpu.__main__.PART_NAMES", ("sound", "hangs"))
    file = tmp_path / "gpu.json"
    process = multiprocessing.get_context("fork").Process(target=run_main, args=(file,))
    process.start()
    end = time.monotonic() + 60
    while not (file.exists() and (hanging := json.loads(file.read_text())["parts"].get("hangs")) and hanging["rows"]):
        assert time.monotonic() < end and process.is_alive()
        time.sleep(0.02)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == code and "case  " in capfd.readouterr().out
    kept = json.loads(file.read_text())["parts"]
    assert [row["name"] for row in kept["sound"]["rows"]] == ["case: pid"] and kept["hangs"]["rows"]
    while not has_ended(kept["hangs"]["rows"][0]["value"]):
        assert time.monotonic() < end
        time.sleep(0.02)
