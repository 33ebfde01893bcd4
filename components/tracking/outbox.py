"""What a step has to say to MLflow, kept until it is said: a store that is away stops no training and loses nothing.

An operation is plain data, so that what could not be sent can be written to a file and sent another day. Sending
one twice changes nothing, so a lost answer does no harm.
"""

import json
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoformer.files import write_json
from components.tracking.store import reason

if TYPE_CHECKING:
    from mlflow import MlflowClient

Operation = dict[str, Any]  # {"kind": …, "run_id": …} and what that kind needs; see `_SENDERS`
RETRY_SECONDS = 15.0  # between two attempts while the step works: each may cost a time-out
FINAL_RETRY_SECONDS = 1.0
METRICS_PER_BATCH = 1000  # MLflow's limit
PARAMS_PER_BATCH = 100
LONGEST_PARAM = 6000
LONGEST_DIGEST = 36


class Outbox:
    """Operations in order, sent when they can be.

    Args:
        send: sends one operation; raises where that failed.
        backlog: the file for what is left undelivered at the end.
    """

    def __init__(self, send: Callable[[Operation], None], backlog: Path) -> None:
        self._send, self._backlog = send, backlog
        self._waiting: deque[Operation] = deque()
        self._refused: list[Operation] = []
        self._retry_at = 0.0
        self._warned = False

    def put(self, operation: Operation) -> None:
        """Queue an operation; metrics of one run that follow one another become one."""
        last = self._waiting[-1] if self._waiting else None
        if last and last["kind"] == operation["kind"] == "metrics" and last["run_id"] == operation["run_id"]:
            last["metrics"] += operation["metrics"]
        else:
            self._waiting.append(operation)

    def flush(self, at_once: bool = False) -> bool:
        """Send what waits; True where nothing is left. Never raises, and pauses after a failure unless `at_once`."""
        if not at_once and time.monotonic() < self._retry_at:
            return False
        while self._waiting:
            try:
                self._send(self._waiting[0])
            except Exception as error:  # whatever it is, it must not stop the step
                if not _is_refusal(error):
                    self._retry_at = time.monotonic() + RETRY_SECONDS
                    self._warn(f"MLflow does not answer ({reason(error)}); kept, and tried again later")
                    return False
                self._refused.append(self._waiting[0] | {"refused": reason(error)})
                print(
                    f"tracking: MLflow refused {self._waiting[0]['kind']}: {reason(error)}", file=sys.stderr, flush=True
                )
            self._waiting.popleft()
        return True

    def close(self, patience_seconds: float) -> None:
        """Send all that is left, trying for so long; what stays undelivered goes to the backlog file."""
        give_up = time.monotonic() + patience_seconds
        while not self.flush(at_once=True) and time.monotonic() < give_up:
            time.sleep(FINAL_RETRY_SECONDS)
        left = [*self._refused, *self._waiting]
        if left:
            write_json(self._backlog, left)
            print(
                f"tracking: {len(left)} messages to MLflow were not delivered; they are in {self._backlog}: "
                f"send them with `python -m components.tracking {self._backlog}`",
                file=sys.stderr, flush=True,
            )  # fmt: skip

    def _warn(self, line: str) -> None:
        if not self._warned:
            self._warned = True
            print(f"tracking: {line}", file=sys.stderr, flush=True)


def _is_refusal(error: Exception) -> bool:
    """Whether trying again is useless: the store, or the disk, has answered, and the answer is no."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in (
            "INVALID_PARAMETER_VALUE",
            "RESOURCE_DOES_NOT_EXIST",
            "BAD_REQUEST",
            "INVALID_STATE",
        )
    return isinstance(error, FileNotFoundError | TypeError | KeyError)


def sender(client: "MlflowClient") -> Callable[[Operation], None]:
    """What sends an operation to MLflow."""
    return lambda operation: _SENDERS[operation["kind"]](client, operation)


def _send_metrics(client: "MlflowClient", operation: Operation) -> None:
    from mlflow.entities import Metric

    metrics = [Metric(*entry) for entry in operation["metrics"]]  # key, value, timestamp, step
    for first in range(0, len(metrics), METRICS_PER_BATCH):
        client.log_batch(operation["run_id"], metrics=metrics[first : first + METRICS_PER_BATCH])


def _send_params(client: "MlflowClient", operation: Operation) -> None:
    from mlflow.entities import Param

    params = [Param(key, str(value)[:LONGEST_PARAM]) for key, value in operation["params"].items()]
    for first in range(0, len(params), PARAMS_PER_BATCH):
        client.log_batch(operation["run_id"], params=params[first : first + PARAMS_PER_BATCH])


def _send_tags(client: "MlflowClient", operation: Operation) -> None:
    from mlflow.entities import RunTag

    client.log_batch(operation["run_id"], tags=[RunTag(key, value) for key, value in operation["tags"].items()])


def _send_artifact(client: "MlflowClient", operation: Operation) -> None:
    path = Path(operation["path"])
    if path.is_dir():
        client.log_artifacts(operation["run_id"], str(path), operation["folder"])
    else:
        client.log_artifact(operation["run_id"], str(path), operation["folder"])


def _send_table(client: "MlflowClient", operation: Operation) -> None:
    """As `log_table` writes it, but whole: `log_table` would append to a table that is already there."""
    run_id, name = operation["run_id"], operation["name"]
    client.log_text(run_id, json.dumps({"columns": operation["columns"], "data": operation["data"]}), name)
    logged = json.loads(client.get_run(run_id).data.tags.get("mlflow.loggedArtifacts", "[]"))
    entry = {"path": name, "type": "table"}
    if entry not in logged:
        client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([*logged, entry]))


def _send_dataset(client: "MlflowClient", operation: Operation) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"uri": operation["source"]})
    dataset = Dataset(operation["name"], operation["digest"][:LONGEST_DIGEST], "local", source)
    client.log_inputs(
        operation["run_id"], [DatasetInput(dataset, [InputTag("mlflow.data.context", operation["context"])])]
    )


def _send_children(client: "MlflowClient", operation: Operation) -> None:
    """Child runs by name; those that are already there and finished are left as they are."""
    parent = operation["run_id"]
    experiment = client.get_run(parent).info.experiment_id
    there = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'", max_results=1000)
    known = {run.info.run_name: run.info for run in there}
    for child in operation["children"]:
        info = known.get(child["name"])
        if info is None:
            tags = {"mlflow.parentRunId": parent, "mlflow.user": operation["user"], "stage": "candidate"}
            info = client.create_run(experiment, tags=tags, run_name=child["name"]).info
        elif info.status == "FINISHED":
            continue
        _send_child(client, info.run_id, child, operation["time"])
        client.set_terminated(info.run_id)


def _send_child(client: "MlflowClient", run_id: str, child: Operation, timestamp: int) -> None:
    from mlflow.entities import Metric, Param, RunTag

    client.log_batch(
        run_id,
        metrics=[Metric(key, value, timestamp, 0) for key, value in child.get("metrics", {}).items()],
        params=[Param(key, str(value)) for key, value in child.get("params", {}).items()],
        tags=[RunTag(key, str(value)) for key, value in child.get("tags", {}).items()],
    )


def _send_status(client: "MlflowClient", operation: Operation) -> None:
    if operation["status"] == "RUNNING":
        client.update_run(operation["run_id"], status="RUNNING")
    else:
        client.set_terminated(operation["run_id"], operation["status"], operation["time"])


_SENDERS: dict[str, Callable[["MlflowClient", Operation], None]] = {
    "metrics": _send_metrics,
    "params": _send_params,
    "tags": _send_tags,
    "artifact": _send_artifact,
    "table": _send_table,
    "dataset": _send_dataset,
    "children": _send_children,
    "status": _send_status,
}
