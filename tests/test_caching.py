"""Caching that never lies: what decides a step's result is in its key, and nothing else is.

Two caches are asked, with the tasks that are really compiled: kfp.local's own, whose key holds where input artifacts
lie and what their metadata say, and that of KFP's backend, whose key holds their names alone.
"""

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from compiled import on_a_short_stack
from google.protobuf.json_format import MessageToDict
from kfp import dsl, local
from kfp.local import cache as local_cache
from kfp.local import config as local_config
from user_images import class_folders

import components.resolve_config.step
import pipeline.dag
import pipeline.local
from autoformer.files import hash_value
from commands.own_images import propose_run
from components.prepare_data.component import prepare_data
from components.resolve_config.step import CACHED_STEPS, component_outputs, resolve
from pipeline.cluster.placement import configure_task, pipeline_config
from pipeline.cluster.settings import load_cluster
from pipeline.dag import build
from runtime.common.config import STEPS

FORM = {"preset": "smoke", "overrides": "", "seed": -1, "max_params_m": 0.0, "data": "data/x", "data_hash": "0" * 64}
OTHER = "registry.example.com/other@sha256:" + "1" * 64


class Package(NamedTuple):
    specification: dict[str, Any]
    claims: dict[str, list[str]]  # of each executor


def compiled(built: Any) -> Package:
    platform = MessageToDict(built.platform_spec).get("platforms", {}).get("kubernetes", {})
    pods = platform.get("deploymentSpec", {}).get("executors", {})
    claims = {name: [mount["constant"] for mount in pod.get("pvcMount", ())] for name, pod in pods.items()}
    return Package(MessageToDict(built.pipeline_spec), claims)


def for_cluster(name: str, *overrides: str) -> Package:
    cluster = load_cluster(name, overrides)
    configure = partial(configure_task, cluster)
    return compiled(on_a_short_stack(build, configure, cluster.images.training, pipeline_config(cluster)))


def for_here() -> Package:
    """As `make run` compiles it."""
    built = on_a_short_stack(build)
    pipeline.local.name_sources(built)
    return compiled(built)


def parameters(package: Package, form: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Task -> its parameters in a run of that form: resolve_config is run, and told what the package tells it."""
    tasks = package.specification["root"]["dag"]["tasks"]
    made: dict[str, Any] = {}

    def value(source: dict[str, Any]) -> Any:
        if "runtimeValue" in source:
            return source["runtimeValue"]["constant"]
        if "componentInputParameter" in source:
            return form[source["componentInputParameter"]]
        assert source["taskOutputParameter"]["producerTask"] == "resolve-config"
        return made[source["taskOutputParameter"]["outputParameterKey"]]

    def given(task: str) -> dict[str, Any]:
        return {name: value(source) for name, source in tasks[task]["inputs"]["parameters"].items()}

    names = [*STEPS, "data_hash", *(f"{step}_lineage" for step in CACHED_STEPS)]
    made |= dict(zip(names, component_outputs(**given("resolve-config")), strict=True))
    return {task: given(task) for task in tasks}


def upstream(package: Package, task: str) -> list[tuple[str, str, str]]:
    """The input artifacts of a task: name, the task that makes it, its name there; in a fixed order."""
    inputs = package.specification["root"]["dag"]["tasks"][task]["inputs"].get("artifacts", {})
    sources = {name: source["taskOutputArtifact"] for name, source in inputs.items()}
    return sorted((name, source["producerTask"], source["outputArtifactKey"]) for name, source in sources.items())


def container(package: Package, task: str) -> dict[str, Any]:
    found: dict[str, Any] = package.specification["deploymentSpec"]["executors"][f"exec-{task}"]["container"]
    return found


Keys = dict[str, str]  # step -> its key


def keys_of_the_backend(package: Package, form: dict[str, Any]) -> Keys:
    """What `GenerateCacheKey` of KFP 2.17 hashes: backend/src/v2/cacheutils/cache.go."""
    given = parameters(package, form)
    keys = {}
    for step in CACHED_STEPS:
        task = step.replace("_", "-")
        runs = container(package, task)
        keys[step] = hash_value(
            {
                "containerSpec": {"containerImage": runs["image"], "cmdArgs": [*runs["command"], *runs["args"]]},
                "inputArtifactNames": [name for name, _, _ in upstream(package, task)],
                "inputParameterValues": given[task],
                "outputs": package.specification["components"][f"comp-{task}"]["outputDefinitions"],
                "pvcNames": sorted(package.claims.get(f"exec-{task}", ())),
            }
        )
    return keys


def keys_of_kfp_local(package: Package, form: dict[str, Any], folder: Path) -> Keys:
    """kfp.local's own keys; what a task makes lies in a folder of its own wherever it has missed the cache."""
    cache = local_cache.LocalCache(str(folder))
    given = parameters(package, form)
    keys: Keys = {}
    for step in CACHED_STEPS:
        task = step.replace("_", "-")
        artifacts = {
            name: dsl.Artifact(name=output, uri=f"runs/{keys[maker.replace('-', '_')]}/{output}", metadata={})
            for name, maker, output in upstream(package, task)
        }
        runs = container(package, task)
        keys[step] = cache.compute_key(
            component_name=f"comp-{task}",
            image=runs["image"],
            full_command=[*runs["command"], *runs["args"]],
            arguments=given[task] | artifacts,
            env_vars={variable["name"]: variable["value"] for variable in runs.get("env", ())},
        )
    return keys


@pytest.fixture(params=["gpu", "multi-node", "here"])
def keys(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[dict[str, Any]], Keys]:
    """The keys of a run, by its form: on a cluster, on several machines, and here."""
    if request.param == "here":
        package = for_here()
        return lambda form: keys_of_kfp_local(package, form, tmp_path / "cache")
    package = for_cluster(request.param)
    return lambda form: keys_of_the_backend(package, form)


def changed(before: Keys, after: Keys) -> set[str]:
    return {step for step in CACHED_STEPS if before[step] != after[step]}


FROM_TRAINING = set(CACHED_STEPS) - {"prepare_data"}
FROM_SEARCH = FROM_TRAINING - {"train_supernet"}
FROM_RETRAINING = FROM_SEARCH - {"search_subnet"}


def test_a_changed_setting_misses_where_it_decides_the_result_and_nowhere_else(
    keys: Callable[[dict[str, Any]], Keys],
) -> None:
    """A step's own settings, and those of the steps that have made its inputs."""
    before = keys(FORM)
    assert len(set(before.values())) == len(CACHED_STEPS)
    cases: list[tuple[dict[str, Any], set[str]]] = [
        ({}, set()),
        ({"overrides": "prepare_data.search_images=900"}, set(CACHED_STEPS)),
        ({"overrides": "train_supernet.epochs=0.2"}, FROM_TRAINING),
        ({"overrides": "search_subnet.population=7"}, FROM_SEARCH),
        ({"max_params_m": 0.45}, FROM_SEARCH),
        ({"overrides": "retrain_subnet.epochs=0.3"}, FROM_RETRAINING),
        ({"overrides": "evaluate_subnet.mistakes=3"}, {"evaluate_subnet"}),
        ({"overrides": "register_model.alias=other"}, set()),
        ({"seed": 5}, set(CACHED_STEPS)),
        ({"data_hash": "1" * 64}, set(CACHED_STEPS)),
        ({"preset": str(pipeline.local.ROOT / "configs" / "presets" / "smoke.yaml")}, set()),  # the same by its path
    ]
    assert [changed(before, keys(FORM | form)) for form, _ in cases] == [expected for _, expected in cases]


@pytest.mark.parametrize("place", ["gpu", "multi-node"])
def test_another_image_misses_and_other_machines_do_not(place: str) -> None:
    """On several machines too, where the image of a step is not that of its task."""
    before = keys_of_the_backend(for_cluster(place), FORM)
    for overrides, expected in (
        ((), set()),
        ((f"images.training={OTHER}",), set(CACHED_STEPS)),
        (("namespace=other", "env.MLFLOW_TRACKING_URI=http://other:5000", "deadline_seconds=5"), set()),
        (("steps.train_supernet.gpus=4", "steps.train_supernet.cpu='2'", "steps.train_supernet.memory=64Gi"), set()),
        (("steps.prepare_data.node_selector={a: b}", "service_account=other", "secrets=[]"), set()),
    ):
        assert changed(before, keys_of_the_backend(for_cluster(place, *overrides), FORM)) == expected, overrides


def test_a_rebuilt_image_under_the_same_tag_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tags pass on a cluster of development: what they hold is told by the source that the package states."""
    tags = ("images={training: a/b:dev, launcher: a/c:dev, allow_tags: true}",)
    before = keys_of_the_backend(for_cluster("gpu", *tags), FORM)
    for module in (pipeline.dag, components.resolve_config.step):
        monkeypatch.setattr(module, "package_code", lambda: "0123456789abcdef")
    assert changed(before, keys_of_the_backend(for_cluster("gpu", *tags), FORM)) == set(CACHED_STEPS)


def test_here_an_edit_misses_in_the_step_that_it_is_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = keys_of_kfp_local(for_here(), FORM, tmp_path)
    own = pipeline.local.step_code
    monkeypatch.setattr(pipeline.local, "step_code", lambda step: "edited" if step == "search_subnet" else own(step))
    assert changed(before, keys_of_kfp_local(for_here(), FORM, tmp_path)) == FROM_SEARCH


def test_run_ids_are_in_no_key(monkeypatch: pytest.MonkeyPatch, keys: Callable[[dict[str, Any]], Keys]) -> None:
    before = keys(FORM)
    for name in ("MLFLOW_RUN_ID", "AUTOFORMER_PARENT_RUN_ID", "KFP_RUN_ID", "AUTOFORMER_RUNNER_PID"):
        monkeypatch.setenv(name, "another")
    assert changed(before, keys(FORM)) == set()
    assert not {"another", "KFP_RUN_ID"} & set(json.dumps(before))


def test_a_lineage_is_of_all_that_a_step_stands_on() -> None:
    """The steps before it in `STEPS` are at least those whose outputs reach it."""
    package = for_cluster("gpu")

    def reaching(task: str) -> set[str]:
        makers = {maker for _, maker, _ in upstream(package, task)}
        return makers.union(*(reaching(maker) for maker in makers))

    for step in CACHED_STEPS:
        makers = {task.replace("-", "_") for task in reaching(step.replace("_", "-"))}
        assert makers <= set(STEPS[: STEPS.index(step)]), step


# --- a real step in kfp.local's real cache ---


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """kfp.local as `make run` sets it up, with a cache of its own."""
    monkeypatch.setenv("AUTOFORMER_TRACKING", "off")
    monkeypatch.setenv("AUTOFORMER_WORK", str(tmp_path / "work"))
    instance = local_config.LocalExecutionConfig.instance
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(tmp_path / "runs"),
        enable_caching=True,
        cache_root=str(tmp_path / "cache"),
    )
    yield tmp_path
    local_config.LocalExecutionConfig.instance = instance
    local_cache.reset_local_cache_singleton()


@pytest.mark.slow
def test_a_real_step_hits_and_misses_as_it_should(runner: Path) -> None:
    proposal = propose_run(class_folders(runner / "images", 12, 12), None, [], runner / "packs")
    config = resolve(str(proposal.preset), proposal.overrides).step_json("prepare_data")

    @dsl.pipeline(name="one-step")
    def one_step(config: str, lineage: str, data: str, data_hash: str) -> dsl.Dataset:
        return prepare_data(config=config, lineage=lineage, data=data, data_hash=data_hash).outputs["train_split"]

    def run(**other: str) -> tuple[Path, float]:
        start = time.monotonic()
        given = {"config": config, "lineage": "", "data": str(proposal.data), "data_hash": "0"}
        return Path(one_step(**(given | other)).output.path), time.monotonic() - start

    first, _ = run()
    second, seconds = run()
    assert first.is_file() and second == first and seconds < 2  # a hit starts no process
    third, _ = run(data_hash="1")
    assert third.is_file() and third != first
    assert run()[0] == first
