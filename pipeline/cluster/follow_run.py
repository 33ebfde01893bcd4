"""Follow a run on a KFP server: a line for each task whose state has changed, until the run has ended."""

import sys
import time
from collections.abc import Iterator, Mapping
from itertools import repeat
from typing import TYPE_CHECKING, Any

from pipeline.cluster.kfp_access import NoAnswerError
from runtime.common.config import STEPS
from runtime.common.console import print_line
from runtime.common.retrying import retry, within

if TYPE_CHECKING:
    from pipeline.cluster.kfp_client import KfpClient

POLL_SECONDS = 5.0
OUTAGE_SECONDS = 900.0  # that the server may be away: the run needs it no longer
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
    """Print each change until the run has ended; returns 0 where it succeeded, else 1 after a line on the failed task.

    Raises:
        AutoFormerError: the server refuses a request, or has not answered for a quarter of an hour.
    """
    printed: dict[str, str] = {}
    while True:
        run = _get_run(client, run_id)
        for name, task in _tasks(run).items():
            state = str(task.state)
            if state in _WORDS and printed.get(name) != state:
                printed[name] = state
                print_line(f"{name}: {_WORDS[state]}{_seconds(task) if state == 'SUCCEEDED' else ''}")
        if run.state in ENDED:
            break
        time.sleep(POLL_SECONDS)
    if run.state == "SUCCEEDED":
        print_line(f"the run succeeded: {client.page(run_id)}")
        return 0
    print_line(f"submit: {_failure(run, client)}", sys.stderr)
    return 1


def _get_run(client: "KfpClient", run_id: str) -> Any:
    """The run; where the server is away, after its return."""

    def report(error: NoAnswerError, failures: int) -> None:
        if failures == 1:
            print_line(f"{error}; the run goes on, and is asked for again")

    pauses = within(OUTAGE_SECONDS, repeat(POLL_SECONDS))
    return retry(lambda: client.get_run(run_id), NoAnswerError, pauses, report)


def _tasks(run: Any) -> dict[str, Any]:
    """Name -> details of the tasks of the DAG, in its order; without their drivers and executors."""
    details = {task.display_name: task for task in _details(run)}
    return {name: details[name] for name in TASKS if name in details}


def _details(run: Any) -> list[Any]:
    return (run.run_details.task_details if run.run_details else None) or []


def _seconds(task: Any) -> str:
    if not task.start_time or not task.end_time or task.end_time < task.start_time:
        return ""
    return f", {(task.end_time - task.start_time).total_seconds():.0f} s"


def _failure(run: Any, client: "KfpClient") -> str:
    """Why the run did not succeed: the failed task, its message, and the command that prints its log."""
    page = client.page(run.run_id)
    if run.state in ("CANCELED", "SKIPPED"):
        return f"the run was terminated: {page}"
    failed = next((task for task in _tasks(run).values() if task.state == "FAILED"), None)
    if failed is None:
        return f"the run failed: {_message([run])}; {page}"
    parts = [failed, *_below(failed, {task.task_id: task for task in _details(run)})]
    pod = next((part.pod_name for part in reversed(parts) if part.state == "FAILED" and part.pod_name), None)
    log = f"; its log: kubectl -n {client.pod_namespace} logs {pod} -c main" if pod else ""
    return f"{failed.display_name} failed: {_message([run, *parts])}{log}; {page}"


def _below(task: Any, by_id: Mapping[str, Any]) -> Iterator[Any]:
    """The tasks that KFP ran for a task: its driver, its executor, and the attempts of that."""
    for child in task.child_tasks or []:
        part = by_id.get(child.task_id or "")
        if part is not None and part is not task:
            yield part
            yield from _below(part, by_id)


def _message(parts: list[Any]) -> str:
    """The last message of a failure, on one line."""
    messages = [part.error.message for part in parts if part.error and part.error.message]
    return " ".join(messages[-1].split())[:300] if messages else "no reason given"
