"""The tasks of a run in Argo's records: attempts, cached results, and reasons of failures.

KFP's API v2beta1 gives a failed task neither a reason nor a pod, and links no task to its executor. The Argo workflow,
which its API v1beta1 hands out, has all of it (seen on KFP 2.17.0 with Argo 4.0.8).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_TASK = re.compile(r"[^.]+\.root\(\d+\)\.([^.()]+)")  # full name of a task's node
_FAILED = ("Failed", "Error")
_NOT_MADE = re.compile(r'pods? "[^"]*" is (forbidden|invalid)', re.IGNORECASE)  # Kubernetes refused the pod
_FIRST_PULL = "ErrImagePull"  # alternates with ImagePullBackOff, which says the same
_LONGEST_PREFIX = 241  # of a pod's name, before its hash


class Failure(NamedTuple):
    """The task that failed first."""

    task: str | None  # None if the run failed before its first task
    message: str  # Argo's, on one line
    attempts: int
    pod: str | None  # pod of the last attempt; None if there was none


class Workflow:
    """The Argo workflow of a run: the parsed JSON of its manifest."""

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        self.name = str(manifest["metadata"]["name"])
        self.namespace = str(manifest["metadata"].get("namespace", ""))
        status = manifest.get("status") or {}
        self._message = status.get("message", "")
        self._nodes = sorted((status.get("nodes") or {}).values(), key=lambda node: node.get("startedAt") or "")

    def is_cached(self, task: str) -> bool:
        """Whether KFP answered a task from its cache: the task's own node succeeds, only its executor is skipped."""
        executors = [node for node in self._below(task) if node["displayName"] == "executor"]
        return any(node["phase"] == "Skipped" for node in executors)

    def attempts(self, task: str) -> int:
        """The number of pods that a task has had."""
        return len(self._pods(task))

    def pending(self, task: str) -> str:
        """Why the newest pod of a task waits, for example for cores or a secret; empty if it runs or starts."""
        pods = self._pods(task)
        newest = pods[-1] if pods else {}
        message = " ".join(str(newest.get("message", "")).split()) if newest.get("phase") == "Pending" else ""
        reason, colon, _ = message.partition(": ")  # without a text of its own it passes, as ContainerCreating
        return message.partition(". ")[0][:300] if colon and reason != _FIRST_PULL else ""

    def failed_pods(self, task: str) -> list[str]:
        """The names of the pods of a task's failed attempts, oldest first."""
        return [self._pod_name(node) for node in self._pods(task) if node["phase"] in _FAILED]

    def failure(self) -> Failure | None:
        """The task that failed first, and why; None if no task failed."""
        failed = [node for node in self._nodes if node["phase"] in _FAILED and _TASK.fullmatch(node["name"])]
        if not failed:
            return self._early_failure()
        node = min(failed, key=lambda each: each.get("finishedAt") or "~")
        task = str(node["displayName"])
        below = [each for each in self._below(task) if each["phase"] in _FAILED]
        pods = [each for each in below if each["type"] == "Pod"]
        # the executor's own message says why no further attempt was made
        nodes = [*pods[-1:], *(each for each in below if each["type"] == "Retry"), node]
        messages = dict.fromkeys(" ".join(each["message"].split()) for each in nodes if each.get("message"))
        step = task.removesuffix("-driver")
        return Failure(step, "; ".join(messages)[:300], max(1, self.attempts(task)), self._newest(pods))

    def _early_failure(self) -> Failure | None:
        """The failure of the driver of the whole run, before the first task."""
        pods = [node for node in self._nodes if node["phase"] in _FAILED and node["type"] == "Pod"]
        if not pods:
            return None
        return Failure(None, " ".join(str(pods[-1].get("message", "")).split())[:300], 1, self._newest(pods))

    def _newest(self, pods: Sequence[Mapping[str, Any]]) -> str | None:
        """The name of the last of these pods; None if there is none, or Kubernetes refused to create it."""
        if not pods or _NOT_MADE.match(str(pods[-1].get("message", ""))):
            return None
        return self._pod_name(pods[-1])

    @property
    def message(self) -> str:
        """Argo's message about the whole run, on one line."""
        return " ".join(str(self._message).split())[:300]

    def _below(self, task: str) -> list[Mapping[str, Any]]:
        """Argo's nodes of a task, ordered by their start."""
        tops = [node["name"] for node in self._nodes if node["displayName"] == task and _TASK.fullmatch(node["name"])]
        return [node for node in self._nodes if any(node["name"].startswith(f"{top}(") for top in tops)]

    def _pods(self, task: str) -> list[Mapping[str, Any]]:
        return [node for node in self._below(task) if node["type"] == "Pod"]

    def _pod_name(self, node: Mapping[str, Any]) -> str:
        """The pod name, as in Argo's `GeneratePodName`; a node id ends in the hash of the node's name."""
        prefix = f"{self.name}-{node['templateName']}"[:_LONGEST_PREFIX]
        return f"{prefix}-{node['id'].rpartition('-')[2]}"
