"""The MLflow runs of a pipeline: a parent, and a nested run for each step. Resumed work resumes its run."""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import psutil

from autoformer.files import hash_value
from runtime.common.config import STEPS, Config
from runtime.common.overrides import dotted
from runtime.common.redaction import without_password
from runtime.common.workspace import work_key, work_root
from runtime.tracking.experiments import experiment_id
from runtime.tracking.operations import PARENT, Operation, sender
from runtime.tracking.outbox import Outbox, last_steps
from runtime.tracking.provenance import dvc_revision, provenance_tags
from runtime.tracking.step_logger import StepLogger, milliseconds
from runtime.tracking.store import (
    connect,
    locked,
    patience_seconds,
    reason,
    retry_while_away,
    sqlite_file,
    tracking_uri,
    translate_errors,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

Status = Literal["FINISHED", "FAILED", "KILLED"]
KILLED_PATIENCE_SECONDS = 5.0  # after a signal, since the process may soon be killed


def open_pipeline_run(config: Config, tags: Mapping[str, str] | None = None) -> str:
    """Start the parent run of a pipeline run, or resume an unfinished one with the same config and data.

    The caller passes the id to its steps as `AUTOFORMER_PARENT_RUN_ID`, and calls `close_pipeline_run`.
    """
    patience_seconds()  # raises for a bad value before anything runs

    def open_run() -> str:
        with translate_errors(tracking_uri()):
            run_id, is_new = _pipeline_run(config, "runner", _config_and_data(config), tags or {}, again=False)
            if is_new:
                _describe(sender(connect()), run_id, config, {})
        return run_id

    # an unresponsive server may be a wrong address, so fail now; a locked file is certainly the right one
    return open_run() if sqlite_file(tracking_uri()) is None else retry_while_away(open_run)


def close_pipeline_run(run_id: str, status: Status) -> None:
    """End a parent run, and the runs of its killed steps. Waits for a server like a step."""
    outbox = _outbox(run_id)
    outbox.put({"kind": "close", "run_id": run_id, "status": status, "time": milliseconds()})
    outbox.close(_patience_of(status))


@contextlib.contextmanager
def step_run(
    step: str, config: Config, record: dict[str, Any], provenance: Mapping[str, Any] | None = None
) -> Iterator[StepLogger]:
    """The MLflow run of a step. It ends with the block: FINISHED, FAILED, or KILLED by a signal.

    If KFP has created a run (`MLFLOW_RUN_ID`), it is used, and KFP ends it. Otherwise the run is nested in
    `AUTOFORMER_PARENT_RUN_ID`, else in the parent of the KFP run (`KFP_RUN_ID`), else in that of this config and data.
    An unfinished run of the same step and config is resumed. So is a finished one of the same work, whose step was
    killed before its end, or is repeated. Only rank 0 logs, and nothing is logged under `AUTOFORMER_TRACKING=off`.

    Args:
        record: receives the run ids and the address of the store.
        provenance: of the workspace; its `inputs` (name -> content hash) become the run's data lineage.

    Raises:
        AutoFormerError: the store refuses, or has not answered in time. A step does not start without its run, since
            the address could be wrong, and days of work would not be logged.
    """
    if os.environ.get("RANK", "0") != "0" or os.environ.get("AUTOFORMER_TRACKING") == "off":
        yield StepLogger("", None)
        return
    provenance = provenance or {}
    inputs: Mapping[str, str] = provenance.get("inputs", {})
    work = work_key(provenance) if provenance else ""
    tags = {"code": str(provenance.get("code", "")), "data_hash": inputs.get("card", ""), "work": work}
    begun = retry_while_away(lambda: _begin(step, config, {key: value for key, value in tags.items() if value}))
    record |= {"mlflow_run_id": begun.run_id, "mlflow_tracking_uri": without_password(tracking_uri())}
    if begun.parent_id:
        record["mlflow_parent_run_id"] = begun.parent_id
    outbox = _outbox(begun.run_id)
    run = StepLogger(begun.run_id, outbox, begun.logged | last_steps(_backlog(begun.run_id)), begun.parent_id)
    if begun.parent_id in begun.owned:
        _describe(outbox.put, begun.parent_id, config, inputs)
    run.params(_config_params(config, [step]))
    for name, digest in inputs.items():
        run.dataset(f"{config.dataset}/{name}", digest, name)
    status: Status = "FINISHED"
    try:
        yield run
    except BaseException as error:
        status = "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"
        run.tags({"error": reason(error)})
        raise
    finally:
        for run_id in begun.owned:
            outbox.put({"kind": "status", "run_id": run_id, "status": status, "time": milliseconds()})
        outbox.close(_patience_of(status))


def _describe(put: Callable[[Operation], None], run_id: str, config: Config, inputs: Mapping[str, str]) -> None:
    """Log the known part of the configuration to a pipeline run.

    On a cluster a step has only its own section; register_model, which always runs, has all sections.
    """
    put({"kind": "params", "run_id": run_id, "params": _config_params(config, STEPS)})
    if all(getattr(config, step) is not None for step in STEPS):
        put({"kind": "dict", "run_id": run_id, "name": "config.yaml", "content": config.model_dump(mode="json")})
    if "data" in inputs:
        put({"kind": "tags", "run_id": run_id, "tags": {"data_hash": inputs["data"]}})


def _config_params(config: Config, steps: Sequence[str]) -> dict[str, object]:
    """The configuration of some steps as flat parameters `cfg/<section>.<key>`."""
    data = config.model_dump(mode="json", include={"name", "seed", "threads", "dataset", *steps}, exclude_none=True)
    return {"cfg/space": config.space.name, **{f"cfg/{key}": value for key, value in dotted(data)}}


def _outbox(run_id: str) -> Outbox:
    return Outbox(sender(connect()), _backlog(run_id))


def _backlog(run_id: str) -> Path:
    """The file for a run's undelivered messages, outside the folders of DVC and KFP."""
    return work_root() / "tracking" / f"{run_id}.json"


def _patience_of(status: Status) -> float:
    return min(patience_seconds(), KILLED_PATIENCE_SECONDS) if status == "KILLED" else patience_seconds()


class _Begun(NamedTuple):
    run_id: str
    parent_id: str | None
    owned: tuple[str, ...]  # runs that the step ends, in order
    logged: dict[str, int]  # metric -> last step in the run


def _begin(step: str, config: Config, tags: Mapping[str, str]) -> _Begun:
    with translate_errors(tracking_uri()):
        client = connect()
        tags = {"stage": step, "config": hash_value(config.for_step(step)), **_own_tags(), **tags}
        if kfp_run := os.environ.get("MLFLOW_RUN_ID"):
            _set_tags(client, kfp_run, {key: value for key, value in tags.items() if not key.startswith("mlflow.")})
            return _Begun(kfp_run, None, (), _last_steps(client.get_run(kfp_run)))
        runners_parent = os.environ.get("AUTOFORMER_PARENT_RUN_ID")
        parent = runners_parent or _parent_without_runner(config)
        experiment = client.get_run(parent).info.experiment_id
        same = f"tags.`{PARENT}` = '{parent}' and tags.stage = '{step}' and tags.config = '{tags['config']}'"
        matching = [f"{same} and attributes.status != 'FINISHED'"]
        matching += [f"{same} and tags.work = '{tags['work']}'"] if "work" in tags else []
        run_id, former = _resume_or_create(client, experiment, step, matching, {**tags, PARENT: parent})
        owned = (run_id,) if runners_parent else (run_id, parent)
        return _Begun(run_id, parent, owned, _last_steps(former) if former else {})


def _last_steps(run: "Run") -> dict[str, int]:
    return {metric.key: metric.step for metric in run.data._metric_objs}


def _parent_without_runner(config: Config) -> str:
    """The parent run if no runner of ours has opened one: for a KFP run on a cluster, else for `dvc repro`."""
    if kfp_run := os.environ.get("KFP_RUN_ID"):
        return _pipeline_run(config, "kfp", kfp_run, {"runner": "kfp"}, again=True)[0]
    return _pipeline_run(config, "dvc", _config_and_data(config), {}, again=True)[0]


def _config_and_data(config: Config) -> str:
    return hash_value([config.hash(), dvc_revision()])


def _pipeline_run(config: Config, opened_by: str, key: str, tags: Mapping[str, str], again: bool) -> tuple[str, bool]:
    """The parent run with this key, and whether it is new. `again`: accept a finished or active one."""
    client = connect()
    tags = {"stage": "pipeline", "pipeline": key, "opened_by": opened_by, **_own_tags(), **tags}
    same = f"tags.pipeline = '{key}' and tags.opened_by = '{opened_by}'"
    matching = same if again else f"{same} and attributes.status != 'FINISHED'"
    run_id, former = _resume_or_create(
        client, experiment_id(client), config.name, [matching], tags, may_be_at_work=again
    )
    return run_id, former is None


def _resume_or_create(
    client: "MlflowClient",
    experiment: str,
    name: str,
    matching: Sequence[str],
    tags: Mapping[str, str],
    may_be_at_work: bool = False,
) -> "tuple[str, Run | None]":
    """The newest run of the first filter with a match, set to RUNNING, and its former state; else a new run, None."""
    newest = ["attributes.start_time DESC"]
    with locked(tracking_uri()):
        runs = (
            run for each in matching for run in client.search_runs([experiment], each, max_results=20, order_by=newest)
        )
        run = next((run for run in runs if may_be_at_work or not _at_work(run)), None)
        if run is None:
            return str(client.create_run(experiment, tags=dict(tags), run_name=name).info.run_id), None
        run_id = str(run.info.run_id)
        client.update_run(run_id, status="RUNNING")
        _set_tags(client, run_id, tags)
        if "error" in run.data.tags:
            client.delete_tag(run_id, "error")
        return run_id, run


def _at_work(run: "Run") -> bool:
    """Whether another process of this machine works on the run."""
    host, _, process = run.data.tags.get("owner", "").rpartition(":")
    if run.info.status != "RUNNING" or host != socket.gethostname() or process == str(os.getpid()):
        return False
    return bool(psutil.pid_exists(int(process)))


def _own_tags() -> dict[str, str]:
    return {"owner": f"{socket.gethostname()}:{os.getpid()}", **provenance_tags()}


def _set_tags(client: "MlflowClient", run_id: str, tags: Mapping[str, str]) -> None:
    sender(client)({"kind": "tags", "run_id": run_id, "tags": tags})
