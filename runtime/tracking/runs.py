"""The runs of a pipeline: a parent, and a nested run for each step, found again where work is resumed."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from autoformer.files import hash_value
from runtime.common.config import ROOT, STEPS, Config
from runtime.tracking.outbox import Outbox, last_steps, sender
from runtime.tracking.provenance import dvc_revision, provenance_tags
from runtime.tracking.step_logger import StepLogger, milliseconds
from runtime.tracking.store import (
    connect,
    experiment_id,
    locked,
    patiently,
    reason,
    tracking_uri,
    translate_errors,
    usual_patience_seconds,
    without_password,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

Status = Literal["FINISHED", "FAILED", "KILLED"]
KILLED_PATIENCE_SECONDS = 5.0  # who was told to stop has little time
_PARENT = "mlflow.parentRunId"


def config_params(config: Config, steps: Sequence[str] = STEPS) -> dict[str, object]:
    """The configuration of some steps as flat parameters, `cfg/<section>.<key>`."""
    data = config.model_dump(mode="json", include={"name", "seed", "threads", "dataset", *steps}, exclude_none=True)
    return {"cfg/space": config.space.name, **{f"cfg/{key}": value for key, value in _flat(data)}}


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def open_pipeline_run(config: Config, tags: Mapping[str, str] | None = None) -> str:
    """Start the parent run of a pipeline run, or go on with one of the same config and data that was cut short.

    The caller hands the id to its steps as `AUTOFORMER_PARENT_RUN_ID`, and calls `close_pipeline_run`.
    """
    usual_patience_seconds()  # what it refuses is told before anything runs
    with translate_errors(tracking_uri()):
        key = _config_and_data(config, dvc_revision())
        run_id, is_new = _pipeline_run(config, "runner", key, tags or {}, again=False)
        if is_new:
            send = sender(connect())
            send({"kind": "params", "run_id": run_id, "params": config_params(config)})
            send({"kind": "dict", "run_id": run_id, **_whole(config)})
    return run_id


def find_pipeline_run(config: Config, data_hash: str) -> str:
    """The parent run of this config and data under `dvc repro`, where no process owns it; made by its first step."""
    with translate_errors(tracking_uri()):
        return _pipeline_run(config, "dvc", _config_and_data(config, data_hash), {}, again=True)[0]


def close_pipeline_run(run_id: str, status: Status) -> None:
    """End a parent run, and those of its steps that were killed before they could; with the patience of a step."""
    outbox = Outbox(sender(connect()), backlog_folder() / f"{run_id}.json")
    outbox.put({"kind": "close", "run_id": run_id, "status": status, "time": milliseconds()})
    outbox.close(_patience(status, None))


@contextlib.contextmanager
def step_run(
    step: str,
    config: Config,
    record: dict[str, Any],
    provenance: Mapping[str, Any] | None = None,
    *,
    tags: Mapping[str, str] | None = None,
    patience_seconds: float | None = None,
) -> Iterator[StepLogger]:
    """The MLflow run of a step, ended as the block ends: FINISHED, FAILED, or KILLED by a signal.

    KFP's own run (`MLFLOW_RUN_ID`) is used where there is one, and left for KFP to end. Else the run is nested in
    `AUTOFORMER_PARENT_RUN_ID`, else in the parent of the KFP run (`KFP_RUN_ID`), else in that of this config and data.
    A run of the same step and config that did not finish is gone on with. Silent on ranks but 0, and under
    `AUTOFORMER_TRACKING=off`.

    Args:
        record: is told the run ids and where they are kept.
        provenance: of the workspace; its `inputs` (name -> content hash) become the run's data lineage.
        tags: further tags of the run.
        patience_seconds: how long beginning and end each wait for a server that is away; None for the usual time.

    Raises:
        AutoFormerError: the store refuses, or has not answered by then. A step does not begin without its run: that
            could as well be a wrong address, and the work of days would be logged nowhere.
    """
    if os.environ.get("RANK", "0") != "0" or os.environ.get("AUTOFORMER_TRACKING") == "off":
        yield StepLogger("", None)
        return
    provenance = provenance or {}
    inputs: Mapping[str, str] = provenance.get("inputs", {})
    tags = {"code": str(provenance.get("code", "")), "data_hash": inputs.get("card", ""), **(tags or {})}
    begun = patiently(
        lambda: _begin(step, config, {key: value for key, value in tags.items() if value}), patience_seconds
    )
    record |= {"mlflow_run_id": begun.run_id, "mlflow_tracking_uri": without_password(tracking_uri())}
    if begun.parent_id:
        record["mlflow_parent_run_id"] = begun.parent_id
    backlog = backlog_folder() / f"{begun.run_id}.json"
    outbox = Outbox(sender(connect()), backlog)
    run = StepLogger(begun.run_id, outbox, begun.logged | last_steps(backlog), begun.parent_id)
    if begun.parent_id in begun.owned:
        _describe(outbox, begun.parent_id, config, inputs)
    run.params(config_params(config, [step]))
    for name, digest in inputs.items():
        run.dataset(f"{config.dataset}/{name}", digest, context=name)
    status: Status = "FINISHED"
    try:
        with _sigterm_raises():
            yield run
    except BaseException as error:
        status = "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"
        run.tags({"error": reason(error)})
        raise
    finally:
        for run_id in begun.owned:
            outbox.put({"kind": "status", "run_id": run_id, "status": status, "time": milliseconds()})
        outbox.close(_patience(status, patience_seconds))


def _describe(outbox: Outbox, parent: str, config: Config, inputs: Mapping[str, str]) -> None:
    """Tell a pipeline run that no runner has opened what this step knows of it.

    On a cluster a step is given its own part of the configuration, and register_model, which always runs, all of it.
    """
    outbox.put({"kind": "params", "run_id": parent, "params": config_params(config)})
    if all(getattr(config, step) is not None for step in STEPS):
        outbox.put({"kind": "dict", "run_id": parent, **_whole(config)})
    if "data" in inputs:
        outbox.put({"kind": "tags", "run_id": parent, "tags": {"data_hash": inputs["data"]}})


def _whole(config: Config) -> dict[str, Any]:
    return {"name": "config.yaml", "content": config.model_dump(mode="json")}


def _patience(status: Status, given: float | None) -> float:
    seconds = usual_patience_seconds() if given is None else given
    return min(seconds, KILLED_PATIENCE_SECONDS) if status == "KILLED" else seconds


def backlog_folder() -> Path:
    """Where messages lie that no store would take; outside the folders that DVC and KFP own."""
    return Path(os.environ.get("AUTOFORMER_WORK", ROOT / "work")) / "tracking"


class _Begun(NamedTuple):
    run_id: str
    parent_id: str | None
    owned: tuple[str, ...]  # runs that the step ends, in this order
    logged: dict[str, int]


def _begin(step: str, config: Config, tags: Mapping[str, str]) -> _Begun:
    with translate_errors(tracking_uri()):
        return _find_or_create(connect(), step, config, tags)


def _find_or_create(client: "MlflowClient", step: str, config: Config, tags: Mapping[str, str]) -> _Begun:
    tags = {"stage": step, "config": hash_value(config.for_step(step)), **_own_tags(), **tags}
    if adopted := os.environ.get("MLFLOW_RUN_ID"):
        _set_tags(client, adopted, {key: value for key, value in tags.items() if not key.startswith("mlflow.")})
        return _Begun(adopted, None, (), _logged(client.get_run(adopted)))
    given = os.environ.get("AUTOFORMER_PARENT_RUN_ID")
    parent = given or _parent_of_nobody(config)
    experiment = client.get_run(parent).info.experiment_id
    with locked(tracking_uri()):
        same = f"tags.`{_PARENT}` = '{parent}' and tags.stage = '{step}' and tags.config = '{tags['config']}'"
        run = _newest(client, experiment, f"{same} and attributes.status != 'FINISHED'")
        run_id = _restart(client, run, tags) if run else _create(client, experiment, step, {**tags, _PARENT: parent})
    return _Begun(run_id, parent, (run_id,) if given else (run_id, parent), _logged(run) if run else {})


def _logged(run: "Run") -> dict[str, int]:
    """The last step of each metric that the run holds."""
    return {metric.key: metric.step for metric in run.data._metric_objs}


def _parent_of_nobody(config: Config) -> str:
    """The pipeline run, where no runner of ours has opened it: KFP's on a cluster, else that of `dvc repro`."""
    if kfp_run := os.environ.get("KFP_RUN_ID"):
        return _pipeline_run(config, "kfp", kfp_run, {"runner": "kfp"}, again=True)[0]
    return find_pipeline_run(config, dvc_revision())


def _pipeline_run(config: Config, opened_by: str, key: str, tags: Mapping[str, str], again: bool) -> tuple[str, bool]:
    """The parent run that has this key, and whether it is new; `again`: also one that is finished, or at work."""
    client = connect()
    tags = {"stage": "pipeline", "pipeline": key, "opened_by": opened_by, **_own_tags(), **tags}
    experiment = experiment_id(client)
    with locked(tracking_uri()):
        same = f"tags.pipeline = '{key}' and tags.opened_by = '{opened_by}'"
        run = _newest(client, experiment, same if again else f"{same} and attributes.status != 'FINISHED'", again)
        return (_restart(client, run, tags), False) if run else (_create(client, experiment, config.name, tags), True)


def _config_and_data(config: Config, data_hash: str) -> str:
    return hash_value([config.hash(), data_hash])


def _newest(client: "MlflowClient", experiment: str, matching: str, may_be_at_work: bool = False) -> "Run | None":
    runs = client.search_runs([experiment], matching, order_by=["attributes.start_time DESC"], max_results=20)
    return next((run for run in runs if may_be_at_work or not _at_work(run)), None)


def _at_work(run: "Run") -> bool:
    """Whether another process of this machine, still alive, is busy with the run."""
    host, _, process = run.data.tags.get("owner", "").rpartition(":")
    if run.info.status != "RUNNING" or host != socket.gethostname() or process == str(os.getpid()):
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _restart(client: "MlflowClient", run: "Run", tags: Mapping[str, str]) -> str:
    client.update_run(run.info.run_id, status="RUNNING")
    _set_tags(client, run.info.run_id, tags)
    if "error" in run.data.tags:
        client.delete_tag(run.info.run_id, "error")
    return str(run.info.run_id)


def _create(client: "MlflowClient", experiment: str, name: str, tags: Mapping[str, str]) -> str:
    return str(client.create_run(experiment, tags=dict(tags), run_name=name).info.run_id)


def _own_tags() -> dict[str, str]:
    return {"owner": f"{socket.gethostname()}:{os.getpid()}", **provenance_tags()}


def _set_tags(client: "MlflowClient", run_id: str, tags: Mapping[str, str]) -> None:
    sender(client)({"kind": "tags", "run_id": run_id, "tags": tags})


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Let SIGTERM unwind the step, so that its run is ended; a handler that the program has set stays."""
    settable = (
        threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    )
    if not settable:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
