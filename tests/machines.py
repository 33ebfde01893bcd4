"""Launchers and pods as processes of their own: the commands of their containers. Cheap to import."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from functools import partial
from multiprocessing.context import ForkProcess, ForkServerProcess
from pathlib import Path

from processes import at_step, enter, fork_server, signal_self

from runtime.kubernetes.api import Patience
from runtime.kubernetes.settings import JobSettings

QUICK = Patience(poll_seconds=0.01, pause_seconds=0.005, outage_seconds=20, silent_seconds=20, drain_seconds=20)
Dies = Callable[[str, str], bool]  # a job's name and a machine's number -> whether it is killed after step 12


def _node(words: list[str], environment: dict[str, str], log: str, dies: bool) -> None:
    from runtime.steps import job_node as node

    enter(environment, log)
    if dies:
        at_step(12, partial(signal_self, signal.SIGKILL))
    raise SystemExit(node.main(words))


def start_node(
    words: list[str], environment: dict[str, str], log: Path, killed: Dies = lambda job, node: False
) -> ForkServerProcess:
    """A pod of a job. `words`: the arguments of `python -m runtime.steps.job_node`."""
    dies = killed(words[words.index("--job") + 1], environment["PET_NODE_RANK"])
    process = fork_server().Process(target=_node, args=(words, environment, str(log), dies))
    process.start()
    return process


def _launcher(step: str, words: list[str], settings: str, log: str) -> None:
    from runtime.steps.job_launch import launch

    enter(dict(os.environ), log)
    raise SystemExit(launch(step, words, JobSettings.parse(settings), QUICK))


def start_launcher(step: str, words: list[str], settings: JobSettings, log: Path) -> ForkProcess:
    """The pod that launches a job, forked from this process, which has imported its modules."""
    process = multiprocessing.get_context("fork").Process(
        target=_launcher, args=(step, words, settings.to_json(), str(log))
    )
    process.start()
    return process
