"""What a runner does when it is told to stop: its steps end first, each with its checkpoint."""

import contextlib
import signal
import time

import psutil

from components.cli import GRACE_SECONDS


class Steps:
    """The processes that this one has started, and those that they have."""

    def __init__(self) -> None:
        self._told: dict[int, psutil.Process] = {}

    def tell(self) -> None:
        """Tell each of them once to stop. Not `dvc`: its own stage ends, and a SIGTERM would cut it off from that."""
        for process in psutil.Process().children(recursive=True):
            if process.pid in self._told:
                continue
            self._told[process.pid] = process
            with contextlib.suppress(psutil.NoSuchProcess):
                is_dvc = "dvc" in process.cmdline()[1:3]
                process.send_signal(signal.SIGINT if is_dvc else signal.SIGTERM)

    def end(self, seconds: float = 2 * GRACE_SECONDS) -> None:
        """Tell them, and wait until all have ended; after so many seconds they are killed."""
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up:
            self.tell()
            _, alive = psutil.wait_procs(list(self._told.values()), timeout=0.2)
            if not alive and not psutil.Process().children(recursive=True):
                return
        for process in self._told.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
