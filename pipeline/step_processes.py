"""What a runner does when it is told to stop: its steps end first, each with its checkpoint."""

import contextlib
import signal
import time
from collections.abc import Iterator, Sequence

import psutil

from runtime.steps.command import GRACE_SECONDS, SHELLS


class StepProcesses:
    """The processes of the steps that this process runs, itself or through `dvc`.

    Not those that a step has started: a loader's worker that ends before its step would take the checkpoint with it.
    """

    def __init__(self) -> None:
        self._signalled: set[int] = set()
        self._beside: list[psutil.Process] = []

    @contextlib.contextmanager
    def including(self, processes: Sequence[psutil.Process]) -> Iterator[None]:
        """While entered, these are among them too, as the processes of a container: Docker's children, not ours."""
        self._beside += processes
        try:
            yield
        finally:
            self._beside.clear()

    def signal(self) -> None:
        """Signal each of them to stop, once."""
        for process, number in _signals([*psutil.Process().children(), *self._beside]):
            if process.pid not in self._signalled:
                self._signalled.add(process.pid)
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)

    def stop(self, seconds: float = 2 * GRACE_SECONDS) -> None:
        """Signal them and wait; kill what still runs after `seconds`."""
        give_up = time.monotonic() + seconds
        while self._alive() and time.monotonic() < give_up:
            self.signal()
            time.sleep(0.1)
        for process in self._alive():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def _alive(self) -> list[psutil.Process]:
        found = []
        for process in [*psutil.Process().children(recursive=True), *self._beside]:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


def _signals(processes: Sequence[psutil.Process]) -> Iterator[tuple[psutil.Process, signal.Signals]]:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            is_dvc = "dvc" in process.cmdline()[1:3]
            if is_dvc:  # it does not mind Ctrl-C while a stage runs, and ends when that has failed
                yield process, signal.SIGINT
            if is_dvc or process.name() in SHELLS:
                yield from _signals(process.children())
            else:
                yield process, signal.SIGTERM
