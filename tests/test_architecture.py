"""The import rules of the house: one way, one edge module for each service, torch only where it is used."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.common.code import code_files, step_folders
from runtime.common.config import STEPS

ROOT = Path(__file__).resolve().parents[1]
FLOORS = (
    ("autoformer",),
    ("runtime.common",),
    ("runtime.tracking", "runtime.storage", "runtime.kubernetes"),
    ("runtime.steps",),
    ("components",),
    ("commands", "benchmarks"),
    ("pipeline",),
)  # a module imports from its own floor and those before it
FOLDERS = ("autoformer", "runtime", "components", "commands", "pipeline", "benchmarks")
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


MODULES = {file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): file for file in TREES}


def own_imports(module: str) -> set[str]:
    """The modules of this project that `module` imports, inside functions too."""
    names = {name for name in IMPORTS[MODULES[module]] if name in MODULES} - {module}
    return {name for name in names if not any(other.startswith(f"{name}.") for other in names) or name not in PACKAGES}


PACKAGES = {module for module, file in MODULES.items() if file.endswith("/__init__.py")}


def floor(module: str) -> int:
    found = [number for number, names in enumerate(FLOORS) for name in names if f"{module}.".startswith(f"{name}.")]
    assert found or module == "runtime", f"{module}: no floor is named for it"  # `runtime` itself holds nothing
    return found[0] if found else 0


def test_imports_go_one_way() -> None:
    upwards = [(m, other) for m in MODULES for other in own_imports(m) if floor(other) > floor(m)]
    assert upwards == []
    assert floor("runtime.storage.mirror") == 2 < floor("components.search_subnet.step") < floor("pipeline.local")
    assert "runtime.common.console" in own_imports("runtime.steps.command")


def test_imports_go_in_no_circle() -> None:
    left = {module: own_imports(module) for module in MODULES}
    while free := [module for module, needed in left.items() if not needed & left.keys()]:
        for module in free:
            del left[module]
    assert left == {}


def test_no_step_imports_another() -> None:
    for module in MODULES:
        others = {tuple(name.split(".")[:2]) for name in own_imports(module) if name.startswith("components.")}
        assert not module.startswith("components.") or others <= {tuple(module.split(".")[:2])}, module


def test_components_holds_nothing_but_the_steps() -> None:
    assert {path.name for path in (ROOT / "components").iterdir() if path.name != "__pycache__"} == {
        "__init__.py", "resolve_config", *STEPS,
    }  # fmt: skip


def closure(module: str) -> set[str]:
    """The modules of this project that run when `module` is imported and called: imports inside functions too."""
    found, waiting = set(), [module]
    while waiting:
        if (name := waiting.pop()) not in found:
            found.add(name)
            parents = {name.rsplit(".", up)[0] for up in range(1, name.count(".") + 1)} & MODULES.keys()
            waiting += own_imports(name) | parents
    return found


@pytest.mark.parametrize("step", ["resolve_config", *STEPS])
def test_the_key_of_a_step_covers_all_code_that_it_runs(step: str) -> None:
    covered = {file.relative_to(ROOT).as_posix() for folder in step_folders(step) for file in code_files(ROOT / folder)}
    runs = {MODULES[module] for module in closure(f"components.{step}.step")}
    if step in STEPS:
        runs |= {MODULES[module] for module in closure(f"components.{step}.__main__")}
        assert {f"components/{step}/step.py", "runtime/tracking/runs.py", "runtime/storage/artifacts.py"} <= runs
    assert runs - covered == {"components/__init__.py"}
    assert len(TREES["components/__init__.py"].body) == 1  # its docstring


@pytest.mark.parametrize("package", ["kfp", "mlflow", "dvc", "boto3"])
def test_library_does_not_know_its_surroundings(package: str) -> None:
    assert importers(package, "autoformer/") == set()


def test_library_parses_no_arguments() -> None:
    """One name is let through: checkpoints hold an `argparse.Namespace`, a bag of values."""
    for file in importers("argparse", "autoformer/"):
        names = {name for name in IMPORTS[file] if name.startswith("argparse.")}
        assert (file, names) == ("autoformer/weights.py", {"argparse.Namespace"})


def test_library_neither_prints_nor_reads_the_environment() -> None:
    for file, tree in TREES.items():
        if not file.startswith("autoformer/"):
            continue
        for node in ast.walk(tree):
            where = f"{file}:{getattr(node, 'lineno', 0)}"
            assert not (isinstance(node, ast.Name) and node.id == "print"), where
            assert not (isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")), where
            assert not (isinstance(node, ast.alias) and node.name in ("environ", "getenv")), where


def test_one_edge_for_each_service() -> None:
    assert {file for file in importers("mlflow") if not file.startswith("runtime/tracking")} == set()
    assert {file for file in importers("boto3") if not file.startswith("runtime/storage/")} == set()
    assert importers("dvc") == set()  # used by its command line alone


# of other libraries: each would read formats, sizes and files that autoformer/images/opening.py refuses
OTHER_READERS = {
    "Image.open",
    "ImageFile.Parser",
    "imread",
    "read_image",
    "decode_image",
    "decode_png",
    "default_loader",
}


def test_one_door_for_pictures() -> None:
    calls = {
        (file, name)
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute | ast.Name)
        for name in OTHER_READERS
        if f".{ast.unparse(node)}".endswith(f".{name}")
    }
    timed = {(f"benchmarks/{part}.py", "Image.open") for part in ("loader", "packing")}  # of pictures made there
    assert calls == timed | {("autoformer/images/opening.py", "Image.open")}


def component_files() -> list[str]:
    return [file for file in TREES if file.startswith("components/") and file.endswith("/component.py")]


def test_components_are_thin() -> None:
    """A component knows kfp and its image when it is compiled, and its own step when it runs; never torch."""
    assert len(component_files()) >= 6
    for file in component_files():
        names = {name for name in top_level_imports(TREES[file]) if name.partition(".")[0] not in ("kfp", "typing")}
        assert names <= {"runtime.steps.kfp_edge", "runtime.steps.kfp_edge.IMAGE"}, file
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
        assert not name.startswith("components.") or ".component" in name, name


def loaded_after_importing(modules: list[str]) -> set[str]:
    """The top-level packages in `sys.modules` of a fresh interpreter that has imported `modules`."""
    code = f"import json, sys; import {', '.join(modules)}; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(run.stdout)}


def test_search_and_everything_it_stands_on_is_torch_free() -> None:
    modules = ["space", "complexity", "named", "files", "errors", "search", "front"]
    loaded = loaded_after_importing(["autoformer", *(f"autoformer.{module}" for module in modules)])
    assert loaded & {"torch", "timm", "torchvision", "mlflow", "kfp", "boto3"} == set()


def test_steps_validate_their_input_before_they_import_torch() -> None:
    steps = [file.removesuffix(".py").replace("/", ".") for file in TREES if file.endswith("/step.py")]
    assert len(steps) >= 6
    loaded = loaded_after_importing(steps)
    assert loaded & {"torch", "timm", "torchvision", "mlflow", "boto3"} == set()


def test_what_the_launcher_runs_imports_only_what_its_image_has() -> None:
    """docker/launcher.in has no Pillow, no pyarrow and no torch."""
    modules = ["components.resolve_config.step", "runtime.steps.kfp_edge", "runtime.steps.job_launch"]
    loaded = loaded_after_importing([*modules, "pipeline.cluster.compile", "pipeline.cluster.submit"])
    assert loaded & {"PIL", "pyarrow", "torch", "timm", "torchvision", "mlflow", "scipy", "pandas"} == set()
