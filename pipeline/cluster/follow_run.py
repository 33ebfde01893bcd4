"""Follow a run on a KFP server: a line for each task whose state has changed, until the run has ended."""

import sys
import time
from collections.abc import Iterator, Mapping
from itertools import repeat
from typing import TYPE_CHECKING, Any

from pipeline.cluster.kfp_access import NoAnswerError
from runtime.common.config import STEPS
from runtime.common.console import say
from runtime.common.retrying import retry, within

if TYPE_CHECKING:
    from pipeline.cluster.kfp_client import KfpClient

POLL_SECONDS = 5.0
PATIENCE_SECONDS = 900.0  # for a server that does not answer: the run goes on without it
TASKS = tuple(step.replace("_", "-") for step in ("resolve_config", *STEPS))  # in the order of the DAG
ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
_WORDS = {
    "PENDING": "waits",
    "RUNNING": "runs",
    "SUCCEEDED": "done",
    "SKIPPED": "taken from the cache",  # no task of the DAG has a condition, so nothing else skips it
    "FAILED": "failed",
    "CANCELING": "is being terminated",
    "CANCELED": "terminated",
}


def follow_run(client: "KfpClient", run_id: str) -> int:
    """Print what changes until the run has ended; 0 where it succeeded, else 1 with the failed task in one line.

    Raises:
        AutoFormerError: the server refuses to be asked, or has not answered for a quarter of an hour.
    """
    shown: dict[str, str] = {}
    for run in _looks(client, run_id):
        tasks = _tasks(run)
        for name in TASKS:
            state = str(tasks[name].state) if name in tasks else ""
            if state in _WORDS and shown.get(name) != state:
                shown[name] = state
                say(f"{name}: {_WORDS[state]}{_seconds(tasks[name]) if state == 'SUCCEEDED' else ''}")
    if run.state != "SUCCEEDED":
        say(f"submit: {_end(run, client)}", sys.stderr)
        return 1
    say(f"the run succeeded: {client.page(run_id)}")
    return 0


def _looks(client: "KfpClient", run_id: str) -> Iterator[Any]:
    """The run, asked for again and again; the last one has ended."""

    def tell(error: NoAnswerError, failures: int) -> None:
        if failures == 1:
            say(f"{error}; the run goes on, and is asked for again")

    while True:
        pauses = within(PATIENCE_SECONDS, repeat(POLL_SECONDS))
        run = retry(lambda: client.get_run(run_id), NoAnswerError, pauses, tell)
        yield run
        if run.state in ENDED:
            return
        time.sleep(POLL_SECONDS)


def _tasks(run: Any) -> dict[str, Any]:
    """Name -> details of the tasks of the DAG. Their drivers and executors have names of their own."""
    details = run.run_details.task_details if run.run_details else None
    return {task.display_name: task for task in details or [] if task.display_name in TASKS}


def _seconds(task: Any) -> str:
    if not task.start_time or not task.end_time or task.end_time < task.start_time:
        return ""
    return f", {(task.end_time - task.start_time).total_seconds():.0f} s"


def _end(run: Any, client: "KfpClient") -> str:
    """Why the run did not succeed: the task that failed, what it said, and where its log is."""
    if run.state in ("CANCELED", "SKIPPED"):
        return f"the run was terminated: {client.page(run.run_id)}"
    known = {task.task_id: task for task in (run.run_details.task_details if run.run_details else None) or []}
    failed = [task for name, task in _tasks(run).items() if task.state == "FAILED"]
    if not failed:
        return f"the run failed: {_message([run])}; {client.page(run.run_id)}"
    parts = [failed[0], *_below(failed[0], known)]
    pod = next((part.pod_name for part in reversed(parts) if part.state == "FAILED" and part.pod_name), None)
    log = f"; its log: kubectl -n {client.pod_namespace} logs {pod} -c main" if pod else ""
    return f"{failed[0].display_name} failed: {_message([run, *parts])}{log}; {client.page(run.run_id)}"


def _below(task: Any, known: Mapping[str, Any]) -> Iterator[Any]:
    """What KFP ran for a task: its driver, its executor, and the attempts of that."""
    for child in task.child_tasks or []:
        found = known.get(child.task_id or "")
        if found is not None and found is not task:
            yield found
            yield from _below(found, known)


def _message(parts: list[Any]) -> str:
    """What was said last of all of a failure, on one line."""
    said = [part.error.message for part in parts if part.error and part.error.message]
    return " ".join(said[-1].split())[:300] if said else "no reason given"
