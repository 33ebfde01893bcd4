"""Handle Ctrl-C while a program still imports its modules."""

import os
import sys
from types import TracebackType


def report_early_stop() -> None:
    """End an unhandled Ctrl-C with one line and exit code 130. Packages of programs call it when they are imported.

    It applies only to `python -m`, where `sys.argv[0]` is `-m` until the program's package is imported.
    """
    if sys.argv[:1] == ["-m"]:
        sys.excepthook = _in_one_line


def _in_one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    print("stopped by SIGINT", file=sys.stderr, flush=True)
    os._exit(130)  # Python would end by the signal itself
