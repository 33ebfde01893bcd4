"""The check of what a GPU shows, at tiny sizes on the CPU: all of it, a part that fails, one that hangs, a cut run, a
bare machine, and what is carried to it."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from started import started

from autoformer.errors import AutoFormerError
from autoformer.supernet import Supernet
from benchmarks.bench import PARTS as BENCHMARKS
from benchmarks.engine import Setting, random_batch
from benchmarks.gpu import check, machine, running
from benchmarks.gpu.bench import BF16, FP32, FULL, Timer, attention_kernel, case_of, way
from benchmarks.gpu.carry import carry
from benchmarks.gpu.parity import Answer, fill, off, tolerance, without_position, worst_gradient
from benchmarks.gpu.running import SHARES, failed, show
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
    assert list(result["parts"]) == list(SHARES) and "gpu" in BENCHMARKS
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
    for precision, dtype in (("bf16", BF16), ("fp32", FP32)):
        most = tolerance(space, spec, dtype)
        logits = values(ran, "parity", "logits")
        for form in ("extracted", "supernet"):
            assert 0 < logits[f"tiny {form} {precision}"] < most
            gradient = values(ran, "parity", "worst gradient")[f"tiny {form} {precision}"]
            assert 0 < gradient < tolerance(space, spec, dtype, gradient=True)
        assert logits[f"tiny control {precision}"] > most
        assert 0 < logits[f"official code, {precision}"] < 0.03
    assert values(ran, "parity", "logits")["tiny extracted bf16"] > tolerance(space, spec, FP32)


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
    assert re.search(r"stopped by SIGINT at step \d+ of 40; the same command goes on", facts["Ctrl-C"])
    assert facts["again"].startswith("train_supernet: 40 steps")
    line = re.fullmatch(
        r"a forward pass of 2048 images does not fit this machine's memory; (\d+) fit: set "
        r"train_supernet\.accumulation=(\d+), which changes nothing else of the recipe, and start it again",
        facts["out of memory"],
    )
    assert line and int(line[1]) * int(line[2]) == 2048  # of runtime.steps.training_setup.out_of_memory


# --- what can go wrong in it ---

PARTS = """
import os, sys, time
from benchmarks.gpu.worker import PARTS, main

def sound(bench):
    bench.row("case: pid", os.getpid(), "")

def broken(bench):
    with bench.attempt("inner"):
        raise KeyError("gone")
    bench.row("case: after", 1, "")
    raise ValueError("an error\\nof two lines")

def dies(bench):
    bench.row("case: before", 1, "")
    os._exit(9)

def hangs(bench):
    bench.row("case: before", 1, "")
    while True:
        time.sleep(0.1)
        bench.fact("case", "hangs")

def late(bench):
    if not bench.cut("what is late"):
        bench.row("case: late", 1, "")

raise SystemExit(main(sys.argv[1], sys.argv[2], PARTS | {part.__name__: part for part in (
    sound, broken, dies, hangs, late)}))
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """A process with parts that go wrong."""
    (tmp_path / "worker.py").write_text(PARTS)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return sys.executable, str(tmp_path / "worker.py")


def test_a_part_that_fails_dies_or_hangs_stops_no_other(
    worker: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(running.SHARES, "hangs", 0.5)
    file, seen = tmp_path / "out" / "gpu.json", []
    run = running.Check._run

    def watched(self: running.Check, part: str, shares_left: float) -> Result:
        found = run(self, part, shares_left)
        seen.append(json.loads(file.read_text())["parts"])
        return found

    monkeypatch.setattr(running.Check, "_run", watched)
    parts = ("sound", "broken", "dies", "hangs", "late")
    result = check(file, 2.0, parts, "cpu", "tiny", worker)
    assert [list(each) for each in seen] == [list(parts[: number + 1]) for number in range(len(parts))]
    assert result == json.loads(file.read_text())
    found = result["parts"]
    assert found["sound"]["rows"] and not found["sound"]["errors"]
    assert found["dies"]["errors"] == ["the process ended with code 9"] and found["dies"]["rows"]
    assert found["hangs"]["cut"] == [f"what follows: killed when its {found['hangs']['budget']} s were over"]
    assert found["hangs"]["rows"][0]["name"] == "case: before" and not found["hangs"]["errors"]
    assert found["broken"]["errors"] == ["inner: KeyError: 'gone'", "broken: ValueError: an error of two lines"]
    assert found["broken"]["rows"][0]["name"] == "case: after"
    assert found["late"]["rows"] and failed(result) == ["broken", "dies"]
    printed = capsys.readouterr().out
    assert "FAILED: broken: ValueError: an error of two lines" in printed and "CUT SHORT, no time for: what" in printed


def test_a_part_without_time_says_what_it_leaves_out(
    worker: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "LAST_SECONDS", 60.0)  # in which it is to end; so short a run has no others
    left = check(tmp_path / "gpu.json", 1.0, ("late",), "cpu", "tiny", worker)["parts"]["late"]
    assert left["cut"] == ["what is late"] and not left["rows"] and not left["errors"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 130)])
def test_a_cut_run_keeps_what_it_had(number: signal.Signals, code: int, tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    given = command(*TINY, "--parts", "scoring", "speed", "--out", str(file))
    with started(given, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        end = time.monotonic() + 120
        while not (file.exists() and "speed" in json.loads(file.read_text())["parts"]):
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        printed = process.communicate(timeout=60)[0]
    assert process.returncode == code and "hours of a search" in printed
    kept = json.loads(file.read_text())["parts"]
    assert {row["name"] for row in kept["scoring"]["rows"]} == {"tiny: images/s", "tiny: hours of a search"}


# --- a machine without packages ---


def test_a_bare_machine_is_told_what_to_carry_and_how_large(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    done = subprocess.run(command("--out", str(file), options=("-S",)), cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "")
    sizes = json.loads(machine.SIZES.read_text())["wheels"]
    total = sum(wheel["bytes"] for wheel in sizes.values()) / 1e6
    assert "torch MISSING" in done.stdout and f"to carry: {len(sizes)} wheels, {total:.1f} MB" in done.stdout
    assert f"  torch {sizes['torch']['version']}: {sizes['torch']['bytes'] / 1e6:.2f} MB" in done.stdout
    assert json.loads(file.read_text())["machine"]["packages"]["pydantic"] is None


def test_only_what_is_missing_is_to_be_carried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_installed", lambda name: None if "pydantic" in name or "-" in name else "1.0")
    lines = machine.to_carry(["pydantic"])
    assert [line.split()[0] for line in lines[1:-3]] == [
        "annotated-types", "pydantic", "pydantic-core", "typing-extensions", "typing-inspection",
    ]  # fmt: skip
    assert lines[-3].startswith("to carry: 5 wheels, 2.8 MB")


def test_a_version_that_may_fail_is_named_before_anything_runs() -> None:
    described = {"packages": {name: "99.0" if name == "pillow" else "2.11.0+cu130" for name in machine.required()}}
    described["packages"] |= {"timm": "1.0.15", "numpy": "2.5.5"}
    told = machine.unfit(described)
    assert "pillow 99.0 is not pillow>=11,<13: it may fail, carry that" in told
    assert "timm 1.0.15 is not timm==1.0.31: it may fail, carry that" in told
    assert not any(line.startswith(("torch", "numpy")) for line in told)
    assert machine.unfit(machine.describe()) == []


def make_wheel(folder: Path, name: str, *needs: str) -> None:
    with zipfile.ZipFile(folder / f"{name}-99.0-py3-none-any.whl", "w") as wheel:
        info = f"{name}-99.0.dist-info"
        wheel.writestr(f"{name}/__init__.py", "HERE = 99\n")
        requires = "".join(f"Requires-Dist: {need}\n" for need in needs)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.0\n{requires}")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


def test_pip_downloads_what_the_target_lacks_and_nothing_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, folder = tmp_path / "index", tmp_path / "wheels"
    index.mkdir()
    make_wheel(index, "pydantic", "below_it>=1", "numpy>=2", "unwanted; extra == 'email'")
    make_wheel(index, "below_it")
    make_wheel(index, "numpy")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    described = {name: None if name == "pydantic" else "1.0" for name in machine.required()}
    (tmp_path / "gpu.json").write_text(json.dumps({"machine": {"packages": described}}))
    told = carry(folder, str(tmp_path / "gpu.json"), "3.12")
    assert sorted(file.name for file in folder.glob("*.whl")) == [
        "below_it-99.0-py3-none-any.whl", "pydantic-99.0-py3-none-any.whl",
    ]  # fmt: skip
    wheels = json.loads((folder / "wheels.json").read_text())["wheels"]
    assert wheels["pydantic"]["needs"] == ["below-it", "numpy"] and told[-1].startswith(f"{folder}: 2 wheels")
    machine.unpack(folder, tmp_path / "site")
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import below_it, pydantic; print(pydantic.HERE)"],
        env={"PYTHONPATH": str(tmp_path / "site")}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "99\n"


# --- what it measures with ---


def test_the_tolerance_is_that_of_the_type_and_notices_a_weight_that_is_off() -> None:
    space, spec = case_of("tiny")
    supernet = fill(Supernet(space))
    model = supernet.extract(spec)
    images, labels = random_batch(space, 2, torch.device("cpu"))
    exact = Answer(supernet.extract(spec).double(), None, images.double(), labels, Setting())
    found = Answer(model, None, images, labels, Setting())
    assert 0 < off(found.logits, exact.logits) < tolerance(space, spec, FP32)
    with torch.no_grad():
        model.get_parameter("blocks.1.attn.rel_pos_k.table_h")[2] += 1e-3
    changed = Answer(model, None, images, labels, Setting())
    assert off(changed.logits, exact.logits) > tolerance(space, spec, FP32)
    assert worst_gradient(changed, exact)[0] > tolerance(space, spec, FP32, gradient=True)
    assert tolerance(space, spec, BF16) / tolerance(space, spec, FP32) > 1000
    assert not any(p.any() for n, p in without_position(model).named_parameters() if "rel_pos" in n)
    found.gradients["head.bias"] = torch.full_like(exact.gradients["head.bias"], math.nan)
    assert worst_gradient(found, exact)[1] == "head.bias"


def test_a_measurement_is_as_many_calls_as_fill_its_time() -> None:
    calls: list[int] = []
    timer = Timer(torch.device("cpu"), 0.02)

    def run() -> None:
        calls.append(1)
        time.sleep(0.002)

    assert timer(run) >= 0.002 and len(calls) == 1
    timer(run)
    assert 1 < len(calls) - 1 <= 10  # a busy machine sleeps longer, none less


def test_the_way_of_attention_is_read_off_its_operators() -> None:
    for name in ("flash", "efficient", "cudnn"):
        assert way({f"aten::_scaled_dot_product_{name}_attention"}) == name
    assert way({"aten::_scaled_dot_product_attention_math"}) == "math" and way(set()) == "none"
    q = torch.randn(1, 2, 8, 8)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert attention_kernel(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q)).startswith("math (")
    assert attention_kernel(lambda: q + q) == "none ()"


def test_the_full_size_is_the_published_subnets() -> None:
    shapes = {name: (case.spec.embed_dim, case.spec.depth) for name, case in FULL.cases().items()}
    assert shapes == {"T": (192, 13), "S": (384, 13), "B": (576, 14)} and set(FULL.batches) == {64, 256}
    assert sum(SHARES.values()) == 8 * 60


def test_an_unknown_device_is_one_failed_part_and_no_hang(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("for machines without a GPU")
    given = command("--device", "cuda", "--parts", "parity", "--out", str(tmp_path / "gpu.json"))
    done = subprocess.run(given, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "FAILED: the process ended with code" in done.stdout
    assert issubclass(AutoFormerError, ValueError) and "device = cuda: this machine has cpu" in done.stderr


def test_what_it_cannot_use_is_one_line_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for arguments, line in (
        (("--minutes", "-1"), "--minutes -1: expected a number above 0"),
        (("--minutes", "nan"), "--minutes nan: expected a number above 0"),
        (("--device", "tpu"), "--device tpu: expected auto, cpu, cuda or cuda:N"),
        (("--wheels", str(tmp_path)), f"--wheels {tmp_path}: no wheels there; download them with --carry"),
        (("--out", str(tmp_path / "file" / "x.json")), f"--out {tmp_path}/file/x.json: cannot be written there ("),
    ):
        done = subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), arguments
        assert done.stderr.startswith(f"benchmarks.gpu: {line}")
