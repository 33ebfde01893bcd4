"""The end of a task's log, from KFP or Kubernetes, and the step's error line in it."""

import re
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from autoformer.errors import AutoFormerError
from runtime.kubernetes.api import PATIENCE, KubernetesApi, RefusedError

if TYPE_CHECKING:
    from pipeline.cluster.kfp_client import KfpClient

CONTAINER = "main"  # Argo's name of a task's container
TAIL_LINES = 200
_STATUS = re.compile(r"exit status (\d+)\b")  # KFP's launcher ends with this line; the pod's own code is always 1
_ARGO = re.compile(
    r"time=\S+ level=\w+ msg=.* argo=true |Error: exit status \d+$"
)  # after the last line of the launcher
_LAUNCHER = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ |\[KFP Executor ")  # of KFP, not of the step


def last_lines(client: "KfpClient", run_id: str, pod: str, namespace: str) -> list[str]:
    """The last lines of a pod's log; empty if neither KFP nor Kubernetes has it."""
    lines = client.log(run_id, pod, namespace) or _by_kubernetes(pod, namespace)
    return [line.rstrip() for line in lines if not _ARGO.match(line)]


def reason(lines: Sequence[str], task: str) -> str:
    """The error line that a step printed before it exited; empty if there is none.

    A killed step, or one with a traceback (code 1), has printed none.
    """
    ended = max((number for number, line in enumerate(lines) if _STATUS.search(line)), default=None)
    if ended is None:
        return ""
    found = _STATUS.search(lines[ended])
    if found is None or found[1] == "1":
        return ""
    starts = tuple(f"{name}: " for name in (task, task.replace("-", "_")))
    own = [line for line in lines[:ended] if line.startswith(starts)]
    return own[-1].partition(": ")[2] if own else ""


def without_launcher(lines: Sequence[str]) -> list[str]:
    """The lines of the step, without those of KFP's launcher and executor, and without their JSON."""
    end_of_json = max((number for number, line in enumerate(lines) if line.startswith("}")), default=-1)
    return [line for line in lines[end_of_json + 1 :] if line.strip() and not _LAUNCHER.match(line)]


def _by_kubernetes(pod: str, namespace: str) -> list[str]:
    """The log from the cluster of this pod, of KUBECONFIG or of ~/.kube/config; empty if it lacks the pod."""
    try:
        api = KubernetesApi.connect(PATIENCE, namespace)
        last = deque(api.log(pod, container=CONTAINER, tail_lines=TAIL_LINES), TAIL_LINES)  # a server may send more
        return [line.partition(" ")[2] for line in last]
    except (AutoFormerError, RefusedError, OSError):
        return []
