"""Steps as processes, forked from a server that has imported torch, so that they start quickly.

Signals and deaths are real. The number of an optimiser step or of a candidate sets their moment, never a clock.
"""

import itertools
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from run_steps import run

PRELOADED = [
    "torch", "mlflow", "autoformer.training", "autoformer.checkpoint", "runtime.steps.training_loop",
    "runtime.steps.training_setup", "components.train_supernet.step", "components.search_subnet.step",
    "components.retrain_subnet.step", "processes",
]  # fmt: skip
PATIENCE_SECONDS = 240.0  # so that a hang ends


def at_step(number: int, do: Callable[[], None], training: int = 0) -> None:
    """Call `do` after `number` optimiser steps of a training; the trainings of a step count from 0."""
    from autoformer.training import Trainer

    begin, take_step = Trainer.__init__, Trainer.take_step
    made: list[Trainer] = []

    def counted(self: Trainer, *arguments: Any, **named: Any) -> None:
        made.append(self)
        begin(self, *arguments, **named)

    def armed(self: Trainer) -> Any:
        loss = take_step(self)
        if self.step == number and made.index(self) == training:
            do()
        return loss

    Trainer.__init__, Trainer.take_step = counted, armed  # type: ignore[method-assign]


def at_candidate(number: int, do: Callable[[], None]) -> None:
    """Call `do` while the line after that of so many candidates is written."""
    _in_a_line(number, do, lambda memory: memory.candidates_scored_now)


def at_answer(number: int, do: Callable[[], None]) -> None:
    """Call `do` while the line after so many lines is written."""
    lines = itertools.count()
    _in_a_line(number, do, lambda _: next(lines))


def _in_a_line(number: int, do: Callable[[], None], count: Callable[[Any], int]) -> None:
    from components.search_subnet.score_cache import ScoreCache

    keep = ScoreCache._store

    def armed(self: Any, task: Any, answers: Any) -> None:
        if count(self) == number:
            with self._file.open("a") as file:
                file.write('{"subnet": {"depth": 2, "embe')
            do()
        keep(self, task, answers)

    ScoreCache._store = armed  # type: ignore[method-assign]


def record_usage(file: str, every: int) -> None:
    """Write the memory in MB and the open files of this process tree after every n-th optimiser step or candidate."""
    import psutil

    from autoformer.training import Trainer
    from components.search_subnet.score_cache import ScoreCache

    def counted(owner: type, name: str) -> None:
        method, numbers = getattr(owner, name), itertools.count(1)

        def armed(self: Any, *arguments: Any) -> Any:
            result = method(self, *arguments)
            if (number := next(numbers)) % every == 0:
                family = [psutil.Process(), *psutil.Process().children(recursive=True)]
                memory = sum(each.memory_info().rss for each in family) / 2**20
                with Path(file).open("a") as log:
                    log.write(f"{number} {memory} {sum(each.num_fds() for each in family)}\n")
            return result

        setattr(owner, name, armed)

    counted(Trainer, "take_step")
    counted(ScoreCache, "_store")


def poison(number: int) -> None:
    """Let a weight be infinite before step `number`, counted from 0, unless learning rates have been lowered."""
    from autoformer.training import Trainer

    take_step = Trainer.take_step

    def poisoned(self: Trainer) -> Any:
        if self.step == number and self.learning_rate_scale == 1.0:
            next(self.model.parameters()).data.view(-1)[0] = float("inf")
        return take_step(self)

    Trainer.take_step = poisoned  # type: ignore[method-assign]


def in_a_checkpoint() -> None:
    """Die when a checkpoint has been written, and has not yet its name."""
    from autoformer import files

    files._flush = lambda path: signal_self(signal.SIGKILL)


def after_its_run() -> None:
    """Die when the step's MLflow run has ended, and the step has not."""
    from runtime.tracking.outbox import Outbox

    close = Outbox.close

    def closed(self: Any, patience_seconds: float) -> None:
        close(self, patience_seconds)
        signal_self(signal.SIGKILL)

    Outbox.close = closed  # type: ignore[method-assign]


def register_quickly(program: str) -> None:
    """Time few passes, and copy a program instead of exporting it again: both write only where no step is killed."""
    from autoformer import export
    from components.register_model import latency

    latency.MOST_PASSES = latency.FEWEST_PASSES
    export.export_program = lambda model, file: shutil.copyfile(program, file)


def signal_self(number: int) -> None:
    os.kill(os.getpid(), number)


def jump_clock(hours: int) -> None:
    """`time.time` and `time.time_ns` of this process jump."""
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() + 3600 * hours
    time.time_ns = lambda: now_ns() + 3600 * hours * 10**9


Event = tuple[Any, ...]  # a function of this module, and its arguments


def enter(environment: dict[str, str], log: str) -> None:
    """Give this forked process an environment of its own, and its output to a file."""
    os.environ.clear()
    os.environ.update(environment)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)


def _main(step: str, given: dict[str, str], environment: dict[str, str], log: str, events: list[Event]) -> None:
    enter(environment, log)
    for do, *arguments in events:
        do(*arguments)
    raise SystemExit(run(step, given))


def fork_server() -> ForkServerContext:
    """The server, which finds `PRELOADED` where this process does: Python 3.11 does not pass `sys.path` on."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()
    return context


def start(step: str, given: dict[str, str], log: Path, *events: Event) -> ForkServerProcess:
    """Start a step with the environment that this process has now."""
    process = fork_server().Process(target=_main, args=(step, given, dict(os.environ), str(log), list(events)))
    process.start()
    return process


def ended(process: BaseProcess, patience_seconds: float = PATIENCE_SECONDS) -> int:
    """Its exit code: negative where a signal has killed it."""
    process.join(patience_seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError("the step did not end")
    return process.exitcode


def killed(step: str, given: dict[str, str], log: Path, *events: Event) -> str:
    """Run a step to its SIGKILL; what it has printed."""
    code = ended(start(step, given, log, *events))
    assert code == -signal.SIGKILL, f"ended with {code}:\n{log.read_text()}"
    assert not Path(given["--out"]).exists() and not Path(given["--record"]).exists()
    return log.read_text()


def wait_until(true: Callable[[], object]) -> None:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < give_up, "it did not come to pass"
        time.sleep(0.02)
