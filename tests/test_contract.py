"""The two DAGs are one pipeline: dvc.yaml, the KFP components and the steps' own parsers agree.

A component's body is run for real, with KFP's own artifact objects; only the `main` that it calls is replaced,
by one that parses what it is given with the step's own parser and leaves the files that the body reads.
"""

import argparse
import importlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
import yaml
from kfp import compiler, dsl

from autoformer.files import canonical_json
from components.resolve_config.step import CACHED_STEPS, lineages
from pipeline.dag import autoformer
from runtime.common.code import package_code, step_code, step_folders
from runtime.common.config import ROOT, STEPS, load_config
from runtime.steps.kfp_edge import CODE, IMAGE, call

DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
PRESETS = sorted((ROOT / "configs" / "presets").glob("*.yaml"))


class Call(NamedTuple):
    """A step's command line as one of the two DAGs builds it."""

    arguments: argparse.Namespace
    given: dict[str, str]  # --name -> value


def step_module(step: str) -> Any:
    return importlib.import_module(f"components.{step}.step")


def component(step: str) -> Any:
    return getattr(importlib.import_module(f"components.{step}.component"), step)


def as_call(step: str, argv: list[str]) -> Call:
    assert all(name.startswith("--") for name in argv[::2]), argv
    return Call(step_module(step).parser().parse_args(argv), dict(zip(argv[::2], argv[1::2], strict=True)))


def resolved(text: str) -> str:
    """DVC's `${key}` with the values of params.yaml."""
    return re.sub(r"\$\{([\w.]+)\}", lambda found: str(PARAMS[found[1]]), text)


def dvc_call(step: str) -> Call:
    python, flag, module, *argv = shlex.split(resolved(DVC["stages"][step]["cmd"]))
    assert (python, flag, module) == ("python", "-m", f"components.{step}")
    return as_call(step, argv)


def out_paths(stage: dict[str, Any]) -> list[str]:
    return [next(iter(out)) if isinstance(out, dict) else out for out in stage["outs"]]


def kfp_argument(name: str, annotation: Any, folder: Path) -> Any:
    """What KFP hands to a component: an artifact object, or a plain value."""
    if annotation is str:
        return str(folder / name)
    artifact_type = get_args(annotation)[0]
    return artifact_type(name=name, uri=str(folder / name), metadata={})


def kfp_call(step: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run the component's body; what it gives to the step's `main`."""
    calls: list[Call] = []

    def recorder(argv: list[str]) -> int:
        calls.append(as_call(step, argv))
        out = getattr(calls[-1].arguments, "out", None)
        if out is not None and step != "register_model":
            out.mkdir()
            (out / "metrics.json").write_text('{"figure": 1.5}')
            (out / "confusion.json").write_text('{"classes": ["a", "b"], "matrix": [[3, 1], [0, 4]]}')
            (out / "report.html").write_text("<html></html>")
        return 0

    monkeypatch.setattr(step_module(step), "main", recorder)
    body = component(step).python_func
    annotations = {name: kind for name, kind in body.__annotations__.items() if name != "return"}
    values = {name: kfp_argument(name, kind, folder) for name, kind in annotations.items()}
    body(**values)
    for name, value in values.items():
        if isinstance(value, dsl.Metrics) and name == "metrics":
            assert value.metadata == {"figure": 1.5}
    assert len(calls) == 1
    return calls[0]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The compiled pipeline."""
    file = tmp_path_factory.mktemp("package") / "autoformer.yaml"
    compiler.Compiler().compile(autoformer, str(file))
    return next(document for document in yaml.safe_load_all(file.read_text()) if "root" in document)


def tasks(package: dict[str, Any]) -> dict[str, Any]:
    """The DAG's tasks by the name of their step."""
    return {name.replace("-", "_"): task for name, task in package["root"]["dag"]["tasks"].items()}


@pytest.mark.parametrize("step", STEPS)
def test_both_dags_call_a_step_alike(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_dvc, by_kfp = dvc_call(step), kfp_call(step, tmp_path, monkeypatch)
    assert by_dvc.given.keys() == by_kfp.given.keys()
    assert load_config(by_dvc.given["--config"], steps=[step]).seed == PARAMS["seed"]


@pytest.mark.parametrize("step", STEPS)
def test_both_dags_wire_a_step_to_the_same_makers(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: dict[str, Any]
) -> None:
    """Each input comes from the same step's output, found under the same argument."""
    made_by = {path: stage for stage, content in DVC["stages"].items() for path in out_paths(content) if stage != step}
    by_dvc = {name: made_by[value] for name, value in dvc_call(step).given.items() if value in made_by}
    parameters = {Path(value).name: name for name, value in kfp_call(step, tmp_path, monkeypatch).given.items()}
    artifacts = tasks(package)[step]["inputs"].get("artifacts", {})
    by_kfp = {
        parameters[parameter]: source["taskOutputArtifact"]["producerTask"].replace("-", "_")
        for parameter, source in artifacts.items()
    }
    assert by_dvc == by_kfp
    assert all(path in DVC["stages"][step]["deps"] for path in dvc_call(step).given.values() if path in made_by)


def test_every_step_is_everywhere(package: dict[str, Any]) -> None:
    assert tuple(DVC["stages"]) == STEPS
    assert set(tasks(package)) == {"resolve_config", *STEPS}
    for preset in [ROOT / "params.yaml", *PRESETS]:
        assert set(yaml.safe_load(preset.read_text())) >= set(STEPS), preset
    for step in STEPS:
        assert step in DVC["stages"][step]["params"]
        assert component(step).name == step.replace("_", "-")
        assert step == step_module(step).STEP
        outputs = package["components"]["comp-resolve-config"]["outputDefinitions"]["parameters"]
        assert outputs[step] == {"parameterType": "STRING"}
        config = tasks(package)[step]["inputs"]["parameters"]["config"]["taskOutputParameter"]
        assert config == {"outputParameterKey": step, "producerTask": "resolve-config"}


def test_params_yaml_is_the_demo_preset() -> None:
    assert (ROOT / "params.yaml").read_bytes() == (ROOT / "configs" / "presets" / "demo.yaml").read_bytes()


def test_only_evaluate_subnet_reaches_the_test_split(package: dict[str, Any]) -> None:
    readers = {
        step
        for step, task in tasks(package).items()
        for source in task.get("inputs", {}).get("artifacts", {}).values()
        if source["taskOutputArtifact"]["outputArtifactKey"] == "test_split"
    }
    assert readers == {"evaluate_subnet"}
    makers = {step for step, stage in DVC["stages"].items() if "artifacts/splits/test.parquet" in out_paths(stage)}
    readers = {step for step, stage in DVC["stages"].items() if "test.parquet" in json.dumps(stage)} - makers
    assert (makers, readers) == ({"prepare_data"}, {"evaluate_subnet"})
    takers = {step for step in STEPS if "--test-split" in step_module(step).parser().format_help()}
    assert takers == {"prepare_data", "evaluate_subnet"}
    assert all("artifacts/splits" not in stage["deps"] for stage in DVC["stages"].values())


def test_registration_is_never_taken_from_a_cache(package: dict[str, Any]) -> None:
    cached = {step for step, task in tasks(package).items() if task["cachingOptions"].get("enableCache")}
    assert cached == set(STEPS) - {"register_model"}
    assert DVC["stages"]["register_model"]["outs"] == [
        {f"artifacts/{file}": {"cache": False, "persist": True}} for file in ("registration.json", "model_card.md")
    ]


def test_pipeline_parameters_are_few_and_plain(package: dict[str, Any]) -> None:
    parameters = package["root"]["inputDefinitions"]["parameters"]
    kinds = {name: parameter["parameterType"] for name, parameter in parameters.items()}
    assert kinds == {
        "preset": "STRING",
        "data": "STRING",
        "data_hash": "STRING",
        "max_params_m": "NUMBER_DOUBLE",
        "seed": "NUMBER_INTEGER",
        "overrides": "STRING",
    }
    assert all(parameter["description"] for parameter in parameters.values())
    assert "artifacts" not in package["root"]["inputDefinitions"]
    assert all("LIST" not in json.dumps(part) and "STRUCT" not in json.dumps(part) for part in definitions(package))


def test_data_alone_must_be_named_for_a_run_since_no_default_holds_on_every_cluster(package: dict[str, Any]) -> None:
    parameters = package["root"]["inputDefinitions"]["parameters"]
    assert [name for name, parameter in parameters.items() if not parameter.get("isOptional")] == ["data"]


def definitions(package: dict[str, Any]) -> Iterator[Any]:
    for part in package["components"].values():
        yield part.get("inputDefinitions", {})
        yield part.get("outputDefinitions", {})


def test_components_run_our_image_as_it_is(package: dict[str, Any]) -> None:
    for name, executor in package["deploymentSpec"]["executors"].items():
        assert executor["container"]["image"] == IMAGE, name
        assert "pip install" not in json.dumps(executor), name


def test_a_failed_step_fails_its_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module("prepare_data"), "main", lambda argv: len(argv))
    with pytest.raises(SystemExit) as ended:
        call("prepare_data", ["two", "words"])
    assert ended.value.code == 2
    call("prepare_data", [])


def test_code_that_was_edited_meanwhile_is_not_kept_under_the_old_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(step_module("prepare_data"), "main", lambda argv: calls.append(argv))
    monkeypatch.setenv(
        CODE, json.dumps({"prepare_data": step_code("prepare_data"), "search_subnet": "of another edit"})
    )
    call("prepare_data", [])
    with pytest.raises(SystemExit) as ended:
        call("search_subnet", [])
    assert (ended.value.code, calls) == (2, [[]])
    assert "search_subnet: the code was edited while the pipeline ran; " in capsys.readouterr().err


def test_a_package_of_another_version_is_other_code(monkeypatch: pytest.MonkeyPatch) -> None:
    before = step_code("search_subnet")
    step_code.cache_clear()
    monkeypatch.setattr("runtime.common.code.version", lambda name: "9.9" if name == "torch" else version(name))
    assert step_code("search_subnet") != before
    step_code.cache_clear()


def test_a_component_works_when_its_source_is_shipped_alone(package: dict[str, Any], tmp_path: Path) -> None:
    """As KFP starts it: the source in a file of its own, run by KFP's executor, in another folder."""
    container = package["deploymentSpec"]["executors"]["exec-resolve-config"]["container"]
    source = container["command"][-1]
    assert "def resolve_config" in source
    (tmp_path / "ephemeral_component.py").write_text(source)
    outputs = package["components"]["comp-resolve-config"]["outputDefinitions"]["parameters"]
    files = {name: str(tmp_path / name) for name in outputs}
    told = {
        "inputs": {
            "parameterValues": {
                "preset": "demo",
                "overrides": "seed=5 threads=1",
                "seed": 3,
                "max_params_m": 0.3,
                "compiled_from": package_code(),
                "image": "",
                "data": "",
                "data_hash": "0123",
            }
        },
        "outputs": {
            "parameters": {name: {"outputFile": file} for name, file in files.items()},
            "outputFile": str(tmp_path / "executor_output.json"),
        },
    }
    command = [sys.executable, "-m", "kfp.dsl.executor_main"]
    command += ["--component_module_path", str(tmp_path / "ephemeral_component.py")]
    command += ["--executor_input", json.dumps(told), "--function_to_execute", "resolve_config"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    other = json.dumps(told).replace(package_code(), "0123456789abcdef")
    refused = subprocess.run(
        [other if part == json.dumps(told) else part for part in command],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "resolve_config: the package was compiled from other source (0123456789abcdef)" in refused.stderr
    assert "Traceback" not in refused.stderr
    expected = load_config("demo", ["seed=5", "threads=1", "search_subnet.limits.max_params_m=0.3"])
    values = json.loads((tmp_path / "executor_output.json").read_text())["parameterValues"]
    assert list(values) == [*STEPS, "data_hash", *(f"{step}_lineage" for step in CACHED_STEPS)]
    parts = {step: expected.step_json(step) for step in STEPS}
    parts["register_model"] = canonical_json(expected.model_dump(mode="json"))  # tells MLflow of the whole run
    assert {step: values[step] for step in STEPS} == parts
    assert [values["data_hash"], *(values[f"{step}_lineage"] for step in CACHED_STEPS)] == [
        "0123",
        *lineages(expected, ""),
    ]
    assert load_config(values["search_subnet"], steps=["search_subnet"]).search_subnet == expected.search_subnet


@pytest.mark.parametrize("step", STEPS)
def test_a_stage_depends_on_all_code_that_its_step_may_run(step: str) -> None:
    """The same folders as the key of its work and of its task in the cache; their import closure: test_architecture."""
    deps = {resolved(dep) for dep in DVC["stages"][step]["deps"]}
    outside = {dep for dep in deps if not dep.startswith(("artifacts/", "data/", "configs/"))}
    assert outside == {*step_folders(step), "requirements.lock"}
    assert all((ROOT / dep).exists() for dep in deps if not dep.startswith("artifacts/")), deps
