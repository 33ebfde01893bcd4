"""Stop a runner's steps before the runner itself ends, and let each write its checkpoint."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence

import psutil

from runtime.common.stopping import delay_signals
from runtime.steps.command import GRACE_SECONDS, SHELLS


class StepProcesses:
    """The processes of the steps that this process runs, directly or through `dvc`.

    Children of a step are not signalled: if a loader worker ended first, the step could not write its checkpoint.
    """

    def __init__(self) -> None:
        self._signalled: set[int] = set()
        self._containers: list[psutil.Process] = []

    @contextlib.contextmanager
    def including(self, processes: Sequence[psutil.Process]) -> Iterator[None]:
        """A context in which a container's processes are included, which are children of Docker."""
        self._containers += processes
        try:
            yield
        finally:
            self._containers.clear()

    def signal(self) -> None:
        """Signal each step once."""
        for process, number in _signals([*psutil.Process().children(), *_orphans(), *self._containers]):
            if process.pid not in self._signalled:
                self._signalled.add(process.pid)
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)

    def stop(self, seconds: float = 2 * GRACE_SECONDS) -> None:
        """Signal the steps and wait for them; kill those that still run after `seconds`."""
        deadline = time.monotonic() + seconds
        while self._alive() and time.monotonic() < deadline:
            self.signal()
            time.sleep(0.1)
        for process in self._alive():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def stop_orphans(self) -> None:
        """Stop what a failed step has left: a signal to the whole group ends a step's shell before the step."""
        with delay_signals():
            self.stop()

    def _alive(self) -> list[psutil.Process]:
        alive = []
        for process in [*dict.fromkeys([*psutil.Process().children(recursive=True), *_named()]), *self._containers]:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(process)
        return alive


def _named() -> Iterator[psutil.Process]:
    """Processes whose environment names this runner; after the shell between has ended, they are no descendants."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("AUTOFORMER_RUNNER_PID") == str(os.getpid()):
                yield process


def _orphans() -> Iterator[psutil.Process]:
    """The processes of `_named` whose parent has ended."""
    named = list(_named())
    parents = {os.getpid(), *(process.pid for process in named)}
    for process in named:
        with contextlib.suppress(psutil.Error):
            if process.ppid() not in parents:
                yield process


def _signals(processes: Sequence[psutil.Process]) -> Iterator[tuple[psutil.Process, signal.Signals]]:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            is_dvc = "dvc" in process.cmdline()[1:3]
            if is_dvc:  # DVC ignores Ctrl-C while a stage runs, and ends when the stage has failed
                yield process, signal.SIGINT
            if is_dvc or process.name() in SHELLS:
                yield from _signals(process.children())
            else:
                yield process, signal.SIGTERM
