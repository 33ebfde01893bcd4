"""How a step hears that it shall stop: SIGTERM, SIGINT and SIGHUP become `Stopped`, once, where that does no harm.

Outside of `delay_signals` a signal raises `Stopped` at once, so that folders half made are removed and the MLflow
run is ended. Inside it the signal waits until the block is left, or until the block asks. Later signals are
ignored: a terminal and a runner both send one, and the second must not cut short what the first has begun.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopped(SystemExit):
    """The process was told to stop. Its code is 128 and the signal's number, as shells have it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number).name
        self.note = ""  # how far the work is: " at step 12 of 40"

    def __str__(self) -> str:
        return f"stopped by {self.signal}{self.note}"


class _State:
    received: int | None = None  # the signal that came
    told_at = 0.0  # seconds of the monotonic clock
    waits = 0  # blocks entered that a signal does not interrupt
    listening = False
    first: Callable[[], None] | None = None


@contextlib.contextmanager
def stoppable(first: Callable[[], None] | None = None) -> Iterator[None]:
    """While entered, a signal raises `Stopped` in the main thread. One that the process was started to ignore stays so.

    After a signal has come the handlers stay, so that a second one cannot end the process on its last metres.

    Args:
        first: is called before `Stopped` is raised.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.getsignal(number) for number in SIGNALS}
    _State.received, _State.waits, _State.listening, _State.first = None, 0, True, first
    for number, handler in former.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _on_signal)
    try:
        yield
    finally:
        if _State.received is None:
            _State.listening = False
            for number, handler in former.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def delay_signals() -> Iterator[Callable[[], bool]]:
    """While entered, a signal interrupts nothing; ask whether one has come. On leaving it raises `Stopped`."""
    _State.waits += 1
    try:
        yield lambda: _State.received is not None
    finally:
        _State.waits -= 1
    if _State.received is not None and not _State.waits:
        raise Stopped(_State.received)


def received_signal() -> int | None:
    """The signal that has come, if one has."""
    return _State.received


def seconds_since_signal() -> float | None:
    """How long ago a signal came, if one has: those who stop a process kill it after a while."""
    return None if _State.received is None else time.monotonic() - _State.told_at


def receive_signal(number: int) -> None:
    """Take a signal that another process has had for one of our own; inside of `delay_signals`."""
    if _State.received is None:
        _State.told_at = time.monotonic()
        _State.received = number


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _State.received is None:
        _State.told_at = time.monotonic()
        _State.received = number
        if _State.first is not None:
            _State.first()
        if not _State.waits:
            raise Stopped(number)


def _forget_in_child() -> None:
    """A forked child, as a loader's worker is, ends by SIGTERM, and leaves Ctrl-C to its parent."""
    if _State.listening:
        _State.listening = False
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)


os.register_at_fork(after_in_child=_forget_in_child)
