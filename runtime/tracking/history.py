"""Pipeline runs, read from MLflow: inputs, results, and code versions."""

from typing import TYPE_CHECKING, NamedTuple

from autoformer.errors import AutoFormerError, quantity
from runtime.common.config import STEPS
from runtime.common.redaction import without_password
from runtime.tracking.experiments import experiment_id
from runtime.tracking.operations import PARENT
from runtime.tracking.store import connect, tracking_uri, translate_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MAX_LISTED = 1000
MIN_PREFIX = 4  # characters of a run id
# Inputs of steps that are data, not outputs of earlier steps.
DATA = ("card", "train_split", "train_full_split", "search_split", "test_split")


class PipelineRun(NamedTuple):
    """A pipeline run. All fields except `scores` are text, as in MLflow. In lists, values of its steps are missing."""

    run_id: str
    name: str
    status: str
    started: int  # milliseconds since 1970
    params: dict[str, str]  # without their prefix `cfg/`
    data: dict[str, str]  # name -> hash
    code: dict[str, str]
    architecture: dict[str, str]  # without the prefix `arch/`
    scores: dict[str, float]


def list_pipeline_runs(limit: int = MAX_LISTED) -> list[PipelineRun]:
    """The latest pipeline runs, newest first."""
    with translate_errors(tracking_uri()):
        client = connect()
        runs = client.search_runs(
            [experiment_id(client)],
            "tags.stage = 'pipeline'",
            order_by=["attributes.start_time DESC"],
            max_results=limit,
        )
    return [_pipeline_run(run, []) for run in runs]


def find_run_id(name: str) -> str | None:
    """The id of a pipeline run, from its id, a unique prefix of it, or the id of a step's or candidate's run.

    Raises:
        AutoFormerError: the prefix is not unique.
    """
    ids = [run.run_id for run in list_pipeline_runs()]
    if name in ids:
        return name
    matches = [run_id for run_id in ids if run_id.startswith(name)] if len(name) >= MIN_PREFIX else []
    if len(matches) > 1:
        raise AutoFormerError(f"{name}: the ids of {quantity(len(matches), 'pipeline run')} begin so; give more of it")
    with translate_errors(tracking_uri()):
        return matches[0] if matches else _pipeline_run_above(connect(), name)


def _pipeline_run_above(client: "MlflowClient", run_id: str) -> str | None:
    from mlflow.exceptions import MlflowException

    for _ in range(3):  # candidate, search_subnet, pipeline run
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
        if run.data.tags.get("stage") == "pipeline":
            return str(run.info.run_id)
        run_id = run.data.tags.get(PARENT, "")
    return None


def read_pipeline_run(run_id: str) -> PipelineRun:
    """A pipeline run with the values that its steps logged.

    A cached step has no run in this pipeline run. Its splits then come from other runs with the same card, which is an
    input of a step that always runs.
    """
    with translate_errors(tracking_uri()):
        client = connect()
        parent = client.get_run(run_id)
        nested = f"tags.`{PARENT}` = '{run_id}'"
        # oldest first, so the latest run of a step wins
        runs = client.search_runs([parent.info.experiment_id], nested, order_by=["attributes.start_time ASC"])
        card = _data(parent, runs).get("card")
        same = f"dataset.digest = '{card}'"
        others = client.search_runs([parent.info.experiment_id], same, max_results=MAX_LISTED) if card else []
    if parent.data.tags.get("stage") != "pipeline":
        raise AutoFormerError(f"{run_id}: not a pipeline run of {without_password(tracking_uri())}")
    by_step = {run.data.tags.get("stage"): run for run in runs}
    steps = [by_step[step] for step in STEPS if step in by_step]
    run = _pipeline_run(parent, steps)
    known = {name: digest for other in others for name, digest in _splits([other]).items()}
    return run._replace(data=run.data | {name: digest for name, digest in known.items() if name not in run.data})


def _pipeline_run(parent: "Run", steps: "list[Run]") -> PipelineRun:
    info = parent.info
    return PipelineRun(
        str(info.run_id),
        str(info.run_name),
        str(info.status),
        int(info.start_time),
        params=_without_prefix(parent.data.params, "cfg/"),
        data=_data(parent, steps),
        code=_code(parent, steps),
        architecture={key: value for run in steps for key, value in _without_prefix(run.data.params, "arch/").items()},
        scores={key: value for run in [*steps, parent] for key, value in run.data.metrics.items()},
    )


def _without_prefix(values: dict[str, str], prefix: str) -> dict[str, str]:
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def _data(parent: "Run", steps: "list[Run]") -> dict[str, str]:
    tags = parent.data.tags
    hashes = {"images": tags.get("data_hash", ""), "data.dvc": tags.get("dvc_revision", "")}
    return {key: value for key, value in (hashes | _splits(steps)).items() if value}


def _splits(steps: "list[Run]") -> dict[str, str]:
    """Name -> hash of the card and the splits among the logged inputs."""
    datasets = (logged.dataset for run in steps for logged in run.inputs.dataset_inputs)
    named = ((dataset.name.rpartition("/")[2], dataset.digest) for dataset in datasets)
    return {name.replace("_", " "): digest for name, digest in named if name in DATA}


def _code(parent: "Run", steps: "list[Run]") -> dict[str, str]:
    libraries = dict.fromkeys(run.data.tags.get("code", "") for run in steps)
    code = {"git commit": parent.data.tags.get("git_commit", ""), "library source": ", ".join(filter(None, libraries))}
    return {key: value for key, value in code.items() if value}
