"""Wheels for a machine without a network: `--carry FOLDER [--target torch|bare|gpu.json]`. The standard library alone.

pip resolves what the target lacks, without installing it, and then downloads exactly those wheels.
"""

import json
import re
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.machine import name_of, required

HAS_TORCH = ("torch", "torchvision", "numpy", "pyarrow", "pyyaml", "safetensors", "tqdm", "huggingface-hub")
"""Packages that a machine for deep learning has, in any version. It has timm and Pillow too, in versions that this
project perhaps cannot use."""
LEGACY = ("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64")  # pip derives none of them


def packages_of(target: str) -> Collection[str]:
    """The packages that a target has: "torch", a machine for deep learning; "bare", Python alone; or the file that the
    check has written there."""
    if target in ("torch", "bare"):
        return HAS_TORCH if target == "torch" else ()
    described = json.loads(Path(target).read_text(encoding="utf-8"))["machine"]
    return [name for name, version in described["packages"].items() if version]


def carry(folder: Path, target: str, python: str) -> list[str]:
    """Download the wheels that the target lacks; return their names and sizes. Raises `CalledProcessError` of pip."""
    has = {name_of(name) for name in packages_of(target)}
    lacking = [requirement for name, requirement in required().items() if name not in has]
    if not lacking:
        return ["nothing is missing there"]
    folder.mkdir(parents=True, exist_ok=True)
    there = ["--target", "/nowhere", "--ignore-installed", "--dry-run", "--quiet", "--report", "-"]
    report = json.loads(_pip("install", *there, *_platform(python), *lacking))
    versions = closure(
        lacking, {name_of(each["metadata"]["name"]): each["metadata"] for each in report["install"]}, has
    )
    exact = [f"{name}=={version}" for name, version in versions.items()]
    _pip("download", "--quiet", "--no-deps", "--dest", str(folder), *_platform(python), *exact)
    sizes = {name_of(file.name.partition("-")[0]): file.stat().st_size for file in folder.glob("*.whl")}
    lines = [f"{name} {versions[name]}: {sizes[name] / 1e6:.2f} MB" for name in sorted(versions)]
    return [*lines, f"{folder}: {len(lines)} wheels, {sum(sizes[name] for name in versions) / 1e6:.1f} MB"]


def closure(requirements: Iterable[str], resolved: Mapping[str, Any], has: Collection[str]) -> dict[str, str]:
    """Versions of the wanted packages that are not there, and of what these need in turn, by pip's metadata.

    A package that is there has its own needs. An extra counts where it is requested: CUDA's wheels are extras.
    """
    versions: dict[str, str] = {}
    wanted, seen = list(requirements), set[str]()
    while wanted:
        requirement = wanted.pop()
        name, extras = name_of(requirement), re.match(r"[\w.-]+\s*\[([^\]]*)\]", requirement)
        if requirement in seen or name not in resolved or name in has:
            continue
        seen.add(requirement)
        versions[name] = resolved[name]["version"]
        requested = {extra.strip() for extra in extras[1].split(",")} if extras else set()
        for need in resolved[name].get("requires_dist", []):
            extra = re.search(r"extra == ['\"]([^'\"]+)", need)
            if extra is None or extra[1] in requested:
                wanted.append(need)
    return versions


def _platform(python: str) -> list[str]:
    platforms = [*(f"manylinux_2_{minor}_x86_64" for minor in range(39, 4, -1)), *LEGACY]
    options = ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp"]
    return [*options, *(f"--platform={platform}" for platform in platforms)]


def _pip(*arguments: str) -> str:
    command = [sys.executable, "-m", "pip", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
