"""Record the content of data/ in data.dvc: `python -m commands.record_data`, the last line of `make data`."""

import os
import subprocess
import sys
from collections.abc import Sequence

from autoformer.errors import AutoFormerError
from runtime.common.config import ROOT
from runtime.common.console import Parser, run_command
from runtime.common.git import dvc_environment


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m commands.record_data", description="Record the content of data/ in data.dvc.")
    parser.add_argument("--force", action="store_true", help="even if it differs from what data.dvc records")
    return run_command("data", parser, lambda arguments: record(arguments.force), argv, after="")


def record(force: bool) -> None:
    """Let DVC write data.dvc. Raises `AutoFormerError` if DVC refuses.

    `force`: even if the content differs from what data.dvc records.
    """
    command = [sys.executable, "-m", "dvc", "commit", *(["--force"] if force else []), "data.dvc"]
    environment = os.environ | dvc_environment()
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, errors="replace", check=False
    )
    if done.returncode:
        lines = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        reason = (lines or done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        if "unable to commit changed" in reason:
            raise AutoFormerError(
                "data/ holds other files than data.dvc records (`dvc status data.dvc` lists them); "
                "remove them, or record them: python -m commands.record_data --force"
            )
        raise AutoFormerError(f"the images are there, but DVC could not record them in data.dvc: {reason}")


if __name__ == "__main__":
    raise SystemExit(main())
