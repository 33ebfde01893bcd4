"""The GPU check on a machine without packages, and its way to measure."""

import json
import math
import shlex
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from test_gpu_check import command

from autoformer.errors import AutoFormerError
from autoformer.supernet import Supernet
from benchmarks.engine import Setting, random_batch
from benchmarks.gpu import machine
from benchmarks.gpu.parity import Answer, fill, relative_error, tolerance, without_position, worst_gradient
from benchmarks.gpu.recorder import DTYPES, FULL, Timer, attention_kernel, case_of, implementation
from benchmarks.gpu.running import BUDGETS
from runtime.common.config import ROOT


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
