"""What a step has to say to MLflow, kept until it is said: a store that is away stops no training and loses nothing.

A thread of its own sends: a server that hangs, or a slow upload, holds no training up, nor the ranks that would wait
for this one. It draws no random number (see `store.ENVIRONMENT`), so that it moves no result.

An operation is plain data, so that what could not be sent can be written to a file and sent another day. Sending
one twice changes nothing, so a lost answer does no harm.
"""

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoformer.files import read_json, write_json
from runtime.common.console import print_line
from runtime.tracking.store import is_refusal, reason

if TYPE_CHECKING:
    from mlflow import MlflowClient

Operation = dict[str, Any]  # {"kind": …, "run_id": …} and what that kind needs; see `_SENDERS`
RETRY_SECONDS = 15.0  # between two attempts while the step works
FINAL_RETRY_SECONDS = 1.0
BUSY_SECONDS = 5.0  # that a store which has not failed is given for one operation, however little patience there is
TOLD_AFTER_SECONDS = 3.0  # that a step which is done waits for the store
UPLOADS = ("artifact", "table", "dict")  # go to another place than the rest, which may be away by itself
METRICS_PER_BATCH = 1000  # MLflow's limit
PARAMS_PER_BATCH = 100
LONGEST_PARAM = 6000
LONGEST_DIGEST = 36


class Outbox:
    """Operations in order, sent when they can be. An upload that fails lets what comes after it pass.

    Args:
        send: sends one operation; raises where that failed.
        backlog: the file for what is left undelivered at the end. What an earlier try has left there comes first.
    """

    def __init__(self, send: Callable[[Operation], None], backlog: Path) -> None:
        self._send, self._backlog = send, backlog
        self._waiting: deque[Operation] = deque(left_over(backlog))
        self._aside: deque[Operation] = deque()  # uploads that have failed
        self._refused: list[Operation] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._sending: Operation | None = None
        self._taken_at = 0.0
        self._due = False
        self._away = False
        self._closing = False
        self._ended = False

    def put(self, operation: Operation) -> None:
        """Queue an operation; metrics of one run that follow one another become one."""
        with self._changed:
            last = self._waiting[-1] if self._waiting and self._waiting[-1] is not self._sending else None
            if last and last["kind"] == operation["kind"] == "metrics" and last["run_id"] == operation["run_id"]:
                last["metrics"] += operation["metrics"]
            else:
                self._waiting.append(operation)

    def flush(self, wait_seconds: float = 0.0) -> bool:
        """Let what waits be sent; True where nothing is left after so many seconds. Never raises."""
        with self._changed:
            if not self._waiting and not self._aside:
                return True
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
                self._thread.start()
            self._due = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._waiting and not self._aside, wait_seconds)

    def close(self, patience_seconds: float) -> None:
        """Send all that is left; what stays undelivered goes to the backlog file.

        Args:
            patience_seconds: after which a store that takes nothing is given up.
        """
        try:
            self.flush()
            with self._changed:
                self._closing = True
                self._changed.notify_all()
                self._wait(patience_seconds)
        finally:  # also where the wait is cut short by a signal
            with self._changed:
                self._ended = True
                self._changed.notify_all()
                left = [*self._refused, *self._waiting, *self._aside]
            self._keep(left)

    def _wait(self, patience_seconds: float) -> None:
        """Until all is sent, or the store has taken nothing for so long; the lock is held."""
        since, told = time.monotonic(), False
        while self._waiting or self._aside:
            patience = patience_seconds if self._away else max(patience_seconds, BUSY_SECONDS)
            idle = time.monotonic() - max(since, self._taken_at)
            if idle >= patience:
                return
            if not told and idle >= TOLD_AFTER_SECONDS:
                told = True
                print_line(f"tracking: waiting for MLflow to take what is left, up to {patience:.0f} s", sys.stderr)
            self._changed.wait(min(patience - idle, TOLD_AFTER_SECONDS))

    def _keep(self, left: list[Operation]) -> None:
        if not left:
            self._backlog.unlink(missing_ok=True)
            return
        write_json(self._backlog, left)
        print_line(
            f"tracking: {len(left)} messages to MLflow were not delivered; they are in {self._backlog}: "
            f"send them with `python -m runtime.tracking {self._backlog}`",
            sys.stderr,
        )

    def _work(self) -> None:
        """The thread: send one operation after another, with a pause after one that failed."""
        while (operation := self._next()) is not None:
            error: Exception | None = None
            try:
                self._send(operation)
            except Exception as raised:  # whatever it is, it must not stop the step
                error = raised
            with self._changed:
                self._sending = None
                if self._ended:  # it is in the backlog file
                    return
                self._settle(operation, error)
                self._changed.notify_all()

    def _next(self) -> Operation | None:
        """Wait for something to send; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._due)
            if self._ended:
                return None
            self._sending = self._waiting[0] if self._waiting else self._aside[0]
            return self._sending

    def _settle(self, operation: Operation, error: Exception | None) -> None:
        """Take an operation from its queue, or leave it there and pause; the lock is held."""
        queue = self._waiting if self._waiting and self._waiting[0] is operation else self._aside
        if error is not None and not is_refusal(error):
            self._say_away(operation, error)
            if operation["kind"] in UPLOADS:
                self._aside.append(queue.popleft())
                if queue is self._waiting:  # what is no upload may get through
                    return
            self._pause()
            return
        queue.popleft()
        self._taken_at = time.monotonic()
        if error is not None:
            self._refused.append(operation | {"refused": reason(error)})
            print_line(f"tracking: MLflow refused {operation['kind']}: {reason(error)}", sys.stderr)
        elif self._away and not self._waiting and not self._aside:
            self._away = False
            print_line("tracking: MLflow answers again, and has all that was kept", sys.stderr)
        self._due = bool(self._waiting or self._aside)

    def _pause(self) -> None:
        """Until it is time to try again; a step that ends is in more of a hurry."""
        since = time.monotonic()
        while not self._ended:
            seconds = since + (FINAL_RETRY_SECONDS if self._closing else RETRY_SECONDS) - time.monotonic()
            if seconds <= 0:
                return
            self._changed.wait(seconds)

    def _say_away(self, operation: Operation, error: Exception) -> None:
        if not self._away:
            self._away = True
            what = f"takes no {operation['kind']}" if operation["kind"] in UPLOADS else "does not answer"
            print_line(f"tracking: MLflow {what} ({reason(error)}); kept, and tried again later", sys.stderr)


def left_over(backlog: Path) -> list[Operation]:
    """What an earlier try of the same run could not deliver, but for how that try has ended."""
    if not backlog.is_file():
        return []
    return [
        operation
        for operation in read_json(backlog)
        if operation["kind"] != "status" and "error" not in operation.get("tags", ())
    ]


def last_steps(backlog: Path) -> dict[str, int]:
    """Metric -> the last step of it that the backlog file holds."""
    points = [point for operation in left_over(backlog) for point in operation.get("metrics", ())]
    return {point[0]: point[3] for point in points}


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


def _send_dict(client: "MlflowClient", operation: Operation) -> None:
    client.log_dict(operation["run_id"], operation["content"], operation["name"])


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


def _send_close(client: "MlflowClient", operation: Operation) -> None:
    """End a parent run, and those of its steps that were killed before they could."""
    run_id = operation["run_id"]
    experiment = client.get_run(run_id).info.experiment_id
    at_work = f"tags.`mlflow.parentRunId` = '{run_id}' and attributes.status = 'RUNNING'"
    for step in client.search_runs([experiment], at_work):
        client.set_terminated(step.info.run_id, "KILLED", operation["time"])
    _send_status(client, operation)


_SENDERS: dict[str, Callable[["MlflowClient", Operation], None]] = {
    "metrics": _send_metrics,
    "params": _send_params,
    "tags": _send_tags,
    "artifact": _send_artifact,
    "dict": _send_dict,
    "table": _send_table,
    "dataset": _send_dataset,
    "children": _send_children,
    "status": _send_status,
    "close": _send_close,
}
