"""The command line of a step: parse, validate, run; end with one line and an exit code."""

import argparse
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence

from autoformer.errors import AutoFormerError, UnavailableError
from runtime.common.config import Config, load_config
from runtime.common.console import Parser, error_line, forget_failure, note_failure, report_failure
from runtime.common.exit_codes import BAD_INPUT, KILLED, UNAVAILABLE, JobFailed
from runtime.common.overrides import add_option
from runtime.common.processes import is_rank, number_in_environment
from runtime.common.redaction import hide_in_tracebacks
from runtime.common.stopping import Stopped, stoppable
from runtime.steps.rank_launch import check_batch_split, launch, processes
from runtime.storage.artifacts import local_copy

SHELLS = ("sh", "dash", "bash", "zsh", "fish")  # a shell may be between a runner and its step
GRACE_SECONDS = 30.0  # after the runner's end, for a checkpoint and the end of the MLflow run


def step_parser(step: str, description: str) -> argparse.ArgumentParser:
    """A parser with the arguments that every step has: `--config` and `--set`."""
    parser = Parser(prog=f"python -m components.{step}", description=description)
    parser.add_argument("--config", required=True, help="a preset's name, a params file, or the same as JSON text")
    add_option(parser)
    return parser


def run_step(
    step: str,
    parser: argparse.ArgumentParser,
    body: Callable[[argparse.Namespace, Config], None],
    argv: Sequence[str] | None,
    shared: bool = False,
) -> int:
    """Parse, validate and run; return the exit code, one of `runtime.common.exit_codes`.

    Args:
        shared: `body` supports several ranks (`process_group`), and runs in one process per GPU.
    """
    argv = sys.argv[1:] if argv is None else argv
    hide_in_tracebacks()

    def work() -> None:
        arguments = parser.parse_args(argv)
        with stoppable():
            _end_with_runner()
            config = load_config(arguments.config, arguments.overrides, [step])
            count = processes(config) if shared else 1
            check_batch_split(step, config, count)
            if count > 1 and not is_rank():
                launch(step, argv, count)
            else:
                for name in getattr(arguments, "made", ()):
                    setattr(arguments, name, local_copy(getattr(arguments, name)))
                body(arguments, config)

    return exit_code(step, work)


def exit_code(step: str, work: Callable[[], None]) -> int:
    """Do the work and return the exit code. Failures are one line on stderr; a bug raises."""
    note_failure(step, "was killed, as where memory runs out; the same command resumes", KILLED)  # until it ends
    try:
        work()
    except UnavailableError as error:
        return report_failure(step, str(error), UNAVAILABLE)
    except (AutoFormerError, OSError) as error:
        return report_failure(step, error_line(error), BAD_INPUT)
    except Stopped as stopped:
        return report_failure(step, f"{stopped}; the same command resumes from there", int(str(stopped.code)))
    except JobFailed as failed:
        return report_failure(step, str(failed), failed.exit_code)
    except BaseException as error:
        note_failure(step, f"{type(error).__name__}; its traceback is above", 1)
        raise
    forget_failure()
    return 0


def _end_with_runner() -> None:
    """Stop this step when its runner's process has ended: a killed runner cannot stop its steps."""
    runner = _runner()
    if runner is None:
        return
    import psutil

    def watch() -> None:
        while psutil.pid_exists(runner):
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)  # as a runner would, so that the step writes a checkpoint
        time.sleep(GRACE_SECONDS)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _runner() -> int | None:
    """The process in `AUTOFORMER_RUNNER_PID`, or the parent of a stage of a manual `dvc repro`."""
    if named := number_in_environment("AUTOFORMER_RUNNER_PID", 0):
        return named
    if "DVC_STAGE" not in os.environ:
        return None
    import psutil

    parent = os.getppid()  # `dvc`, or the shell in which it started the stage
    with contextlib.suppress(psutil.NoSuchProcess):
        if psutil.Process(parent).name() in SHELLS:
            return int(psutil.Process(parent).ppid())
    return parent
