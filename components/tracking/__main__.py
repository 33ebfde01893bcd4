"""`python -m components.tracking FILE…`: send what a step could not deliver to MLflow, and delete the file."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from autoformer.errors import AutoFormerError
from autoformer.files import read_json
from components.cli import BAD_INPUT
from components.tracking.outbox import sender
from components.tracking.store import connect, reason


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m components.tracking", description="Send undelivered messages to MLflow."
    )
    parser.add_argument("files", nargs="+", type=Path, help="backlog files, as the step that wrote them named them")
    try:
        for file in parser.parse_args(argv).files:
            resend(file)
    except AutoFormerError as error:
        print(f"tracking: {error}", file=sys.stderr, flush=True)
        return BAD_INPUT
    return 0


def resend(file: Path) -> None:
    """Send each message of a backlog file, in order, and delete it. Raises `AutoFormerError` where one fails."""
    operations = read_json(file)
    send = sender(connect())
    for operation in operations:
        try:
            send(operation)
        except Exception as error:  # MLflow, SQLAlchemy, requests and the file system each raise kinds of their own
            raise AutoFormerError(
                f"{file}: MLflow did not take {operation['kind']} ({reason(error)}); try again"
            ) from None
    file.unlink()


if __name__ == "__main__":
    raise SystemExit(main())
