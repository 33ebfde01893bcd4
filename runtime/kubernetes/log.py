"""The log of a job's first machine, line by line, across broken connections and restarted pods."""

import math
import re
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime

from runtime.common.answers import EndlessAnswerError, SlowAnswerError
from runtime.common.console import print_line
from runtime.kubernetes.api import MANIFESTS, KubernetesApi, Object, Patience, RefusedError, container_state, index_of

SKEW_SECONDS = 300  # maximum difference between the clocks of two machines
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


class Position:
    """The position in one pod's log, from which a new connection continues.

    Several lines may have the same time, so those with the last time are counted.
    """

    def __init__(self) -> None:
        self.last = ""  # time of the last line
        self.count = 0  # lines with that time
        self.finished = False

    @property
    def since_seconds(self) -> int | None:
        """Seconds to read again, with a margin for clock differences: the API uses the clock of the pod's machine."""
        if not self.last:
            return None
        age = datetime.now(UTC) - datetime.fromisoformat(self.last)
        return max(0, math.ceil(age.total_seconds())) + SKEW_SECONDS

    def new_lines(self, lines: Iterator[str]) -> Iterator[str]:
        """The lines of a connection that were not read before, without their times."""
        last, count = self.last, self.count
        for line in lines:
            time, _, text = line.partition(" ")
            if not _TIME.fullmatch(time):
                yield line
            elif time < last or (time == last and count > 0):
                count -= time == last
            else:
                self.count = self.count + 1 if time == self.last else 1
                self.last = time
                yield text


class LogThread(threading.Thread):
    """Prints the log of machine 0 until the job has ended."""

    def __init__(self, api: KubernetesApi, job: str, patience: Patience) -> None:
        super().__init__(daemon=True, name=f"log of {job}")
        self._api, self._patience = api, patience
        self._ending, self._stopping = threading.Event(), threading.Event()
        self._positions: dict[str, Position] = {}  # by uid of the pod
        self._pod: Object | None = None
        self._lines = 0  # read so far
        self._is_forbidden = False

    def set_pods(self, pods: list[Object]) -> None:
        """Read the newest pod of machine 0 that has started."""
        started = [
            pod for pod in pods if index_of(pod) == 0 and container_state(pod).keys() & {"running", "terminated"}
        ]
        if started:
            self._pod = started[-1]

    def stop(self) -> None:
        """Request no more lines."""
        self._stopping.set()

    def end(self) -> None:
        """Print the rest after the containers have ended, within `drain_seconds`."""
        self._ending.set()
        if self.is_alive():
            self.join(self._patience.drain_seconds)
        self._stopping.set()

    def run(self) -> None:
        pause, poll = self._patience.pause_seconds, self._patience.poll_seconds
        while not self._stopping.is_set():
            ending, pod, lines = self._ending.is_set(), self._pod, self._lines
            finished = pod is None or self._read(pod, ending)
            if ending and finished:
                return
            if ending:
                self._stopping.wait(pause)
            else:
                self._ending.wait(pause if self._lines > lines else poll)

    def _read(self, pod: Object, ending: bool) -> bool:
        """Print new lines; return whether the container has ended and its log is complete.

        A broken connection is not an error.
        """
        name, ended = pod["metadata"]["name"], ending or "terminated" in container_state(pod)
        position = self._positions.setdefault(pod["metadata"].get("uid", name), Position())
        if position.finished:
            return True
        try:
            lines = self._api.log(name, follow=not ended, since_seconds=position.since_seconds)
            for line in position.new_lines(lines):
                self._lines += 1
                print_line(line)
        except RefusedError as refused:
            if refused.status == 403 and not self._is_forbidden:
                self._is_forbidden = True
                print_line(f"the log of {name} may not be read; apply {MANIFESTS}: {refused}", sys.stderr)
            position.finished = ended and refused.status in (403, 404)  # 404: the pod is deleted
        except (EndlessAnswerError, SlowAnswerError) as error:  # the work itself does not depend on its log
            print_line(f"the log of {name} is cut off here: {error}", sys.stderr)
            position.finished = ended
        except OSError:
            pass
        else:
            position.finished = ended
        return position.finished
