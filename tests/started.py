"""Processes of tests: with the signals of a process in a terminal, and ended whatever happens."""

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

END_SECONDS = 60.0


def restore_signals() -> None:
    """Let processes that this one starts have Ctrl-C, SIGTERM and SIGHUP, and go on without them here.

    A shell starts `make test &` without Ctrl-C, and nohup without SIGHUP, and what a process ignores, its children do:
    a stopped runner would never stop. A function as handler, unlike SIG_IGN, is not inherited.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda number, frame: None)


@contextlib.contextmanager
def started(*arguments: Any, **options: Any) -> Iterator["subprocess.Popen[Any]"]:
    """`subprocess.Popen`, killed at the end. Popen's own end would wait for it without limit."""
    restore_signals()
    process = subprocess.Popen(*arguments, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait(END_SECONDS)
        for stream in filter(None, (process.stdin, process.stdout, process.stderr)):
            stream.close()
