"""What this machine has, and what would have to be carried to it. The standard library alone."""

import csv
import json
import operator
import os
import platform
import re
import shutil
import subprocess
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SIZES = Path(__file__).with_name("wheels.json")  # as `--carry` writes it for a machine with Python alone
ALSO = ("tqdm",)  # of the training step's command line; the library does without it


def required() -> dict[str, str]:
    """What the check imports: package name -> requirement, from pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    every = [*project["dependencies"], *project["optional-dependencies"]["pipeline"]]
    named = {name_of(requirement): requirement for requirement in every}
    wanted = [*(name_of(requirement) for requirement in project["dependencies"]), *ALSO]
    return {name: named[name] for name in wanted}


def name_of(requirement: str) -> str:
    """A package's name, as it is compared: lower case, with hyphens."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0]).lower()


def describe() -> dict[str, Any]:
    """What is here: Python, packages (None where missing), GPUs, cores, memory, disk, compiler."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: _installed(name) for name in required()},
        "gpus": _gpus(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(memory / 1e9, 1),
        "free_disk_gb": round(shutil.disk_usage(tempfile.gettempdir()).free / 1e9, 1),
        "compiler": next((name for name in ("gcc", "cc", "clang") if shutil.which(name)), None),
    }


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    """Name, memory and driver of each GPU that nvidia-smi knows."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [f"{row[0]}, {row[1].strip()}, driver {row[2].strip()}" for row in csv.reader(done.stdout.splitlines())]


def missing(described: Mapping[str, Any]) -> list[str]:
    """The required packages that are not here."""
    return [name for name, found in described["packages"].items() if found is None]


def unfit(described: Mapping[str, Any]) -> list[str]:
    """Packages of other versions than the project asks for, torch's own aside: the machine's CUDA decides those."""
    told = []
    for name, requirement in required().items():
        found = described["packages"][name]
        if found and not name.startswith("torch") and not _meets(found, requirement):
            told.append(f"{name} {found} is not {requirement}: it may fail, carry that")
    return told


def _meets(found: str, requirement: str) -> bool:
    holds = {"==": operator.eq, ">=": operator.ge, "<": operator.lt}
    wanted = re.findall(r"(==|>=|<)\s*([\d.]+)", requirement)
    return all(holds[sign](_numbers(found), _numbers(version)) for sign, version in wanted)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])))


def lines(described: Mapping[str, Any]) -> list[str]:
    """What is here, for people."""
    packages = ", ".join(f"{name} {found or 'MISSING'}" for name, found in described["packages"].items())
    return [
        f"Python {described['python']}, {described['system']}, {described['cores']} cores, "
        f"{described['memory_gb']} GB of memory, {described['free_disk_gb']} GB of disk free, "
        f"compiler {described['compiler'] or 'none'}",
        f"GPUs: {'; '.join(described['gpus']) or 'none that nvidia-smi knows'}",
        packages,
        *unfit(described),
    ]


def to_carry(absent: Iterable[str]) -> list[str]:
    """What to carry for these packages, and how large, as measured by `--carry` when it was run last."""
    measured = json.loads(SIZES.read_text(encoding="utf-8"))
    wheels: dict[str, Any] = measured["wheels"]
    wanted, found = list(absent), dict[str, Any]()
    while wanted:
        name = wanted.pop()
        if name in wheels and name not in found and (name in absent or _installed(name) is None):
            found[name] = wheels[name]
            wanted += wheels[name]["needs"]
    total = sum(wheel["bytes"] for wheel in found.values())
    told = [f"missing: {', '.join(absent)}"]
    told += [f"  {name} {found[name]['version']}: {found[name]['bytes'] / 1e6:.2f} MB" for name in sorted(found)]
    told.append(f"to carry: {len(found)} wheels, {total / 1e6:.1f} MB, as measured for Python {measured['python']}")
    told.append("on a machine with a network: python -m benchmarks.gpu --carry wheels --target gpu.json")
    told.append("here: python -m benchmarks.gpu --wheels wheels")
    return told


def unpack(wheels: Path, folder: Path) -> None:
    """Make the wheels of a folder importable from another: for a machine that has no pip."""
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
