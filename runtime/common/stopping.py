"""Signals that stop a step: SIGTERM, SIGINT and SIGHUP raise `Stopped` once, at a moment that does no harm.

Outside of `delay_signals` a signal raises `Stopped` at once, so that unfinished folders are removed and the MLflow run
ends. Inside of it the signal waits until the block ends, or until the block asks. Later signals are ignored: a terminal
and a runner both send one, and the second must not interrupt the clean-up that the first has begun.

Python drops an exception that is raised in a finaliser or a weakref callback, and some libraries drop any. So a timer
raises `Stopped` again until it is handled somewhere, and work that ends without it raises it at the end of `stoppable`.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
RAISE_AGAIN_SECONDS = 0.5


class Stopped(SystemExit):
    """A signal stops the process. The exit code is 128 and the signal's number, as in shells."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number).name
        self.note = ""  # progress so far: " at step 12 of 40"

    def __str__(self) -> str:
        return f"stopped by {self.signal}{self.note}"


class _State:
    received: int | None = None  # the signal
    received_at = 0.0  # seconds of the monotonic clock
    delays = 0  # blocks of `delay_signals` that are entered
    listening = False
    delivered = False  # an exception has reached the end of `stoppable` after the signal
    on_signal: Callable[[], None] | None = None


@contextlib.contextmanager
def stoppable(on_signal: Callable[[], None] | None = None) -> Iterator[None]:
    """While entered, a signal raises `Stopped` in the main thread; a signal that was ignored before stays so.

    After a signal the handlers stay in place, so that a second one cannot end the process during its clean-up.

    Args:
        on_signal: called before `Stopped` is raised.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGALRM)}
    _State.received, _State.delays, _State.listening, _State.on_signal = None, 0, True, on_signal
    _State.delivered = False
    for number in SIGNALS:
        if former[number] is not signal.SIG_IGN:
            signal.signal(number, _handle)
    signal.signal(signal.SIGALRM, _raise_again)
    try:
        yield
        if _State.received is not None and not _State.delivered:
            raise Stopped(_State.received)
    finally:
        _State.delivered = _State.received is not None
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former.pop(signal.SIGALRM))
        if _State.received is None:
            _State.listening = False
            for number, handler in former.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def delay_signals() -> Iterator[Callable[[], bool]]:
    """While entered, a signal waits; the yielded function returns whether one has come. Leaving raises `Stopped`."""
    _State.delays += 1
    try:
        yield lambda: _State.received is not None
    finally:
        _State.delays -= 1
    if _State.received is not None and not _State.delays:
        _raise(_State.received)


def received_signal() -> int | None:
    return _State.received


def seconds_since_signal() -> float | None:
    """Seconds since a signal came, if one has: who stops a process kills it after a while."""
    return None if _State.received is None else time.monotonic() - _State.received_at


def receive_signal(number: int) -> None:
    """Treat the signal of another process as received here; call it inside of `delay_signals`."""
    if _State.received is None:
        _State.received_at, _State.received = time.monotonic(), number


def _handle(number: int, frame: FrameType | None) -> None:
    if _State.received is None:
        receive_signal(number)
        if _State.on_signal is not None:
            _State.on_signal()
        if not _State.delays:
            _raise(number)


def _raise(number: int) -> NoReturn:
    if _State.listening and not _State.delivered and threading.current_thread() is threading.main_thread():
        signal.setitimer(signal.ITIMER_REAL, RAISE_AGAIN_SECONDS, RAISE_AGAIN_SECONDS)
    raise Stopped(number)


def _raise_again(number: int, frame: FrameType | None) -> None:
    """Raise `Stopped` again, unless the clean-up for it is at work: then it is the exception being handled."""
    handled = sys.exception()
    while handled is not None and not isinstance(handled, Stopped):
        handled = handled.__context__
    if handled is None and _State.received is not None and not _State.delivered and not _State.delays:
        raise Stopped(_State.received)


def _reset_in_child() -> None:
    """A forked child, such as a loader's worker, ends by SIGTERM, and leaves Ctrl-C to its parent."""
    if _State.listening:
        _State.listening = False
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)


os.register_at_fork(after_in_child=_reset_in_child)
