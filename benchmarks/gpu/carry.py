"""Wheels for a machine without a network: `--carry FOLDER [--target torch|bare|gpu.json]`. The standard library alone.

pip resolves what the target lacks, without installing it, and then downloads exactly those wheels. wheels.json beside
them has the size of each and what it needs.
"""

import json
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from benchmarks.gpu.machine import name_of, required

HAS_TORCH = (
    "torch", "torchvision", "timm", "numpy", "pillow", "pyarrow", "pyyaml", "safetensors", "tqdm",
)  # fmt: skip
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
    chosen = {name: each for name, each in _resolved(lacking, python).items() if name not in has}
    exact = [f"{name}=={each['metadata']['version']}" for name, each in chosen.items()]
    _pip("download", "--quiet", "--no-deps", "--dest", str(folder), *_for(python), *exact)
    wheels: dict[str, Any] = {}
    for file in sorted(folder.glob("*.whl")):
        name = name_of(file.name.partition("-")[0])
        if name in chosen:
            metadata = chosen[name]["metadata"]
            needs = {name_of(need) for need in metadata.get("requires_dist", [])}  # extras too: CUDA's wheels are some
            wheels[name] = {
                "version": metadata["version"],
                "bytes": file.stat().st_size,
                "needs": sorted(needs & chosen.keys()),
            }
    (folder / "wheels.json").write_text(json.dumps({"python": python, "wheels": wheels}, indent=1) + "\n", "utf-8")
    told = [f"{name} {each['version']}: {each['bytes'] / 1e6:.2f} MB" for name, each in wheels.items()]
    return [*told, f"{folder}: {len(wheels)} wheels, {sum(each['bytes'] for each in wheels.values()) / 1e6:.1f} MB"]


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
