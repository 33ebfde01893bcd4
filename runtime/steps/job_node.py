"""The command of a job's pods: `python -m runtime.steps.job_node --job … --place … <step> <arguments>`.

On each machine it fetches the inputs of the step, starts one rank per GPU, and waits for them. If a machine has only
one rank, this process is the rank. Rank 0 writes the results; the first machine uploads them, unless all machines share
the folder.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

from runtime.common.console import Parser
from runtime.common.stopping import stoppable
from runtime.kubernetes.job import SHARED_STEPS
from runtime.kubernetes.job_folder import JobFolder
from runtime.steps.command import exit_code
from runtime.steps.rank_launch import Machine, as_only_rank_of, launch_on


def parser() -> argparse.ArgumentParser:
    result = Parser(prog="python -m runtime.steps.job_node", description="One machine of a job on several.")
    result.add_argument("--job", required=True, help="its name")
    result.add_argument("--place", required=True, help="what its machines and its launcher all see: a folder, or s3://")
    result.add_argument("step", choices=SHARED_STEPS, help="the step's name")
    result.add_argument("arguments", nargs=argparse.REMAINDER, help="those of `python -m components.<step>`")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    step = next((word for word in argv if word in SHARED_STEPS), "trainjob")

    def work() -> None:
        command = parser().parse_args(argv)
        with stoppable():
            machine = Machine.of_environment(command.job)
            with JobFolder(command.place).local_arguments(command.arguments) as (arguments, publish):
                _run(machine, command.step, arguments)
                if machine.number == 0:
                    publish()

    return exit_code(step, work)


def _run(machine: Machine, step: str, arguments: Sequence[str]) -> None:
    if machine.processes > 1:
        launch_on(machine, step, arguments)
        return
    with as_only_rank_of(machine):
        code = importlib.import_module(f"components.{step}.step").main(arguments)
    if code:  # the step has printed the reason
        raise SystemExit(code)


if __name__ == "__main__":
    raise SystemExit(main())
