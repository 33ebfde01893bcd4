"""Ctrl-C while a program imports its modules, before any of its own code can handle signals."""

import os
import sys
from types import TracebackType


def report_early_stop() -> None:
    """End in one line and exit code 130 on a Ctrl-C that nothing handles; packages of programs call it when imported.

    Only where Python starts a program, `python -m`: it names that program `-m` until its package is imported.
    """
    if sys.argv[:1] == ["-m"]:
        sys.excepthook = _in_one_line


def _in_one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    print("stopped by SIGINT", file=sys.stderr, flush=True)
    os._exit(130)  # Python would end by the signal itself
