"""Hashes of the code of a step, for work folders, cache keys, compiled packages and dvc.yaml.

A step's key covers the library, the shared code with its services, the step's own folder, and the versions of the
packages that compute. tests/test_architecture.py checks that the imports of each step lie inside. An edit of a shared
module therefore runs every step again, also where it would not have been necessary.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from autoformer.files import hash_file, hash_value
from autoformer.named import CONFIGS
from runtime.common.config import ROOT

SHARED = ("autoformer", "runtime")  # folders of code that every step may run
PACKAGES = ("numpy", "pillow", "pyarrow", "timm", "torch", "torchvision")  # packages that affect results
NAMED = ("presets", "spaces", "subnets")  # folders of configs/ with files that a run form can name


def step_folders(step: str) -> tuple[str, ...]:
    """The folders of all code that a step may run, relative to the checkout; its stage in dvc.yaml depends on them."""
    return (*SHARED, f"components/{step}")


@cache
def step_code(step: str) -> str:
    """Hash of all code that a step may run, and of the versions of `PACKAGES`."""
    files = {_name(file): file for folder in step_folders(step) for file in code_files(ROOT / folder)}
    return hash_value([hash_files(files), [[name, _installed_version(name)] for name in PACKAGES]])[:16]


def _installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def package_code() -> str:
    """Hash of all code that any step may run, and of the presets, spaces and subnets that a run form can name.

    A compiled package contains it, and images with other code refuse the package.
    """
    named = [file for kind in NAMED for file in (CONFIGS / kind).glob("*.yaml")]
    code = [file for folder in (*SHARED, "components") for file in code_files(ROOT / folder)]
    return hash_files({_name(file): file for file in (*code, *named)})


def code_files(path: Path) -> Iterator[Path]:
    """The file itself, or all files of a folder: modules, and others such as the report's style sheet.

    Python's caches and hidden files are left out.
    """
    if path.is_file():
        yield path
    for file in path.rglob("*"):
        if file.is_file() and not any(part.startswith((".", "__pycache__")) for part in file.relative_to(path).parts):
            yield file


def hash_files(files: Mapping[str, Path]) -> str:
    """Hash of names and contents; the order does not matter."""
    return hash_value({name: hash_file(file) for name, file in files.items()})[:16]


def _name(file: Path) -> str:
    """A file's name, equal in a checkout and in an installed package, which has configs/ inside of autoformer/."""
    return f"configs/{file.relative_to(CONFIGS)}" if file.is_relative_to(CONFIGS) else str(file.relative_to(ROOT))
