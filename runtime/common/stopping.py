"""Signals that stop a step: SIGTERM, SIGINT and SIGHUP raise `Stopped` once, at a safe moment.

Outside of `delay_signals` a signal raises `Stopped` at once, so that unfinished folders are removed and the MLflow run
ends. Inside, the signal waits until the block ends or polls. Later signals are ignored: a terminal and a runner may
both send one, and the second must not interrupt the clean-up after the first.

Python drops an exception that is raised in a finaliser or a weakref callback, and some libraries drop any exception. So
a timer raises `Stopped` again until it is handled. If the work ends without it, `stoppable` raises it at its end.
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
    """A signal stops the process. The exit code is 128 plus the signal's number, as in shells."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number).name
        self.note = ""  # progress so far, such as " at step 12 of 40"

    def __str__(self) -> str:
        return f"stopped by {self.signal}{self.note}"


class _State:
    received: int | None = None  # the signal
    received_at = 0.0  # seconds of the monotonic clock
    delays = 0  # number of entered `delay_signals` blocks
    listening = False
    delivered = False  # whether an exception has reached the end of `stoppable` after the signal
    on_signal: Callable[[], None] | None = None


@contextlib.contextmanager
def stoppable(on_signal: Callable[[], None] | None = None) -> Iterator[None]:
    """A context in which a signal raises `Stopped` in the main thread; signals ignored before stay ignored.

    After a signal the handlers stay, so that a second signal cannot end the process during its clean-up.

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
    """A context that delays signals to its end. The yielded function returns whether a signal has come."""
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
    """Seconds since the signal, or None: whoever sent it may soon kill the process."""
    return None if _State.received is None else time.monotonic() - _State.received_at


def receive_signal(number: int) -> None:
    """Treat another process's signal as received here; call it inside of `delay_signals`."""
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
    """Raise `Stopped` again, unless its clean-up is running, during which it is the exception being handled."""
    handled = sys.exception()
    while handled is not None and not isinstance(handled, Stopped):
        handled = handled.__context__
    if handled is None and _State.received is not None and not _State.delivered and not _State.delays:
        raise Stopped(_State.received)


def _reset_in_child() -> None:
    """Reset signals in a forked child, such as a loader's worker: SIGTERM ends it, Ctrl-C is left to its parent."""
    if _State.listening:
        _State.listening = False
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)


os.register_at_fork(after_in_child=_reset_in_child)
