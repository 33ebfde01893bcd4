"""Follow a run on a KFP server: print a line for each change of a task's state, until the run has ended."""

import sys
import time
from itertools import repeat
from typing import TYPE_CHECKING, Any

from pipeline.cluster.kfp_access import ENDED, NoAnswerError
from pipeline.cluster.pod_log import CONTAINER, last_lines, reason, without_launcher
from pipeline.cluster.workflow import Workflow
from pipeline.cluster.workflow_watch import WorkflowWatch
from runtime.common.config import STEPS
from runtime.common.console import print_line
from runtime.common.retrying import retry, within

if TYPE_CHECKING:
    from pipeline.cluster.kfp_client import KfpClient

POLL_SECONDS = 5.0
LATE_POLLS = 3  # extra polls for tasks that KFP still reports as running after their run has succeeded
PENDING_SECONDS = 30.0  # between two requests for the reason why a pod waits
SHOWN_LINES = 15  # printed from a failed task's log
OUTAGE_SECONDS = 900.0  # maximum outage of the server, which the run itself does not need
TASKS = tuple(step.replace("_", "-") for step in ("resolve_config", *STEPS))  # in the order of the DAG
_WORDS = {
    "PENDING": "waits",
    "RUNNING": "runs",
    "SUCCEEDED": "done",
    "SKIPPED": "taken from the cache",  # the only reason: no task of the DAG has a condition
    "FAILED": "failed",
    "CANCELING": "is being terminated",
    "CANCELED": "terminated",
}


def follow_run(client: "KfpClient", run_id: str) -> int:
    """Print each change until the run has ended; returns 0 if it succeeded, else 1 after a line about the failed task.

    Raises:
        MissingError: the run, or its workflow in Kubernetes, was deleted.
        AutoFormerError: the server refuses a request, or has not answered for a quarter of an hour.
    """
    printed: dict[str, tuple[str, int]] = {}
    seen: list[tuple[str, str]] = []
    workflow, is_terminated, looked_at, polls_late = None, False, 0.0, 0
    waiting: dict[str, str] = {}
    watch = WorkflowWatch(client)
    while True:
        run = _get_run(client, run_id)
        tasks = _tasks(run)
        now = sorted((str(part.display_name), str(part.state)) for part in _details(run))
        if now != seen or run.state in ENDED or time.monotonic() - looked_at > PENDING_SECONDS:
            is_news = now != seen or run.state in ENDED
            seen, workflow, looked_at = now, client.workflow(run_id), time.monotonic()
            watch.look(workflow, is_news)
        if _was_terminated(run) and not is_terminated:
            is_terminated = True
            print_line(f"the run {_WORDS['CANCELING']}")
        for name, task in tasks.items():
            attempt = workflow.attempts(name) if workflow else 0
            if str(task.state) in _WORDS and printed.get(name) != (str(task.state), attempt):
                is_again = printed.get(name, ("", 0))[0] == str(task.state)
                if not is_again or attempt > 1:
                    why = _last_reason(client, run_id, name, workflow) if task.state == "RUNNING" else ""
                    print_line(_line(name, task, attempt, workflow, is_terminated) + why)
                printed[name] = (str(task.state), attempt)
            pending = workflow.pending(name) if workflow and task.state == "RUNNING" else ""
            if pending and waiting.get(name) != pending:
                print_line(f"{name}: its pod waits: {pending}")
            waiting[name] = pending
        late = [name for name, task in tasks.items() if str(task.state) not in ENDED]
        if run.state in ENDED and not (run.state == "SUCCEEDED" and late and polls_late < LATE_POLLS):
            break
        polls_late += run.state in ENDED  # KFP records the end of the last task after the end of the run
        time.sleep(POLL_SECONDS)
    if run.state == "SUCCEEDED":
        foreign = "" if tasks else ", with no task of this pipeline"
        print_line(f"the run succeeded{foreign}: {client.page(run_id)}")
        return 0
    print_line(f"submit: {_failure(run, workflow, is_terminated, client)}", sys.stderr)
    return 1


def _last_reason(client: "KfpClient", run_id: str, task: str, workflow: Workflow | None) -> str:
    """The step's own reason why the previous attempt failed; empty for a first attempt."""
    failed = workflow.failed_pods(task) if workflow else []
    if workflow is None or not failed or workflow.attempts(task) <= len(failed):
        return ""
    lines = last_lines(client, run_id, failed[-1], workflow.namespace or client.pod_namespace)
    why = reason(lines, task)
    return f" (the attempt before: {why})" if why else ""


def _line(name: str, task: Any, attempt: int, workflow: Workflow | None, is_terminated: bool) -> str:
    state = str(task.state)
    if state == "FAILED" and is_terminated:
        state = "CANCELED"
    if state == "SUCCEEDED" and workflow is not None and workflow.is_cached(name):
        return f"{name}: {_WORDS['SKIPPED']}"
    again = f", attempt {attempt}" if attempt > 1 and state != "SUCCEEDED" else ""
    return f"{name}: {_WORDS[state]}{again}{_seconds(task) if state == 'SUCCEEDED' else ''}"


def _was_terminated(run: Any) -> bool:
    """Whether a failed run was terminated: KFP reports FAILED, and only the history has CANCELING."""
    history = [str(each.state) for each in run.state_history or []]
    return "CANCELING" in (run.state, *history) or run.state == "CANCELED"


def _get_run(client: "KfpClient", run_id: str) -> Any:
    """The run; waits while the server is unavailable."""

    def report(error: NoAnswerError, failures: int) -> None:
        if failures == 1:
            print_line(f"{error}; the run continues; asking again")

    pauses = within(OUTAGE_SECONDS, repeat(POLL_SECONDS))
    return retry(lambda: client.get_run(run_id), NoAnswerError, pauses, report)


def _tasks(run: Any) -> dict[str, Any]:
    """Name -> details of the DAG's tasks, in the DAG's order, without drivers and executors."""
    details = {task.display_name: task for task in _details(run)}
    return {name: details[name] for name in TASKS if name in details}


def _details(run: Any) -> list[Any]:
    return (run.run_details.task_details if run.run_details else None) or []


def _seconds(task: Any) -> str:
    if not task.start_time or not task.end_time or task.end_time < task.start_time:
        return ""
    return f", {(task.end_time - task.start_time).total_seconds():.0f} s"


def _failure(run: Any, workflow: Workflow | None, is_terminated: bool, client: "KfpClient") -> str:
    """The reason why the run did not succeed. Prints the end of the failed task's log first."""
    page = client.page(run.run_id)
    if is_terminated:
        return f"the run was terminated: {page}"
    failed = workflow.failure() if workflow else None
    if workflow is None or failed is None:
        task = next((name for name, each in _tasks(run).items() if each.state == "FAILED"), "the run")
        subject = "the run failed" if task == "the run" else f"{task} failed"
        message = (workflow.message if workflow else "") or _error(run)
        logs = f"its logs: kubectl -n {client.pod_namespace} logs -l pipeline/runid={run.run_id} -c main --prefix"
        return f"{subject}: {message}; {logs}; {page}"
    attempts = f" in {failed.attempts} attempts" if failed.attempts > 1 else ""
    if failed.pod is None:
        what = "the run" if failed.task is None else failed.task
        return f"{what} failed{attempts}: {failed.message or 'no reason given'}; {page}"
    namespace = workflow.namespace or client.pod_namespace
    log = f"kubectl -n {namespace} logs {failed.pod} -c {CONTAINER}"
    lines = last_lines(client, run.run_id, failed.pod, namespace)
    if lines:
        print_line(f"the log of {failed.task} ends with ({log}):", sys.stderr)
        for line in (without_launcher(lines) or lines)[-SHOWN_LINES:]:
            print_line(f"  {line}", sys.stderr)
    parts = [reason(lines, failed.task or ""), failed.message or "no reason given", f"its log: {log}", page]
    return f"{failed.task or 'the run'} failed{attempts}: {'; '.join(filter(None, parts))}"


def _error(run: Any) -> str:
    message = run.error.message if run.error else None
    return " ".join(message.split())[:300] if message else "no reason given"
