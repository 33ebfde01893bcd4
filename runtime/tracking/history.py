"""Pipeline runs, read back from the store: what went in, what came out, and by which code."""

from typing import TYPE_CHECKING, NamedTuple

from autoformer.errors import AutoFormerError
from runtime.common.config import STEPS
from runtime.tracking.store import connect, experiment_id, tracking_uri, translate_errors, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MOST_LISTED = 1000
SHORTEST_PREFIX = 4  # characters of a run id
DATA = (
    "card",
    "train_split",
    "train_full_split",
    "search_split",
    "test_split",
)  # inputs of steps that are data, not earlier results
_PARENT = "mlflow.parentRunId"


class PipelineRun(NamedTuple):
    """A pipeline run with what its steps logged. All but `scores` is text, as MLflow keeps it."""

    run_id: str
    name: str
    status: str
    started: int  # milliseconds since 1970
    params: dict[str, str]  # without their prefix `cfg/`
    data: dict[str, str]  # what -> hash
    code: dict[str, str]
    architecture: dict[str, str]  # without the prefix `arch/`
    scores: dict[str, float]


class RunSummary(NamedTuple):
    """A line of a list of pipeline runs."""

    run_id: str
    name: str
    status: str
    started: int  # milliseconds since 1970
    test_top1_percent: float | None


def list_pipeline_runs(most: int = MOST_LISTED) -> list[RunSummary]:
    """The latest pipeline runs, newest first."""
    with translate_errors(tracking_uri()):
        return [_listed(run) for run in _pipeline_runs(connect(), most)]


def _pipeline_runs(client: "MlflowClient", most: int) -> "list[Run]":
    order = ["attributes.start_time DESC"]
    return list(
        client.search_runs([experiment_id(client)], "tags.stage = 'pipeline'", order_by=order, max_results=most)
    )


def _listed(run: "Run") -> RunSummary:
    info, top1 = run.info, run.data.metrics.get("test_top1_percent")
    return RunSummary(str(info.run_id), str(info.run_name), str(info.status), int(info.start_time), top1)


def find_run_id(name: str) -> str | None:
    """The pipeline run with this id, with the only id that begins so, or that the step or candidate belongs to.

    Raises:
        AutoFormerError: several ids begin so.
    """
    with translate_errors(tracking_uri()):
        client = connect()
        runs = [str(run.info.run_id) for run in _pipeline_runs(client, MOST_LISTED)]
        if name in runs:
            return name
        found = [run_id for run_id in runs if run_id.startswith(name)] if len(name) >= SHORTEST_PREFIX else []
        if len(found) > 1:
            raise AutoFormerError(f"{name}: the ids of {len(found)} pipeline runs begin so; give more of it")
        return found[0] if found else _above(client, name)


def _above(client: "MlflowClient", run_id: str) -> str | None:
    """The pipeline run above a step's or candidate's run."""
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
        run_id = run.data.tags.get(_PARENT, "")
    return None


def read_pipeline_run(run_id: str) -> PipelineRun:
    """A pipeline run with what its steps logged. A step that was taken from KFP's cache has no run in it."""
    with translate_errors(tracking_uri()):
        client = connect()
        parent = client.get_run(run_id)
        matching = f"tags.`{_PARENT}` = '{run_id}'"
        # oldest first: where a step ran again, its latest run counts
        found = client.search_runs([parent.info.experiment_id], matching, order_by=["attributes.start_time ASC"])
    steps = {run.data.tags.get("stage"): run for run in found}
    if parent.data.tags.get("stage") != "pipeline":
        raise AutoFormerError(f"{run_id}: not a pipeline run of {without_password(tracking_uri())}")
    ordered = [steps[step] for step in STEPS if step in steps]
    return PipelineRun(
        *_listed(parent)[:4],
        params=_prefixed(parent.data.params, "cfg/"),
        data=_data(parent, ordered),
        code=_code(parent, ordered),
        architecture={key: value for run in ordered for key, value in _prefixed(run.data.params, "arch/").items()},
        scores={key: value for run in [*ordered, parent] for key, value in run.data.metrics.items()},
    )


def _prefixed(values: dict[str, str], prefix: str) -> dict[str, str]:
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def _data(parent: "Run", steps: "list[Run]") -> dict[str, str]:
    tags = parent.data.tags
    found = {"images": tags.get("data_hash", ""), "data.dvc": tags.get("dvc_revision", "")}
    for run in steps:
        for read in run.inputs.dataset_inputs:
            name = read.dataset.name.rpartition("/")[2]
            if name in DATA:
                found[name.replace("_", " ")] = read.dataset.digest
    return {key: value for key, value in found.items() if value}


def _code(parent: "Run", steps: "list[Run]") -> dict[str, str]:
    libraries = dict.fromkeys(run.data.tags.get("code", "") for run in steps)
    found = {"git commit": parent.data.tags.get("git_commit", ""), "library source": ", ".join(filter(None, libraries))}
    return {key: value for key, value in found.items() if value}
