"""Check a preset and its overrides: `python -m commands.check_settings`, before `make run` fetches anything."""

import argparse
from collections.abc import Sequence

from components.resolve_config.step import resolve
from runtime.common.console import Parser, run_command
from runtime.common.overrides import add_option


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m commands.check_settings", description="Check a preset and its overrides.")
    parser.add_argument("--preset", default="params.yaml", help="a preset's name or a params file (%(default)s)")
    add_option(parser)

    def work(arguments: argparse.Namespace) -> None:
        resolve(arguments.preset, arguments.overrides)

    return run_command("settings", parser, work, argv, after="")


if __name__ == "__main__":
    raise SystemExit(main())
