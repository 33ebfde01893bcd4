"""What a pod of the job runs: `python -m components.trainjob.node --job … --place … <step> <arguments>`.

Once a machine it fetches what the step reads, starts a rank for each GPU, and waits for them. The first machine's
rank 0 writes the results; where their place is not a folder that all see, this process sends them there.
"""

import argparse
import sys
from collections.abc import Sequence

from components.cli import Parser, exit_code
from components.ranks import Machine, launch_on
from components.stopping import stoppable
from components.trainjob.job import STEPS
from components.trainjob.place import Place


def parser() -> argparse.ArgumentParser:
    result = Parser(prog="python -m components.trainjob.node", description="One machine of a job on several.")
    result.add_argument("--job", required=True, help="its name")
    result.add_argument("--place", required=True, help="what its machines and its launcher all see: a folder, or s3://")
    result.add_argument("step", choices=STEPS, help="the step's name")
    result.add_argument("arguments", nargs=argparse.REMAINDER, help="those of `python -m components.<step>`")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    step = next((word for word in argv if word in STEPS), "trainjob")

    def work() -> None:
        given = parser().parse_args(argv)
        with stoppable():
            machine = Machine.of_environment(given.job)
            with Place(given.place).seen_from_here(given.arguments) as (arguments, publish):
                launch_on(machine, given.step, arguments)
                if machine.number == 0:
                    publish()

    return exit_code(step, work)


if __name__ == "__main__":
    raise SystemExit(main())
