"""The log of a job's first machine, line by line, over connections that break and pods that are started again."""

import contextlib
import re
import threading
from collections.abc import Iterator
from typing import Any

from runtime.common.console import print_line
from runtime.kubernetes.api import KubernetesApi, Patience, RefusedError
from runtime.kubernetes.job import CONTAINER, POD_INDEX

_STAMPED = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d) (.*)", re.DOTALL)


def index_of(pod: dict[str, Any]) -> int:
    """Which machine of the job a pod is."""
    marks = {**pod["metadata"].get("annotations", {}), **pod["metadata"].get("labels", {})}
    return int(marks.get(POD_INDEX, 0))


def container_of(pod: dict[str, Any]) -> dict[str, Any]:
    """The state of a pod's container: {"running" | "waiting" | "terminated": …}, empty where there is none."""
    for status in pod.get("status", {}).get("containerStatuses") or []:
        if status["name"] == CONTAINER:
            return dict(status.get("state") or {})
    return {}


class Reader:
    """What has been read of one pod's log, so that a new connection goes on where the former one broke off.

    Lines are told apart by their times, of which several may be the same: those of the last time are counted.
    """

    def __init__(self) -> None:
        self.last = ""  # time of the last line
        self.count = 0  # lines of that time

    @property
    def since(self) -> str | None:
        """The whole second from which to ask for more."""
        found = _STAMPED.match(f"{self.last} ")
        return f"{found[1]}{found[3]}" if found else None

    def new(self, lines: Iterator[str]) -> Iterator[str]:
        """Lines of one connection that were not read from an earlier one, without their times."""
        known, counted = self.last, self.count
        for line in lines:
            stamp, _, text = line.partition(" ")
            if not _STAMPED.match(line):
                yield line
                continue
            if stamp < known or (stamp == known and counted > 0):
                counted -= stamp == known
                continue
            self.count = self.count + 1 if stamp == self.last else 1
            self.last = stamp
            yield text


def lines_of(answer: Any, whole: bool) -> Iterator[str]:
    """The lines of an open answer, as they come. `whole`: what follows the last line end is a line, too."""
    rest = b""
    with contextlib.closing(answer):
        for part in answer.stream(65_536, decode_content=True):
            *lines, rest = (rest + part).split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)
    if rest and whole:
        yield rest.decode(errors="replace")


class LogThread(threading.Thread):
    """Prints the log of machine 0 until the job has ended."""

    def __init__(self, cluster: KubernetesApi, job: str, patience: Patience) -> None:
        super().__init__(daemon=True, name=f"log of {job}")
        self._cluster, self._job, self._patience = cluster, job, patience
        self._ending, self._stopping = threading.Event(), threading.Event()
        self._readers: dict[str, Reader] = {}  # by pod
        self._current: dict[str, Any] | None = None
        self._finished: set[str] = set()  # pods that have ended and are read to their end
        self._lines = 0  # read so far

    def see(self, pods: list[dict[str, Any]]) -> None:
        """What the one who watches the job has found: the newest pod of machine 0 is the one to read."""
        begun = [pod for pod in pods if index_of(pod) == 0 and container_of(pod).keys() & {"running", "terminated"}]
        if begun:
            self._current = begun[-1]

    def stop(self) -> None:
        """Print nothing more than what is being read."""
        self._stopping.set()

    def end(self) -> None:
        """Print what is left, once the containers have ended; not for ever."""
        self._ending.set()
        if self.is_alive():
            self.join(self._patience.drain_seconds)
        self._stopping.set()

    def run(self) -> None:
        pause, poll = self._patience.pause_seconds, self._patience.poll_seconds
        while not self._stopping.is_set():
            ending, pod = self._ending.is_set(), self._current
            before = self._lines
            done = pod is None or self._read_on(pod, ending)
            if ending and done:
                return
            if ending:
                self._stopping.wait(pause)
            else:
                self._ending.wait(pause if self._lines > before else poll)

    def _read_on(self, pod: dict[str, Any], ending: bool) -> bool:
        """Whether all has been read, now or before."""
        uid = pod["metadata"].get("uid", pod["metadata"]["name"])
        ended = ending or "terminated" in container_of(pod)
        if uid not in self._finished and self._read(pod, uid, follow=not ended) and ended:
            self._finished.add(uid)
        return uid in self._finished

    def _read(self, pod: dict[str, Any], uid: str, follow: bool) -> bool:
        """Whether all has been read. Whatever breaks is tried again from where it broke: a log is no reason to end."""
        name = pod["metadata"]["name"]
        reader = self._readers.setdefault(uid, Reader())
        try:
            answer = self._cluster.log(name, CONTAINER, reader.since, follow=follow)
            for line in reader.new(lines_of(answer, whole=not follow)):
                self._lines += 1
                print_line(line)
        except RefusedError as refused:
            return refused.status == 404  # the pod is gone, and its log with it
        except (OSError, _http_error()):
            return False
        return True


def _http_error() -> type[Exception]:
    from urllib3.exceptions import HTTPError

    return HTTPError
