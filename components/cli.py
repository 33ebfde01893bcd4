"""What every step's command line shares: arguments, one-line errors, progress, and the record of the run."""

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from autoformer.errors import AutoFormerError
from autoformer.files import write_json
from components.config import Config, load_config

BAD_INPUT = 2


def step_parser(step: str, description: str) -> argparse.ArgumentParser:
    """A parser with the two arguments that every step has."""
    parser = argparse.ArgumentParser(prog=f"python -m components.{step}", description=description)
    parser.add_argument("--config", required=True, help="a preset's name, a params file, or the same as JSON text")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides", help="override one value"
    )
    return parser


def run_step(
    step: str,
    parser: argparse.ArgumentParser,
    body: Callable[[argparse.Namespace, Config], None],
    argv: Sequence[str] | None,
) -> int:
    """Parse, validate, run. Bad input becomes one line on stderr and exit code 2."""
    arguments = parser.parse_args(argv)
    _end_with_the_runner()
    try:
        config = load_config(arguments.config, arguments.overrides, [step])
        body(arguments, config)
    except AutoFormerError as error:
        print(f"{step}: {error}", file=sys.stderr, flush=True)
        _tell_the_runner(step, str(error), BAD_INPUT)
        return BAD_INPUT
    return 0


def _tell_the_runner(step: str, message: str, code: int) -> None:
    """The local runner hears of a failed step only that it failed; this file tells it why."""
    file = os.environ.get("AUTOFORMER_FAILURE")
    if file:
        write_json(Path(file), {"step": step, "message": message, "code": code})


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
        print(
            f"{self._what}: {self._done}/{self._total} {self._unit}, {rate:.3g}/s, {minutes} {note}".rstrip(),
            flush=True,
        )


def _open_terminal() -> Any:
    if sys.stderr.isatty():
        return sys.stderr
    try:
        return Path(os.environ["AUTOFORMER_TTY"]).open("w")
    except (KeyError, OSError):
        return None


def _columns(terminal: Any) -> int | None:
    """80 for a terminal that does not say how wide it is, as under `script`; None for one that does."""
    return None if terminal is None or os.get_terminal_size(terminal.fileno()).columns else 80


def _end_with_the_runner() -> None:
    """A runner that is killed takes its steps with it: watch its process, and end when it is gone."""
    runner = os.environ.get("AUTOFORMER_RUNNER_PID")
    if not runner:
        return

    def watch() -> None:
        while True:
            time.sleep(1)
            try:
                os.kill(int(runner), 0)
            except ProcessLookupError:
                os._exit(143)

    threading.Thread(target=watch, daemon=True).start()
