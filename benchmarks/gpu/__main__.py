"""Check numbers and speed on a GPU in eight minutes, without a network.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --wheels wheels    # with packages that were copied here

It describes the machine first. If packages are missing, it prints the pip commands that download them elsewhere, and
ends with code 2. Then it runs the parts, the most telling first, each within its share of the time. It prints the table
of a part and writes the JSON file after each part. A part that fails does not stop the others; the code is then 1.
"""

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.machine import describe, lines, pip_commands, unpack
from benchmarks.gpu.running import BUDGETS, OUT, Check, failed

PART_NAMES = tuple(BUDGETS)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    error = _error(arguments)
    if error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as site:
        if arguments.wheels:
            unpack(arguments.wheels, Path(site))
            sys.path.insert(0, site)
            os.environ["PYTHONPATH"] = os.pathsep.join([site, *filter(None, [os.environ.get("PYTHONPATH")])])
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    described = describe()
    print("\n".join(lines(described)), flush=True)
    missing, out = [name for name, version in described["packages"].items() if version is None], arguments.out
    if missing:
        out.write_text(json.dumps({"machine": described, "parts": {}}, indent=1), encoding="utf-8")
        print(f"missing: {', '.join(missing)}\non a machine with a network:")
        print("\n".join(f"  {command}" for command in pip_commands(described)))
        print("here, with that folder: python -m benchmarks.gpu --wheels wheels")
        return 2
    try:
        result = Check(out, described, arguments.device, arguments.size, arguments.minutes).run(arguments.parts)
    except KeyboardInterrupt:
        print(f"\nbenchmarks.gpu: stopped; the results so far are in {out}", file=sys.stderr)
        return 130
    held = [row["holds"] for found in result["parts"].values() for row in found["rows"] if row["holds"] is not None]
    print(f"\nlimits: {sum(held)} of {len(held)} hold; {out}")
    if failed(result):
        print(f"failed: {', '.join(failed(result))}")
    return 1 if failed(result) else 0


def _parser() -> argparse.ArgumentParser:
    description, _, epilog = (__doc__ or "").partition("\n\n")
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", None, description, epilog, formatter_class=raw)
    parser.add_argument("--minutes", type=float, default=8.0, help="time limit (default: %(default)g)")
    parser.add_argument("--parts", nargs="+", choices=PART_NAMES, default=PART_NAMES, help="default: all")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--size", choices=("auto", "full", "tiny"), default="auto", help="auto: tiny on a CPU")
    parser.add_argument("--out", type=Path, default=OUT, help="the JSON file (default: %(default)s)")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to import packages from")
    return parser


def _error(arguments: argparse.Namespace) -> str | None:
    """An error in the arguments, in one line."""
    if not 0 < arguments.minutes < float("inf"):
        return f"--minutes {arguments.minutes:g}: expected a number above 0"
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", arguments.device):
        return f"--device {arguments.device}: expected auto, cpu, cuda or cuda:N"
    if arguments.wheels and not any(arguments.wheels.glob("*.whl")):
        return f"--wheels {arguments.wheels}: no wheels there; download them with pip"
    try:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=arguments.out.parent):
            return None
    except OSError as error:
        return f"--out {arguments.out}: cannot be written there ({error.strerror}); name another file"


if __name__ == "__main__":
    raise SystemExit(main())
