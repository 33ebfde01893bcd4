"""What a GPU shows, in at most eight minutes, on a machine that needs no network.

    python -m benchmarks.gpu                            # on the machine with the GPU
    python -m benchmarks.gpu --carry wheels             # before, where there is a network: what has to be carried there
    python -m benchmarks.gpu --wheels wheels            # there, with what was carried

First it says what the machine has; where packages are missing, what would have to be carried and how large, and ends
with code 2. Then come the parts, the most telling first, each within its share of the time. The table of a part is
printed and the JSON file written as it comes; a part that fails does not stop the others, and the code is then 1.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu import OUT, check
from benchmarks.gpu.carry import carry
from benchmarks.gpu.machine import describe, lines, missing, to_carry, unpack
from benchmarks.gpu.running import SHARES, failed


def main(argv: Sequence[str] | None = None) -> int:
    description, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=description, epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--minutes", type=float, default=8.0, help="that it takes at most (default: %(default)g)")
    parser.add_argument("--parts", nargs="+", choices=tuple(SHARES), default=tuple(SHARES), help="all without")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--size", choices=("auto", "full", "tiny"), default="auto", help="auto: tiny on a CPU")
    parser.add_argument("--out", type=Path, default=OUT, help="the JSON file (default: %(default)s)")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels that were carried here")
    parser.add_argument("--carry", type=Path, metavar="FOLDER", help="download what a machine lacks, and do no more")
    parser.add_argument("--target", default="torch", help="torch: a machine that has torch and timm; bare; or gpu.json")
    parser.add_argument("--python", default="3.12", help="of that machine (default: %(default)s), Linux on x86-64")
    given = parser.parse_args(argv)
    wrong = refused(given)
    if wrong:
        print(f"benchmarks.gpu: {wrong}", file=sys.stderr)
        return 2
    if given.carry:
        try:
            print("\n".join(carry(given.carry, given.target, given.python)))
        except (subprocess.CalledProcessError, OSError, ValueError) as error:
            print(f"benchmarks.gpu: nothing to carry could be had: {error}", file=sys.stderr)
            return 2
        return 0
    with tempfile.TemporaryDirectory() as site:
        if given.wheels:
            unpack(given.wheels, Path(site))
            sys.path.insert(0, site)
            os.environ["PYTHONPATH"] = os.pathsep.join([site, *filter(None, [os.environ.get("PYTHONPATH")])])
        described = describe()
        print("\n".join(lines(described)), flush=True)
        absent = missing(described)
        if absent:
            given.out.write_text(json.dumps({"machine": described, "parts": {}}, indent=1), encoding="utf-8")
            print("\n".join(to_carry(absent)))
            return 2
        try:
            result = check(given.out, given.minutes, tuple(given.parts), given.device, given.size)
        except KeyboardInterrupt:
            print(f"\nbenchmarks.gpu: stopped; what was measured stands in {given.out}", file=sys.stderr)
            return 130
    unsound, rows = failed(result), [row for found in result["parts"].values() for row in found["rows"]]
    held = [row["holds"] for row in rows if row["holds"] is not None]
    print(f"\n{sum(held)} of {len(held)} limits hold; {given.out}")
    if unsound:
        print(f"failed: {', '.join(unsound)}")
    return 1 if unsound else 0


def refused(given: argparse.Namespace) -> str | None:
    """What is wrong with the arguments, in one line; None where nothing is."""
    if not 0 < given.minutes < float("inf"):
        return f"--minutes {given.minutes:g}: expected a number above 0"
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", given.device):
        return f"--device {given.device}: expected auto, cpu, cuda or cuda:N"
    if given.wheels and not any(given.wheels.glob("*.whl")):
        return f"--wheels {given.wheels}: no wheels there; download them with --carry"
    if given.carry:
        return None
    try:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=given.out.parent):
            return None
    except OSError as error:
        return f"--out {given.out}: cannot be written there ({error.strerror}); name another file"


if __name__ == "__main__":
    raise SystemExit(main())
