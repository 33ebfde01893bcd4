"""The check of what a GPU shows, at tiny sizes on the CPU: all of it, a part that fails, one that hangs, a cut run, a
bare machine, and what is carried to it."""

import json
import math
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from autoformer.errors import AutoFormerError
from autoformer.supernet import Supernet
from benchmarks.bench import PARTS as BENCHMARKS
from benchmarks.engine import Setting, random_batch
from benchmarks.gpu import machine, running
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.parity import Answer, fill, relative_error, tolerance, without_position, worst_gradient
from benchmarks.gpu.recorder import DTYPES, FULL, Recorder, Timer, attention_kernel, case_of, implementation
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
    assert re.search(r"stopped by SIGINT at step \d+ of 40; the same command goes on", facts["Ctrl-C"])
    assert facts["again"].startswith("train_supernet: 40 steps")
    line = re.fullmatch(
        r"a forward pass of 1024 images does not fit this machine's memory; (\d+) fit: set "
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


# --- a machine without packages ---


def test_a_bare_machine_names_what_is_missing_and_the_command_that_downloads_it(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    done = subprocess.run(command("--out", str(file), options=("-S",)), cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "")
    assert "torch MISSING" in done.stdout and f"\nmissing: {', '.join(machine.required())}\n" in done.stdout
    assert "pip download --dest wheels --only-binary=:all: --python-version 3.11 --platform manylinux" in done.stdout
    assert json.loads(file.read_text())["machine"]["packages"]["pydantic"] is None


def test_a_version_that_may_fail_is_named_before_anything_runs() -> None:
    described = {"packages": {name: "99.0" if name == "pillow" else "2.11.0+cu130" for name in machine.required()}}
    described["packages"] |= {"timm": "1.0.15", "numpy": "2.5.5"}
    told = machine.unfit(described)
    assert "pillow 99.0 is not pillow>=11,<13: it may fail; bring that version" in told
    assert "timm 1.0.15 is not timm==1.0.31: it may fail; bring that version" in told
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


def test_the_printed_commands_download_what_the_machine_lacks_and_nothing_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    index.mkdir()
    make_wheel(index, "pydantic", "below_it>=1", "unwanted; extra == 'email'")
    make_wheel(index, "below_it")
    make_wheel(index, "timm", "torch>=2")
    monkeypatch.setattr(machine, "required", lambda: {"pydantic": "pydantic>=2", "timm": "timm<100", "torch": "torch"})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    described = {"python": "3.12.3", "packages": {"pydantic": None, "timm": None, "torch": "2.11.0"}}
    for line in machine.pip_commands(described):
        subprocess.run([sys.executable, "-m", *shlex.split(line)], cwd=tmp_path, check=True, capture_output=True)
    wheels = tmp_path / "wheels"
    assert sorted(file.name.partition("-")[0] for file in wheels.iterdir()) == ["below_it", "pydantic", "timm"]
    machine.unpack(wheels, tmp_path / "site")
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
    assert 0 < relative_error(found.logits, exact.logits) < tolerance(space, spec, DTYPES["fp32"])
    with torch.no_grad():
        model.get_parameter("blocks.1.attn.rel_pos_k.table_h")[2] += 1e-3
    changed = Answer(model, None, images, labels, Setting())
    assert relative_error(changed.logits, exact.logits) > tolerance(space, spec, DTYPES["fp32"])
    assert worst_gradient(changed, exact)[0] > tolerance(space, spec, DTYPES["fp32"], gradient=True)
    assert tolerance(space, spec, DTYPES["bf16"]) / tolerance(space, spec, DTYPES["fp32"]) > 1000
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
        assert implementation({f"aten::_scaled_dot_product_{name}_attention"}) == name
    assert implementation({"aten::_scaled_dot_product_attention_math"}) == "math" and implementation(set()) == "none"
    q = torch.randn(1, 2, 8, 8)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert attention_kernel(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q)).startswith("math (")
    assert attention_kernel(lambda: q + q) == "none ()"


def test_the_full_size_is_the_published_subnets() -> None:
    shapes = {name: (case.spec.embed_dim, case.spec.depth) for name, case in FULL.cases().items()}
    assert shapes == {"T": (192, 13), "S": (384, 13), "B": (576, 14)} and set(FULL.batches) == {64, 256}
    assert sum(BUDGETS.values()) == 8 * 60


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
        (("--wheels", str(tmp_path)), f"--wheels {tmp_path}: no wheels there; download them with pip"),
        (("--out", str(tmp_path / "file" / "x.json")), f"--out {tmp_path}/file/x.json: cannot be written there ("),
    ):
        done = subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), arguments
        assert done.stderr.startswith(f"benchmarks.gpu: {line}")
