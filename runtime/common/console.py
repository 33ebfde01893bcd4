"""The output of a command: its lines, its progress bar, and the one line that reports an error."""

import argparse
import atexit
import contextlib
import gc
import io
import os
import select
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from autoformer.errors import AutoFormerError, printable
from autoformer.files import unwritable, write_json
from autoformer.reading import read_json_as
from runtime.common import processes
from runtime.common.exit_codes import BAD_INPUT, NO_READER
from runtime.common.records import Failure
from runtime.common.redaction import hide
from runtime.common.stopping import Stopped, stoppable

LINE_SECONDS = 60  # between two progress lines without a terminal


class Parser(argparse.ArgumentParser):
    """The argument parser of a command. Characters that stdout cannot encode are shown as `?`.

    An error in the arguments raises a one-line `AutoFormerError`.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # without it, Python scans the millions of objects of torch and MLflow at exit: 1 to 2 s of a step
        atexit.register(gc.freeze)
        if isinstance(sys.stdout, io.TextIOWrapper):  # stderr escapes such characters by itself
            sys.stdout.reconfigure(errors="replace")

    def error(self, message: str) -> NoReturn:
        raise AutoFormerError(f"{message}; --help lists the arguments")


def positive(text: str) -> int:
    """Argument type: a whole number above 0."""
    if not (text.isascii() and text.isdecimal()) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}': expected a number above 0")
    return int(text)


def run_command(
    who: str,
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], int | None],
    argv: Sequence[str] | None = None,
    on_signal: Callable[[], None] | None = None,
    after: str = "; the same command resumes from there",
) -> int:
    """Parse the arguments of a command and do its work; return the exit code. An error is one line on stderr.

    Args:
        who: the command's name in error lines.
        work: returns the exit code, or None for 0.
        on_signal: called after a signal, before the work is interrupted.
        after: end of the line that reports a signal.
    """
    try:
        arguments = parser.parse_args(argv)
        with stoppable(on_signal):
            code = work(arguments) or 0
            if sys.stdout is not None:  # None where it was closed
                sys.stdout.flush()
            return code
    except (AutoFormerError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _has_lost_its_reader(sys.stdout):
            return NO_READER
        return report_error(who, error)
    except Stopped as stopped:
        print(f"{who}: {stopped}{after}", file=sys.stderr)
        return int(str(stopped.code))


def _has_lost_its_reader(file: TextIO) -> bool:
    """Whether nobody reads `file` any more, as behind `| head`; it then leads nowhere."""
    ends = select.poll()
    ends.register(file, 0)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in ends.poll(0)):
        return False
    _discard(file)
    return True


def _discard(file: TextIO) -> None:
    """Let what is written to `file` from now on lead nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


def report_error(who: str, error: AutoFormerError | OSError) -> int:
    """Print an error as one line on stderr; return the exit code."""
    print_line(f"{who}: {error_line(error)}", sys.stderr)
    return BAD_INPUT


def error_line(error: AutoFormerError | OSError) -> str:
    """The line for bad input or a disk error; raises any other `OSError` again, which is a bug."""
    explained = unwritable(error) if isinstance(error, OSError) else error
    if explained is None:
        raise error
    return hide(str(explained))


def report_failure(step: str, message: str, code: int) -> int:
    """Print on stderr why a step ends, and write it to the runner's file; return the exit code.

    A rank of several prints nothing, and writes to a file for the process that started the ranks.
    """
    folder = os.environ.get(processes.REPORT_FOLDER)
    if folder and processes.is_rank():
        _write_failure(Path(folder) / f"{os.environ['RANK']}.json", step, message, code)
        return code
    print_line(f"{step}: {message}", sys.stderr)
    note_failure(step, message, code)
    pod = os.environ.get("AUTOFORMER_TERMINATION")
    if pod:
        with contextlib.suppress(OSError):  # Kubernetes made the file, and reads it after the container has ended
            Path(pod).write_text(message, encoding="utf-8")
    return code


def note_failure(step: str, message: str, code: int) -> None:
    """Write the reason why a step ends to the runner's file: exit codes of KFP and DVC only report a failure."""
    file = os.environ.get("AUTOFORMER_FAILURE")
    if file and not processes.is_rank():
        _write_failure(Path(file), step, message, code)


def forget_failure() -> None:
    if (file := os.environ.get("AUTOFORMER_FAILURE")) and not processes.is_rank():
        with contextlib.suppress(OSError):
            Path(file).unlink(missing_ok=True)


def repeat_failure(who: str, file: Path) -> int:
    """Print the failed step's line again, and return its exit code; 1 if the step wrote none."""
    if not file.exists():
        print_line(f"{who}: a step failed; its messages are above", sys.stderr)
        return 1
    failure = read_json_as(Failure, file)
    print_line(f"{failure.step}: {failure.message}", sys.stderr)
    return failure.code


def _write_failure(file: Path, step: str, message: str, code: int) -> None:
    with contextlib.suppress(AutoFormerError):  # the disk may be full
        write_json(file, {"step": step, "message": message, "code": code})


def print_line(line: str, file: TextIO | None = None) -> None:
    """Print a line to stdout, or to `file`, on rank 0 only. A closed pipe does not end the work."""
    if file is None and not processes.is_rank_zero():
        return
    file = file or sys.stdout
    try:
        print("\n".join(map(printable, line.split("\n"))), file=file, flush=True)
    except BrokenPipeError:
        _discard(file)


def existing(path: Path, made_by: str) -> Path:
    """`path` itself. If it is missing, raises `AutoFormerError` naming the step that makes it."""
    if not path.exists():
        raise AutoFormerError(f"{path}: no such file or folder; it is made by {made_by}")
    return path


def check_apart(outs: Sequence[Path], *inputs: str | Path | None) -> None:
    """Raise `AutoFormerError` if writing one of `outs` would change an input or another of them.

    Args:
        inputs: paths that must neither be an output, nor in it, nor around it. Addresses and None are skipped.
    """
    for number, out in enumerate(outs):
        place = out.parent.resolve() / out.name  # a link at `out` is replaced, and its target stays
        for other in (*inputs, *outs[:number]):
            if other is None or "://" in str(other):
                continue
            real = Path(other).resolve()
            if place.is_relative_to(real) or real.is_relative_to(place):
                raise AutoFormerError(f"{out}: writing it would change {other}, which is needed; name another place")


class Progress:
    """A progress bar with rate and remaining time in a terminal, else one line a minute.

    KFP's local runner pipes the output of a step, so `make run` passes its terminal in `AUTOFORMER_TTY`.
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
            self._print_progress()
        elif self._terminal is not sys.stderr:
            self._terminal.close()

    def update(self, done: int, note: str = "") -> None:
        """Show `done` of the total, not the increase since the last call."""
        self._done = done
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)
        if self._terminal is None and time.monotonic() - self._line_at >= LINE_SECONDS:
            self._line_at = time.monotonic()
            self._print_progress(note)

    def advance(self, by: int = 1) -> None:
        """Show so much more of the total."""
        self.update(self._done + by)

    def print_above(self, line: str) -> None:
        """Print a line above the bar, which is redrawn at the next update."""
        self._bar.clear()
        print_line(line)

    def _print_progress(self, note: str = "") -> None:
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
        return Path(os.environ["AUTOFORMER_TTY"]).open("w", encoding="utf-8", errors="replace")
    except (KeyError, OSError):
        return None


def _columns(terminal: Any) -> int | None:
    """80 for a terminal that does not report its width, as under `script`; else None."""
    return None if terminal is None or os.get_terminal_size(terminal.fileno()).columns else 80
