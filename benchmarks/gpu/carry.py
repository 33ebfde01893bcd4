"""Wheels for a machine without a network: `--carry FOLDER [--target torch|bare|gpu.json]`. The standard library alone.

pip resolves what the target lacks, without installing it, and then downloads exactly those wheels. wheels.json beside
them has the size of each and what it needs.
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
"""What is there of whatever version. timm and Pillow are too, but perhaps of a version that this project cannot use."""
LEGACY = ("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64")  # what pip does not derive from numbers


def packages_of(target: str) -> Collection[str]:
    """The packages that a target has: "torch", a machine prepared for deep learning; "bare", Python alone; or a file
    that the check has written there."""
    if target in ("torch", "bare"):
        return HAS_TORCH if target == "torch" else ()
    described = json.loads(Path(target).read_text(encoding="utf-8"))["machine"]
    return [name for name, found in described["packages"].items() if found]


def carry(folder: Path, target: str, python: str) -> list[str]:
    """Download the wheels that the target lacks; lines that tell what they are. Raises `CalledProcessError` of pip."""
    has = {name_of(name) for name in packages_of(target)}
    lacking = [requirement for name, requirement in required().items() if name not in has]
    if not lacking:
        return ["nothing is missing there"]
    folder.mkdir(parents=True, exist_ok=True)
    chosen = closure(lacking, _resolved(lacking, python), has)
    exact = [f"{name}=={each['version']}" for name, each in chosen.items()]
    _pip("download", "--quiet", "--no-deps", "--dest", str(folder), *_for(python), *exact)
    files = {name_of(file.name.partition("-")[0]): file for file in folder.glob("*.whl")}
    wheels = {name: chosen[name] | {"bytes": files[name].stat().st_size} for name in sorted(chosen)}
    (folder / "wheels.json").write_text(json.dumps({"python": python, "wheels": wheels}, indent=1) + "\n", "utf-8")
    told = [f"{name} {each['version']}: {each['bytes'] / 1e6:.2f} MB" for name, each in wheels.items()]
    return [*told, f"{folder}: {len(wheels)} wheels, {sum(each['bytes'] for each in wheels.values()) / 1e6:.1f} MB"]


def closure(requirements: Iterable[str], resolved: Mapping[str, Any], has: Collection[str]) -> dict[str, Any]:
    """Version and needs of each wanted package that is not there, and of what these need in turn.

    What is there has all that it needs itself. Extras count where they are asked for: CUDA's wheels are such.
    """
    chosen: dict[str, Any] = {}
    wanted = list(requirements)
    while wanted:
        requirement = wanted.pop()
        name, extras = name_of(requirement), re.match(r"[\w.-]+\s*\[([^\]]*)\]", requirement)
        asked = {extra.strip() for extra in extras[1].split(",")} if extras else set()
        if name not in resolved or name in has:
            continue
        metadata = resolved[name]["metadata"]
        found = chosen.setdefault(name, {"version": metadata["version"], "needs": []})
        for need in metadata.get("requires_dist", []):
            extra = re.search(r"extra == ['\"]([^'\"]+)", need)
            if (
                (extra is None or extra[1] in asked)
                and name_of(need) in resolved
                and name_of(need) not in found["needs"]
            ):
                found["needs"] = sorted([*found["needs"], name_of(need)])
                wanted.append(need)
    return chosen


def _resolved(requirements: Collection[str], python: str) -> dict[str, Any]:
    """What these requirements come to, by name, as pip reports it."""
    place = ["--target", "/nowhere", "--ignore-installed", "--dry-run", "--quiet", "--report", "-"]
    report = json.loads(_pip("install", *place, *_for(python), *requirements))
    return {name_of(each["metadata"]["name"]): each for each in report["install"]}


def _for(python: str) -> list[str]:
    platforms = [*(f"manylinux_2_{minor}_x86_64" for minor in range(39, 4, -1)), *LEGACY]
    given = [f"--platform={platform}" for platform in platforms]
    return ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp", *given]


def _pip(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout
