"""Which code decides a result: the one answer for work folders, cache keys, compiled packages and dvc.yaml.

A step runs what it imports: the library, the shared ground with its services, and its own folder. All of it is in
the step's key, recursively, so that no moved or new module can be forgotten; tests/test_architecture.py holds that
the import closure of each step lies inside. So are the versions of the packages that compute. An edit of any shared
module therefore runs the steps again: rather too often than once too seldom.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from autoformer.files import hash_file, hash_value
from autoformer.named import CONFIGS
from runtime.common.config import ROOT

SHARED = ("autoformer", "runtime")  # folders of code that every step may run
PACKAGES = (
    "numpy",
    "pillow",
    "pyarrow",
    "timm",
    "torch",
    "torchvision",
)  # that compute; the lock file has their versions
NAMED = ("presets", "spaces", "subnets")  # folders of configs/ whose files a run form names


def step_folders(step: str) -> tuple[str, ...]:
    """The folders, below the checkout, of all code that a step may run; its stage of dvc.yaml depends on them."""
    return (*SHARED, f"components/{step}")


@cache
def step_code(step: str) -> str:
    """Hash of all code that a step may run, and of `PACKAGES`: part of its work folder's key and of its cache key."""
    files = {_name(file): file for folder in step_folders(step) for file in code_files(ROOT / folder)}
    return hash_value([hash_files(files), [[name, installed(name)] for name in PACKAGES]])[:16]


def installed(package: str) -> str | None:
    """The version of an installed package; None without it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def package_code() -> str:
    """Hash of all code that any step may run, and of the presets, spaces and subnets that a run form names.

    A compiled package states it, so that no image of other code runs it.
    """
    named = [file for kind in NAMED for file in (CONFIGS / kind).glob("*.yaml")]
    code = [file for folder in (*SHARED, "components") for file in code_files(ROOT / folder)]
    return hash_files({_name(file): file for file in (*code, *named)})


def code_files(place: Path) -> Iterator[Path]:
    """The file itself, or what a folder holds: modules, and what lies beside them, as a report's style sheet does.

    Left out are Python's caches and hidden files, such as an editor's, or those that are being written.
    """
    if place.is_file():
        yield place
    for file in place.rglob("*"):
        if file.is_file() and not any(part.startswith((".", "__pycache__")) for part in file.relative_to(place).parts):
            yield file


def hash_files(files: Mapping[str, Path]) -> str:
    """Hash of names and contents; the order does not matter."""
    return hash_value({name: hash_file(file) for name, file in files.items()})[:16]


def _name(file: Path) -> str:
    """The same in a checkout and in an installed package, whose configs/ lies inside of autoformer/."""
    return f"configs/{file.relative_to(CONFIGS)}" if file.is_relative_to(CONFIGS) else str(file.relative_to(ROOT))
