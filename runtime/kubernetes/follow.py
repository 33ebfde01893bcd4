"""Follow a job to its end, and explain a failure."""

import contextlib
import re
import sys
import time
from collections.abc import Iterable
from typing import NamedTuple

from autoformer.errors import AutoFormerError, quantity
from runtime.common.console import print_line
from runtime.common.exit_codes import BAD_INPUT, LOST, JobFailed
from runtime.common.stopping import SIGNALS
from runtime.kubernetes.api import KubernetesApi, Object, Patience, RefusedError, container_state, index_of
from runtime.kubernetes.job import REPLICATED
from runtime.kubernetes.log import LogThread

DEADLINE = 124
TAIL_LINES = 30  # printed from a failed pod's log
SHOWN_EVENTS = 10
MISSING_POLLS = 3  # polls with missing pods, after which the events are read
_SECONDARY = (LOST, *(128 + number for number in SIGNALS))  # exit codes caused by the end of another machine


def condition(job: Object, kind: str) -> Object | None:
    """The job's condition of that kind, if it is true."""
    conditions = job.get("status", {}).get("conditions") or []
    return next((each for each in conditions if each["type"] == kind and each["status"] == "True"), None)


def follow_job(api: KubernetesApi, name: str, step: str, patience: Patience) -> None:
    """Wait until a job is complete. Prints the log of its first machine, and the reasons of waits.

    Raises:
        JobFailed: the reason, and the exit code of the container that failed first.
    """
    log, report = LogThread(api, name, patience), _Report(api, step, name)
    log.start()
    try:
        while True:
            job = api.get(name)
            if job is None or job["metadata"].get("deletionTimestamp"):
                raise JobFailed(f"the job {name} was deleted; the same command resumes from the last checkpoint", LOST)
            pods = api.pods(name)
            log.set_pods(pods)
            failed = condition(job, "Failed")
            if failed or condition(job, "Complete"):
                break
            report.update(job, pods)
            time.sleep(patience.poll_seconds)
    except BaseException:
        log.stop()
        raise
    log.end()
    if failed:
        raise _failure(api, job, failed, pods)


class _Report:
    """Prints why a job waits, each reason once."""

    def __init__(self, api: KubernetesApi, step: str, name: str) -> None:
        self._api, self._step, self._name = api, step, name
        self._suspended = False
        self._printed: set[str] = set()  # reasons
        self._first: str | None = None  # uid of machine 0's pod
        self._missing = 0  # consecutive polls with missing pods

    def update(self, job: Object, pods: list[Object]) -> None:
        suspended = condition(job, "Suspended") is not None
        if suspended and not self._suspended:
            self._say(f"the job {self._name} is suspended, as by a queue that has no room yet; waiting")
        elif self._suspended and not suspended:
            self._say(f"the job {self._name} is resumed")
        self._suspended = suspended
        for pod in pods:
            reason = _waiting_reason(pod)
            if reason:
                self._say_once(reason, f"machine {index_of(pod)} waits: {reason}")
        first = [pod["metadata"]["uid"] for pod in pods if index_of(pod) == 0]
        if first and first[-1] != self._first:
            if self._first is not None and not suspended:
                self._say("the machines are started again; the work resumes from its last checkpoint")
            self._first = first[-1]
        self._explain_missing(job["spec"]["trainer"]["numNodes"], len({index_of(pod) for pod in pods}))

    def _explain_missing(self, machines: int, count: int) -> None:
        """Print the events of TrainJob and JobSet, if their pods are missing: a quota or policy may forbid them."""
        self._missing = self._missing + 1 if count < machines and not self._suspended else 0
        if self._missing < MISSING_POLLS:
            return
        if self._missing == MISSING_POLLS:
            self._say(f"the job {self._name} has {count} of {quantity(machines, 'pod')}; waiting")
        for owner in (self._name, f"{self._name}-{REPLICATED}-0"):  # the JobSet has the TrainJob's name
            with contextlib.suppress(AutoFormerError):  # events need a permission that following the job does not
                for line in self._api.events(owner):
                    # Each attempt has another pod name.
                    reason = re.sub(rf"({re.escape(owner)}-\d+)-[a-z0-9]{{5}}\b", r"\1", line)
                    self._say_once(reason, f"{owner}: {line}")

    def _say_once(self, reason: str, line: str) -> None:
        if reason not in self._printed:
            self._printed.add(reason)
            self._say(line)

    def _say(self, line: str) -> None:
        print_line(f"{self._step}: {line}")


def _waiting_reason(pod: Object) -> str | None:
    """Why a pod does not start: no free machine, no image, a missing secret or volume."""
    for each in pod.get("status", {}).get("conditions") or []:
        if each["type"] == "PodScheduled" and each["status"] == "False":
            return f"{each.get('reason', '')}: {each.get('message', '')}".strip(": ") or None
    waiting = container_state(pod).get("waiting") or {}
    reason = waiting.get("reason", "")
    if reason in ("", "ContainerCreating", "PodInitializing"):
        return None
    return f"{reason}: {waiting.get('message', '')}".rstrip(": ")


# --- failure ---


class _End(NamedTuple):
    """The end of a machine's container. `why`: the step's error line, or Kubernetes' reason."""

    pod: Object
    code: int
    at: str
    why: str


def _failure(api: KubernetesApi, job: Object, failed: Object, pods: list[Object]) -> JobFailed:
    name, machines = job["metadata"]["name"], job["spec"]["trainer"]["numNodes"]
    if failed.get("reason") == "DeadlineExceeded":
        return JobFailed(
            f"the job {name} has taken more than its {quantity(job['spec']['activeDeadlineSeconds'], 'second')}; raise "
            "its deadline_seconds; the same command resumes from the last checkpoint",
            DEADLINE,
        )
    # Bad input first, then primary failures, then secondary ones; the earliest of each kind.
    ends = [end for end in map(_end, pods) if end is not None]
    first = min(ends, key=lambda end: (end.code != BAD_INPUT, end.code in _SECONDARY, end.at), default=None)
    if first is None:
        _print_errors(_events(api, name))
        reason = f"{failed.get('reason', '')}: {failed.get('message', '')}".strip(": ")
        return JobFailed(f"the job {name} failed ({reason}); none of its pods is left to explain more", 1)
    pod = first.pod["metadata"]["name"]
    _print_errors([f"last lines of {pod}:"])
    with contextlib.suppress(OSError, RefusedError, AutoFormerError):  # the pod may have been lost with its machine
        _print_errors(f"  {line.partition(' ')[2]}" for line in api.log(pod, tail_lines=TAIL_LINES))
    _print_errors(_events(api, pod))
    return JobFailed(f"machine {index_of(first.pod)} of {machines}: {first.why}", first.code)


def _end(pod: Object) -> _End | None:
    """The failure of a pod; None if it has not failed."""
    status = pod.get("status", {})
    ended = container_state(pod).get("terminated")
    if ended and ended.get("exitCode"):
        lines = (ended.get("message") or "").strip().splitlines()
        why = lines[-1] if lines else f"its container ended with code {ended['exitCode']} ({ended.get('reason')})"
        if ended.get("reason") == "OOMKilled":
            why = "its memory was full; give it more, or take smaller batches"
        return _End(pod, int(ended["exitCode"]), str(ended.get("finishedAt", "")), why)
    if status.get("phase") == "Failed":
        why = f"its pod failed ({status.get('reason', 'unknown')}: {status.get('message', '')})"
        return _End(pod, LOST, str(status.get("startTime", "")), why.replace(": )", ")"))
    return None


def _events(api: KubernetesApi, about: str) -> list[str]:
    try:
        lines = api.events(about)
    except AutoFormerError as error:  # the job's own failure counts
        return [str(error)]
    return [f"events of {about}:", *(f"  {line}" for line in lines[-SHOWN_EVENTS:])] if lines else []


def _print_errors(lines: Iterable[str]) -> None:
    for line in lines:
        print_line(line, sys.stderr)
