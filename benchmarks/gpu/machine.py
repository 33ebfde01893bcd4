"""This machine's hardware and packages. Uses only the standard library."""

import csv
import operator
import os
import platform
import re
import shutil
import subprocess
import tempfile
import tomllib
import zipfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ALSO = ("tqdm",)  # the training step's command line needs it; the library does not
NEED_TORCH = ("timm", "torchvision")  # pip would download torch with them
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_27_x86_64", "manylinux_2_28_x86_64")  # of the wheels that are needed


def required() -> dict[str, str]:
    """The packages that the check imports: name -> requirement, from pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    library, pipeline = project["dependencies"], project["optional-dependencies"]["pipeline"]
    return {
        name_of(requirement): requirement
        for requirement in [*library, *(each for each in pipeline if name_of(each) in ALSO)]
    }


def pip_commands(described: Mapping[str, Any]) -> list[str]:
    """The commands that download the missing packages into `wheels`, on any machine with pip and a network."""
    lacking = [name for name, version in described["packages"].items() if version is None]
    alone = [name for name in lacking if name in NEED_TORCH and "torch" not in lacking]
    python, platforms = ".".join(described["python"].split(".")[:2]), " ".join(f"--platform {one}" for one in PLATFORMS)
    pip = f"pip download --dest wheels --only-binary=:all: --python-version {python} {platforms}"
    groups = {"": [name for name in lacking if name not in alone], "--no-deps ": alone}
    return [
        f"{pip} {option}{' '.join(repr(required()[name]) for name in names)}"
        for option, names in groups.items()
        if names
    ]


def name_of(requirement: str) -> str:
    """A package's normalised name: lower case, with hyphens."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0]).lower()


def describe() -> dict[str, Any]:
    """Python, packages (None where missing), GPUs, cores, memory, disk, compiler."""
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
        printed = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return ["{}, {}, driver {}".format(*map(str.strip, row)) for row in csv.reader(printed.splitlines())]


def unfit(described: Mapping[str, Any]) -> list[str]:
    """A line for each package of an excluded version. torch is not checked: its version depends on the CUDA version."""
    packages = {name: described["packages"][name] for name in required() if not name.startswith("torch")}
    return [
        f"{name} {packages[name]} is not {requirement}: it may fail; bring that version"
        for name, requirement in required().items()
        if packages.get(name) and not _meets(packages[name], requirement)
    ]


def _meets(installed: str, requirement: str) -> bool:
    holds = {"==": operator.eq, ">=": operator.ge, "<": operator.lt}
    bounds = re.findall(r"(==|>=|<)\s*([\d.]+)", requirement)
    return all(holds[sign](_numbers(installed), _numbers(bound)) for sign, bound in bounds)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])))


def lines(described: Mapping[str, Any]) -> list[str]:
    """The description as lines of text."""
    return [
        f"Python {described['python']}, {described['system']}, {described['cores']} "
        f"core{'s' * (described['cores'] != 1)}, {described['memory_gb']} GB of memory, {described['free_disk_gb']} GB "
        f"of disk free, compiler {described['compiler'] or 'none'}",
        f"GPUs: {'; '.join(described['gpus']) or 'none that nvidia-smi knows'}",
        ", ".join(f"{name} {version or 'MISSING'}" for name, version in described["packages"].items()),
        *unfit(described),
    ]


def unpack(wheels: Path, folder: Path) -> None:
    """Unpack the wheels of a folder into another, for a machine without pip."""
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
