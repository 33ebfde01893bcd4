"""The import rules of the house: one way, one edge module for each service, torch only where it is used."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("autoformer", "components", "pipeline", "benchmarks")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}


def imports(tree: ast.AST) -> Iterator[str]:
    """Every imported module, wherever the import stands; `from a import b` gives a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "relative imports hide where a name comes from"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


IMPORTS = {file: set(imports(tree)) for file, tree in TREES.items()}


def importers(package: str, where: str = "") -> set[str]:
    """The files below `where` that import `package` or something in it."""
    return {
        file
        for file, names in IMPORTS.items()
        if file.startswith(where) and any(name == package or name.startswith(f"{package}.") for name in names)
    }


def top_level_imports(tree: ast.Module) -> set[str]:
    return {name for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom) for name in imports(node)}


def test_the_walk_sees_the_house() -> None:
    assert len(TREES) > 20
    assert "autoformer/supernet.py" in importers("torch")
    assert "autoformer/supernet.py" in importers("autoformer.vit")


@pytest.mark.parametrize("package", ["components", "pipeline", "benchmarks", "kfp", "mlflow", "dvc", "boto3"])
def test_library_does_not_know_its_surroundings(package: str) -> None:
    assert importers(package, "autoformer/") == set()


def test_library_parses_no_arguments() -> None:
    """One name is let through: official checkpoints hold an `argparse.Namespace`, a bag of values."""
    for file in importers("argparse", "autoformer/"):
        names = {name for name in IMPORTS[file] if name.startswith("argparse.")}
        assert (file, names) == ("autoformer/official.py", {"argparse.Namespace"})


def test_library_neither_prints_nor_reads_the_environment() -> None:
    for file, tree in TREES.items():
        if not file.startswith("autoformer/"):
            continue
        for node in ast.walk(tree):
            where = f"{file}:{getattr(node, 'lineno', 0)}"
            assert not (isinstance(node, ast.Name) and node.id == "print"), where
            assert not (isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")), where
            assert not (isinstance(node, ast.alias) and node.name in ("environ", "getenv")), where


def test_components_do_not_know_the_pipeline() -> None:
    assert importers("pipeline", "components/") == set()


def test_one_edge_for_each_service() -> None:
    assert {file for file in importers("mlflow") if not file.startswith("components/tracking")} == set()
    assert {file for file in importers("boto3") if not file.startswith("components/storage/")} == set()
    assert importers("dvc") == set()  # used by its command line alone


def component_files() -> list[str]:
    return [file for file in TREES if file.startswith("components/") and file.endswith("/component.py")]


def test_components_are_thin() -> None:
    """A component knows kfp and its image when it is compiled, and its own step when it runs; never torch."""
    assert len(component_files()) >= 6
    for file in component_files():
        names = {name for name in top_level_imports(TREES[file]) if name.partition(".")[0] not in ("kfp", "typing")}
        assert names <= {"components.kfp_edge", "components.kfp_edge.IMAGE"}, file
        for other in set(component_files()) - {file}:
            assert file not in importers(other.removesuffix("/component.py").replace("/", ".")), f"{file}: {other}"
        assert file not in importers("torch") | importers("autoformer") | importers("mlflow"), file


def test_pipeline_leaves_the_work_to_the_steps() -> None:
    assert importers("torch", "pipeline/") == set()
    assert importers("timm", "pipeline/") == set()
    steps = {file for file in TREES if file.endswith("/step.py")} - {"components/resolve_config/step.py"}
    for step in steps:
        assert importers(step.removesuffix(".py").replace("/", "."), "pipeline/") == set()
    for name in IMPORTS["pipeline/dag.py"]:
        is_version = name.startswith("components.resolve_config.step")  # which the compiled package states
        assert not name.startswith("components.") or ".component" in name or is_version, name


def loaded_after_importing(modules: list[str]) -> set[str]:
    """The top-level packages in `sys.modules` of a fresh interpreter that has imported `modules`."""
    code = f"import json, sys; import {', '.join(modules)}; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(run.stdout)}


def test_search_and_everything_it_stands_on_is_torch_free() -> None:
    modules = ["space", "complexity", "named", "files", "errors", "search"]
    loaded = loaded_after_importing(["autoformer", *(f"autoformer.{module}" for module in modules)])
    assert loaded & {"torch", "timm", "torchvision", "mlflow", "kfp", "boto3"} == set()


def test_steps_validate_their_input_before_they_import_torch() -> None:
    steps = [file.removesuffix(".py").replace("/", ".") for file in TREES if file.endswith("/step.py")]
    assert len(steps) >= 6
    loaded = loaded_after_importing(steps)
    assert loaded & {"torch", "timm", "torchvision", "mlflow", "boto3"} == set()
