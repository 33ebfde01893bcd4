"""Watch a job to its end, and say why where that is a bad one."""

import contextlib
import re
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from autoformer.errors import AutoFormerError
from runtime.common.console import print_line
from runtime.common.exit_codes import BAD_INPUT, LOST, JobFailed
from runtime.common.stopping import SIGNALS
from runtime.kubernetes.api import KubernetesApi, Object, Patience
from runtime.kubernetes.job import CONTAINER, REPLICATED
from runtime.kubernetes.log import LogThread, container_of, index_of, lines_of

DEADLINE = 124
TAIL_LINES = 30  # of a failed pod's log
SHOWN_EVENTS = 10
MISSING_LOOKS = 3  # that a job may have fewer pods than machines before it is asked why
_LATER = (LOST, *(128 + number for number in SIGNALS))  # codes of machines that have ended for another's sake


def condition(job: Object, kind: str) -> Object | None:
    """The condition of that kind, where it holds."""
    found = (each for each in job.get("status", {}).get("conditions") or [] if each["type"] == kind)
    return next((each for each in found if each["status"] == "True"), None)


def has_ended(job: Object) -> bool:
    return any(condition(job, kind) for kind in ("Complete", "Failed"))


def follow_job(cluster: KubernetesApi, name: str, step: str, patience: Patience) -> None:
    """Wait until a job is complete; its first machine's log is printed, and what it waits for.

    Raises:
        JobFailed: why it has not come so far, with the exit code of the container that failed first.
    """
    log = LogThread(cluster, name, patience)
    log.start()
    try:
        job, pods = _watched(cluster, name, _Watch(cluster, step, name), log, patience)
    except BaseException:
        log.stop()
        raise
    log.end()
    failed = condition(job, "Failed")
    if failed:
        raise _failure(cluster, job, failed, pods)


def _watched(
    cluster: KubernetesApi, name: str, watch: "_Watch", log: LogThread, patience: Patience
) -> tuple[Object, list[Object]]:
    """The job and its pods, once it has ended."""
    while True:
        job = cluster.get(name)
        if job is None or job["metadata"].get("deletionTimestamp"):
            raise JobFailed(f"the job {name} was deleted; the same command goes on from the last checkpoint", LOST)
        pods = cluster.pods(name)
        log.see(pods)
        if has_ended(job):
            return job, pods
        watch.tell(job, pods)
        time.sleep(patience.poll_seconds)


class _Watch:
    """Says once each what happens to a job on its way."""

    def __init__(self, cluster: KubernetesApi, step: str, name: str) -> None:
        self._cluster, self._step, self._name = cluster, step, name
        self._suspended = False
        self._told: set[str] = set()
        self._first: str | None = None  # uid of machine 0's pod
        self._missing = 0  # looks in a row at which pods were missing

    def tell(self, job: Object, pods: list[Object]) -> None:
        suspended = condition(job, "Suspended")
        if suspended and not self._suspended:
            self._say(f"the job {self._name} is suspended, as by a queue that has no room yet; waiting")
        elif self._suspended and not suspended:
            self._say(f"the job {self._name} is resumed")
        self._suspended = suspended is not None
        for pod in pods:
            reason = _waits_for(pod)
            if reason and reason not in self._told:
                self._told.add(reason)
                self._say(f"machine {index_of(pod)} waits: {reason}")
        first = [pod["metadata"]["uid"] for pod in pods if index_of(pod) == 0]
        if first and first[-1] != self._first:
            if self._first is not None and not self._suspended:
                self._say("the machines are started again; the work goes on from its last checkpoint")
            self._first = first[-1]

        self._ask_for_missing(job["spec"]["trainer"]["numNodes"], len({index_of(pod) for pod in pods}))

    def _ask_for_missing(self, machines: int, found: int) -> None:
        """Pods that no quota or policy lets be made are told of by the events of what should make them."""
        self._missing = self._missing + 1 if found < machines and not self._suspended else 0
        if self._missing < MISSING_LOOKS:
            return
        if self._missing == MISSING_LOOKS:
            self._say(f"the job {self._name} has {found} of {machines} pods; waiting")
        for maker in (self._name, f"{self._name}-{REPLICATED}-0"):  # TrainJob and JobSet are called the same
            for line in self._told_of(maker):
                alike = re.sub(rf"({re.escape(maker)}-\d+)-[a-z0-9]{{5}}\b", r"\1", line)  # each try names another pod
                if alike not in self._told:
                    self._told.add(alike)
                    self._say(f"{maker}: {line}")

    def _told_of(self, maker: str) -> list[str]:
        try:
            return _told(self._cluster, maker)
        except AutoFormerError:  # who may not read events can wait all the same
            return []

    def _say(self, line: str) -> None:
        print_line(f"{self._step}: {line}")


def _waits_for(pod: Object) -> str | None:
    """Why a pod does not start: no machine for it, no image, a secret or a volume that is not there."""
    for each in pod.get("status", {}).get("conditions") or []:
        if each["type"] == "PodScheduled" and each["status"] == "False":
            return f"{each.get('reason', '')}: {each.get('message', '')}".strip(": ") or None
    waiting = container_of(pod).get("waiting") or {}
    reason = waiting.get("reason", "")
    if reason in ("", "ContainerCreating", "PodInitializing"):
        return None
    return f"{reason}: {waiting.get('message', '')}".rstrip(": ")


# --- failure ---


class _End(NamedTuple):
    """How a machine's container ended. `told`: the line that it has left, or what Kubernetes says."""

    pod: Object
    code: int
    at: str
    told: str


def _failure(cluster: KubernetesApi, job: Object, failed: Object, pods: list[Object]) -> JobFailed:
    name, machines = job["metadata"]["name"], job["spec"]["trainer"]["numNodes"]
    if failed.get("reason") == "DeadlineExceeded":
        return JobFailed(
            f"the job {name} has taken more than its {job['spec']['activeDeadlineSeconds']} seconds; raise its "
            "deadline_seconds; the same command goes on from the last checkpoint",
            DEADLINE,
        )
    first = _first_cause([end for end in map(_end, pods) if end is not None])
    if first is None:
        _report(_events(cluster, name))
        said = f"{failed.get('reason', '')}: {failed.get('message', '')}".strip(": ")
        return JobFailed(f"the job {name} failed ({said}); none of its pods is left to say more", 1)
    pod = first.pod["metadata"]["name"]
    _report([f"last lines of {pod}:", *_tail(cluster, pod), *_events(cluster, pod)])
    return JobFailed(f"machine {index_of(first.pod)} of {machines}: {first.told}", first.code)


def _end(pod: Object) -> _End | None:
    """None where a pod has not failed."""
    status = pod.get("status", {})
    ended = container_of(pod).get("terminated")
    if ended and ended.get("exitCode"):
        lines = (ended.get("message") or "").strip().splitlines()
        killed = ended.get("reason") == "OOMKilled"
        told = lines[-1] if lines else f"its container ended with code {ended['exitCode']} ({ended.get('reason')})"
        why = "its memory was full; give it more, or take smaller batches" if killed else told
        return _End(pod, int(ended["exitCode"]), str(ended.get("finishedAt", "")), why)
    if status.get("phase") == "Failed":
        told = f"its pod failed ({status.get('reason', 'unknown')}: {status.get('message', '')})"
        return _End(pod, LOST, str(status.get("startTime", "")), told.replace(": )", ")"))
    return None


def _first_cause(ends: list[_End]) -> _End | None:
    """Bad input before all else, then what failed by itself, then what ended for its sake; the earliest of a kind."""

    def rank(end: _End) -> tuple[bool, bool, str]:
        return end.code != BAD_INPUT, end.code in _LATER, end.at

    return min(ends, key=rank, default=None)


def _tail(cluster: KubernetesApi, pod: str) -> Iterator[str]:
    from urllib3.exceptions import HTTPError

    with contextlib.suppress(OSError, HTTPError, _refused()):  # the pod may be gone with its machine
        answer = cluster.log(pod, CONTAINER, tail=TAIL_LINES)
        yield from (f"  {line.partition(' ')[2]}" for line in lines_of(answer, whole=True))


def _events(cluster: KubernetesApi, about: str) -> list[str]:
    lines = _told(cluster, about)
    return [f"events of {about}:", *(f"  {line}" for line in lines[-SHOWN_EVENTS:])] if lines else []


def _told(cluster: KubernetesApi, about: str) -> list[str]:
    """The events about an object, by its name, a line each, oldest first."""
    events = sorted(cluster.events(about), key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime")))
    return [f"{event.get('type')} {event.get('reason')}: {event.get('message')}" for event in events]


def _report(lines: Any) -> None:
    for line in lines:
        print_line(line, sys.stderr)


def _refused() -> type[Exception]:
    from runtime.kubernetes.api import RefusedError

    return RefusedError
