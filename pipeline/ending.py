"""What a runner does when it is told to stop: its steps end first, each with its checkpoint."""

import contextlib
import signal
import time
from collections.abc import Iterator

import psutil

from components.cli import GRACE_SECONDS, SHELLS


class Steps:
    """The processes of the steps that this process runs, itself or through `dvc`.

    Not those that a step has started: a loader's worker that ends before its step would take the checkpoint with it.
    """

    def __init__(self) -> None:
        self._told: set[int] = set()

    def tell(self) -> None:
        """Tell each of them once to stop."""
        for process, number in _to_tell(psutil.Process()):
            if process.pid not in self._told:
                self._told.add(process.pid)
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)

    def end(self, seconds: float = 2 * GRACE_SECONDS) -> None:
        """Tell them, and wait until all have ended; after so many seconds they are killed."""
        give_up = time.monotonic() + seconds
        while _alive() and time.monotonic() < give_up:
            self.tell()
            time.sleep(0.1)
        for process in _alive():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _to_tell(process: psutil.Process) -> Iterator[tuple[psutil.Process, signal.Signals]]:
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in process.children():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                is_dvc = "dvc" in child.cmdline()[1:3]
                if is_dvc:  # it does not mind Ctrl-C while a stage runs, and ends when that has failed
                    yield child, signal.SIGINT
                if is_dvc or child.name() in SHELLS:
                    yield from _to_tell(child)
                else:
                    yield child, signal.SIGTERM


def _alive() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
