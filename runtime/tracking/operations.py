"""Operations: messages to MLflow as plain data, with one function for each kind.

Operations are idempotent, so a lost answer does no harm.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from autoformer.reading import as_kind, read_json
from runtime.common.records import Written

if TYPE_CHECKING:
    from mlflow import MlflowClient

Operation = dict[str, Any]  # the fields of `_Operation`, and those that `_SENDERS[kind]` reads
UPLOADS = ("artifact", "table", "dict")  # to the artifact store, which may fail separately
PARENT = "mlflow.parentRunId"
MAX_PARAM_CHARACTERS = 6000  # MLflow's limits
MAX_DIGEST_CHARACTERS = 36


class _Operation(Written):
    kind: Literal["metrics", "params", "tags", "artifact", "dict", "table", "dataset", "children", "status", "close"]
    run_id: str
    metrics: tuple[tuple[str, float, int, int], ...] = ()
    tags: dict[str, Any] = Field({})


def read_operations(file: Path) -> list[Operation]:
    """The undelivered operations in a file. Raises `AutoFormerError` naming the file if it is damaged."""
    operations, remedy = read_json(file), "delete it to do without its messages"
    as_kind(list[_Operation], operations, str(file), remedy)
    return list(operations)


def sender(client: "MlflowClient") -> Callable[[Operation], None]:
    """A function that sends one operation, and raises if that fails."""
    return lambda operation: _SENDERS[operation["kind"]](client, operation)


def _send_batch(client: "MlflowClient", operation: Operation) -> None:
    from mlflow.entities import Metric, Param, RunTag

    client.log_batch(
        operation["run_id"],
        [Metric(*point) for point in operation.get("metrics", ())],  # key, value, milliseconds, step
        [Param(key, str(value)[:MAX_PARAM_CHARACTERS]) for key, value in operation.get("params", {}).items()],
        [RunTag(key, value) for key, value in operation.get("tags", {}).items()],
    )


def _send_artifact(client: "MlflowClient", operation: Operation) -> None:
    log = client.log_artifacts if Path(operation["path"]).is_dir() else client.log_artifact
    log(operation["run_id"], operation["path"])


def _send_dict(client: "MlflowClient", operation: Operation) -> None:
    client.log_dict(operation["run_id"], operation["content"], operation["name"])


def _send_table(client: "MlflowClient", operation: Operation) -> None:
    """Log a table like MLflow's `log_table`, which would append to an existing table."""
    run_id, name = operation["run_id"], operation["name"]
    client.log_text(run_id, json.dumps({"columns": operation["columns"], "data": operation["data"]}), name)
    logged = json.loads(client.get_run(run_id).data.tags.get("mlflow.loggedArtifacts", "[]"))
    entry = {"path": name, "type": "table"}
    if entry not in logged:
        client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([*logged, entry]))


def _send_dataset(client: "MlflowClient", operation: Operation) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"uri": ""})
    dataset = Dataset(operation["name"], operation["digest"][:MAX_DIGEST_CHARACTERS], "local", source)
    context = InputTag("mlflow.data.context", operation["context"])
    client.log_inputs(operation["run_id"], [DatasetInput(dataset, [context])])


def _send_children(client: "MlflowClient", operation: Operation) -> None:
    """Create child runs by name; finished children are not changed."""
    parent = operation["run_id"]
    experiment = client.get_run(parent).info.experiment_id
    existing = client.search_runs([experiment], f"tags.`{PARENT}` = '{parent}'", max_results=1000)
    infos = {run.info.run_name: run.info for run in existing}
    for child in operation["children"]:
        info = infos.get(child["name"])
        if info is None:
            tags = {PARENT: parent, "mlflow.user": operation["user"], "stage": "candidate"}
            info = client.create_run(experiment, tags=tags, run_name=child["name"]).info
        elif info.status == "FINISHED":
            continue
        metrics = [(key, value, operation["time"], 0) for key, value in child["metrics"].items()]
        _send_batch(client, child | {"run_id": info.run_id, "metrics": metrics})
        client.set_terminated(info.run_id)


def _send_status(client: "MlflowClient", operation: Operation) -> None:
    client.set_terminated(operation["run_id"], operation["status"], operation["time"])


def _send_close(client: "MlflowClient", operation: Operation) -> None:
    """End a pipeline run, and those runs of its steps that killed steps left open."""
    run_id = operation["run_id"]
    experiment = client.get_run(run_id).info.experiment_id
    running = f"tags.`{PARENT}` = '{run_id}' and attributes.status = 'RUNNING'"
    for step in client.search_runs([experiment], running):
        client.set_terminated(step.info.run_id, "KILLED", operation["time"])
    _send_status(client, operation)


_SENDERS: dict[str, Callable[["MlflowClient", Operation], None]] = {
    "metrics": _send_batch,
    "params": _send_batch,
    "tags": _send_batch,
    "artifact": _send_artifact,
    "dict": _send_dict,
    "table": _send_table,
    "dataset": _send_dataset,
    "children": _send_children,
    "status": _send_status,
    "close": _send_close,
}
