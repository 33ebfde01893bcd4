"""`python -m runtime.tracking FILE…`: send the undelivered messages of steps to MLflow, and delete the files."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from autoformer.errors import AutoFormerError, quantity
from autoformer.files import write_json
from runtime.common.console import Parser, run_command
from runtime.common.redaction import hide_in_tracebacks
from runtime.tracking.operations import Operation, read_operations, sender
from runtime.tracking.store import connect, is_refusal, reason


def main(argv: Sequence[str] | None = None) -> int:
    hide_in_tracebacks()
    parser = Parser(prog="python -m runtime.tracking", description="Send undelivered messages to MLflow.")
    parser.add_argument("files", nargs="+", type=Path, help="backlog files, as the step that wrote them named them")

    def work(arguments: argparse.Namespace) -> None:
        for file in arguments.files:
            resend(file)

    return run_command("tracking", parser, work, argv)


def resend(file: Path) -> None:
    """Send the messages of a backlog file, in order, and delete it.

    Raises:
        AutoFormerError: MLflow does not answer, or refused some messages; these stay in the file.
    """
    waiting = read_operations(file)
    refused: list[Operation] = []
    send = sender(connect())
    while waiting:
        try:
            send(waiting[0])
        except Exception as error:  # MLflow, SQLAlchemy, requests and the file system raise different errors
            if not is_refusal(error):
                write_json(file, [*waiting, *refused])
                raise AutoFormerError(
                    f"{file}: MLflow did not take {waiting[0]['kind']} ({reason(error)}); try again"
                ) from None
            refused.append(waiting[0] | {"refused": reason(error)})
        waiting.pop(0)
    if refused:
        write_json(file, refused)
        raise AutoFormerError(
            f"{file}: MLflow refused {quantity(len(refused), 'message')}, the first, {refused[0]['kind']}, with: "
            f"{refused[0]['refused']}; the rest is delivered; delete the file where these can be done without"
        )
    file.unlink()


if __name__ == "__main__":
    raise SystemExit(main())
