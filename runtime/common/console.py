"""What a person sees of a command: its lines, its progress bar, and the one line with which it ends early."""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from autoformer.errors import AutoFormerError
from autoformer.files import unwritable, write_json
from runtime.common import processes
from runtime.common.exit_codes import BAD_INPUT
from runtime.common.redaction import hide
from runtime.common.stopping import Stopped, stoppable


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with a command line, as an `AutoFormerError`."""

    def error(self, message: str) -> NoReturn:
        raise AutoFormerError(f"{message}; --help lists the arguments")


def run_command(
    who: str,
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], int | None],
    argv: Sequence[str] | None = None,
    first: Callable[[], None] | None = None,
    after: str = "; the same command goes on from there",
) -> int:
    """Parse the arguments of a command that may be stopped, and do its work; what ends it early is one line on stderr.

    Args:
        who: is named in that line.
        work: takes the parsed arguments, and returns the exit code, or None for 0.
        first: is called when a signal comes, before the work is interrupted.
        after: ends the line where a signal has come.

    Returns:
        The exit code; see `runtime.common.exit_codes`.
    """
    try:
        arguments = parser.parse_args(argv)
        with stoppable(first):
            return work(arguments) or 0
    except (AutoFormerError, OSError) as error:
        return report_error(who, error)
    except Stopped as stopped:
        print(f"{who}: {stopped}{after}", file=sys.stderr)
        return int(str(stopped.code))


def report_error(who: str, error: AutoFormerError | OSError) -> int:
    """Say in one line what `who` cannot do; the exit code."""
    print_line(f"{who}: {error_line(error)}", sys.stderr)
    return BAD_INPUT


def error_line(error: AutoFormerError | OSError) -> str:
    """What a person is told of bad input, or of a disk; raises an `OSError` that no line explains."""
    told = unwritable(error) if isinstance(error, OSError) else error
    if told is None:
        raise error
    return hide(str(told))


def report_failure(step: str, message: str, code: int) -> int:
    """Say in one line why a step ends, on stderr and to the runner; the exit code.

    One of several processes tells the one that has started them all, which says it once.
    """
    folder = os.environ.get(processes.REPORT_FOLDER)
    if folder and processes.is_rank():
        _tell(Path(folder) / f"{os.environ['RANK']}.json", step, message, code)
        return code
    print_line(f"{step}: {message}", sys.stderr)
    file = os.environ.get("AUTOFORMER_FAILURE")
    if file and processes.is_rank_zero():
        _tell(Path(file), step, message, code)
    pod = os.environ.get("AUTOFORMER_TERMINATION")
    if pod:
        with contextlib.suppress(OSError):  # a file that Kubernetes has made, and reads when the container has ended
            Path(pod).write_text(message, encoding="utf-8")
    return code


def _tell(file: Path, step: str, message: str, code: int) -> None:
    """The local runner hears of a failed step only that it failed; a file tells it why."""
    with contextlib.suppress(AutoFormerError):  # the disk may be what is full
        write_json(file, {"step": step, "message": message, "code": code})


def print_line(line: str, file: TextIO | None = None) -> None:
    """Print a line. Where its reader is gone, as with a runner that was killed, the work goes on without one.

    Of several processes rank 0 alone speaks, but for what goes to stderr.
    """
    if file is None and not processes.is_rank_zero():
        return
    file = file or sys.stdout
    try:
        print(line, file=file, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


def existing(path: Path, made_by: str) -> Path:
    """`path`, or one line that says which step makes it."""
    if not path.exists():
        raise AutoFormerError(f"{path}: no such file or folder; it is made by {made_by}")
    return path


class Progress:
    """A bar with rate and time left where there is a terminal, else one line a minute.

    The local runner of KFP pipes what a step prints; it names its terminal in `AUTOFORMER_TTY`, so that
    the bar is drawn there.
    """

    def __init__(self, what: str, total: int, unit: str, initial: int = 0) -> None:
        from tqdm import tqdm

        self._terminal = _open_terminal()
        self._what, self._unit = what, unit
        self._started, self._initial = time.monotonic(), initial
        self._line_at = self._started
        self._done, self._total = initial, total
        columns = _columns(self._terminal)
        self._bar = tqdm(
            desc=what, total=total, unit=unit, initial=initial, file=self._terminal,
            disable=self._terminal is None, ncols=columns, dynamic_ncols=columns is None, leave=False,
        )  # fmt: skip

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._terminal is None:
            self._print_line()
        elif self._terminal is not sys.stderr:
            self._terminal.close()

    def update(self, done: int, note: str = "") -> None:
        """Say that `done` of the total are done."""
        self._done = done
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)
        if self._terminal is None and time.monotonic() - self._line_at >= 60:
            self._line_at = time.monotonic()
            self._print_line(note)

    def _print_line(self, note: str = "") -> None:
        seconds = time.monotonic() - self._started
        rate = (self._done - self._initial) / max(seconds, 1e-9)
        left = (self._total - self._done) / rate if rate > 0 else float("inf")
        minutes = f"{left / 60:.1f} min left" if self._done < self._total else f"took {seconds:.0f} s"
        print_line(f"{self._what}: {self._done}/{self._total} {self._unit}, {rate:.3g}/s, {minutes} {note}".rstrip())


def _open_terminal() -> Any:
    if not processes.is_rank_zero():
        return None
    if sys.stderr.isatty():
        return sys.stderr
    try:
        return Path(os.environ["AUTOFORMER_TTY"]).open("w")
    except (KeyError, OSError):
        return None


def _columns(terminal: Any) -> int | None:
    """80 for a terminal that does not say how wide it is, as under `script`; None for one that does."""
    return None if terminal is None or os.get_terminal_size(terminal.fileno()).columns else 80
