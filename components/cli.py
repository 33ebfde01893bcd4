"""What every step's command line shares: arguments, exit codes, one-line errors, and progress.

| Exit code | |
|---|---|
| 0 | done |
| 1 | a fault of the program, with its traceback |
| 2 | bad input, a place that another run is at work in, a full or read-only disk: one line on stderr |
| 130, 143, 129 | stopped by SIGINT (Ctrl-C), SIGTERM, SIGHUP: one line on stderr; the same command goes on |
| 137, … | one of several processes was killed by a signal, 128 and its number: one line on stderr |
| 69 | S3 did not answer, in any try, or the bytes arrived damaged: one line on stderr; the same command goes on |
| 75 | of several processes one is gone that another has waited for, or the job on several machines is |
| 124 | the job on several machines has exceeded its deadline |

`make run` and `make repro` end with the code of the step that failed.
"""

import argparse
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from autoformer.errors import AutoFormerError, UnavailableError
from autoformer.files import unwritable, write_json
from components import ranks
from components.config import Config, load_config
from components.secrets import hide, hide_in_tracebacks
from components.stopping import Stopped, stoppable
from components.storage.artifacts import whole

BAD_INPUT = ranks.BAD_INPUT
SHELLS = ("sh", "dash", "bash", "zsh", "fish")  # what may stand between a runner and its step
GRACE_SECONDS = 30.0  # for a checkpoint and the end of the MLflow run, after which a step without a runner ends


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with a command line, as an `AutoFormerError`."""

    def error(self, message: str) -> NoReturn:
        raise AutoFormerError(f"{message}; --help lists the arguments")


def step_parser(step: str, description: str) -> argparse.ArgumentParser:
    """A parser with the two arguments that every step has."""
    parser = Parser(prog=f"python -m components.{step}", description=description)
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
    shared: bool = False,
) -> int:
    """Parse, validate, run. What ends the step early is one line on stderr and an exit code; see above.

    Args:
        shared: `body` works inside of `components.ranks.joined`, and so is run in as many processes as there are GPUs.
    """
    argv = sys.argv[1:] if argv is None else argv
    hide_in_tracebacks()

    def work() -> None:
        arguments = parser.parse_args(argv)
        with stoppable():
            _end_with_the_runner()
            config = load_config(arguments.config, arguments.overrides, [step])
            count = ranks.processes(config) if shared else 1
            ranks.check_parts(step, config, count)
            if count > 1 and not ranks.is_rank():
                ranks.launch(step, argv, count)
            else:
                for name in getattr(arguments, "made", ()):
                    setattr(arguments, name, whole(getattr(arguments, name)))
                body(arguments, config)

    return exit_code(step, work)


def exit_code(step: str, work: Callable[[], None]) -> int:
    """Do a step's work. What ends it early is one line on stderr and the exit code; see above."""
    try:
        work()
    except UnavailableError as error:
        return end_early(step, str(error), ranks.AWAY)
    except (AutoFormerError, OSError) as error:
        return end_early(step, in_one_line(error), BAD_INPUT)
    except Stopped as stopped:
        return end_early(step, f"{stopped}; the same command goes on from there", int(str(stopped.code)))
    except ranks.LostRank as lost:
        return end_early(step, str(lost), ranks.LOST)
    except ranks.Fallen as fallen:
        return end_early(step, str(fallen), fallen.exit_code)
    return 0


def refuse(who: str, error: AutoFormerError | OSError) -> int:
    """Say in one line what `who` cannot do; the exit code."""
    say(f"{who}: {in_one_line(error)}", sys.stderr)
    return BAD_INPUT


def in_one_line(error: AutoFormerError | OSError) -> str:
    """What a person is told of bad input, or of a disk; raises an `OSError` that no line explains."""
    told = unwritable(error) if isinstance(error, OSError) else error
    if told is None:
        raise error
    return hide(str(told))


def end_early(step: str, message: str, code: int) -> int:
    """Say in one line why a step ends, on stderr and to the runner; the exit code.

    One of several processes tells the one that has started them all, which says it once.
    """
    folder = os.environ.get(ranks.FOLDER)
    if folder and ranks.is_rank():
        _tell(Path(folder) / f"{os.environ['RANK']}.json", step, message, code)
        return code
    say(f"{step}: {message}", sys.stderr)
    file = os.environ.get("AUTOFORMER_FAILURE")
    if file and ranks.leads():
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


def say(line: str, file: TextIO | None = None) -> None:
    """Print a line. Where its reader is gone, as with a runner that was killed, the work goes on without one.

    Of several processes rank 0 alone speaks, but for what goes to stderr.
    """
    if file is None and not ranks.leads():
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
        say(f"{self._what}: {self._done}/{self._total} {self._unit}, {rate:.3g}/s, {minutes} {note}".rstrip())


def _open_terminal() -> Any:
    if not ranks.leads():
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


def _end_with_the_runner() -> None:
    """A runner that is killed takes its steps with it: watch its process, and stop when it is gone."""
    runner = _runner()
    if runner is None:
        return

    def watch() -> None:
        while _lives(runner):
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)  # as if told to: with a checkpoint, and the MLflow run ended
        time.sleep(GRACE_SECONDS)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _runner() -> int | None:
    """The process that names itself, or a `dvc repro` that was started by hand."""
    named = os.environ.get("AUTOFORMER_RUNNER_PID")
    if named:
        return int(named)
    if "DVC_STAGE" not in os.environ:
        return None
    parent = os.getppid()  # `dvc`, or the shell that it has started the stage with
    return _parent_of(parent) if _name_of(parent) in SHELLS else parent


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _name_of(process: int) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text(encoding="utf-8").strip()
    except OSError:  # not Linux
        return ""


def _parent_of(process: int) -> int:
    after_name = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2]
    return int(after_name.split()[1])
