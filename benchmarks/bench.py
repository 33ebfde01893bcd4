"""All benchmarks in one table: `make bench`, or `python -m benchmarks.bench [PART …] [--quick] [--out dist/bench]`.

A part is a module benchmarks/<part>.py with `measure(quick: bool) -> dict`, whose "rows" are those of
`benchmarks.rows`. The parts run one after the other, each in a new process. All results go to bench.json, with a
description of the machine. A missed limit is shown and is no error; a part that fails is one.
"""

import argparse
import importlib
import multiprocessing
import os
import platform
import re
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autoformer.errors import quantity
from autoformer.files import check_writable, write_json
from benchmarks.gpu.machine import describe, lines
from benchmarks.rows import table
from runtime.common.config import ROOT

GPU = "gpu"  # left out by default on a machine without one
PARTS = (
    "engine", "loader", "packing", "index", "ranks", "search", "sampling", "anchors", "evolution", "front", GPU,
)  # fmt: skip


def run_part(part: str, quick: bool) -> dict[str, Any]:
    """The result of a part. `quick`: few rounds at small sizes, without judging limits."""
    if "fork" in multiprocessing.get_all_start_methods():
        multiprocessing.set_start_method("fork", force=True)  # Linux's default; this process was spawned
    result = dict(importlib.import_module(f"benchmarks.{part}").measure(quick=quick))
    if quick:
        result["rows"] = [row | {"holds": None} for row in result["rows"]]
    return result


def quiet_profiler() -> None:
    """Keep torch's profiler from reporting each start, and a missing GPU, on stderr, in processes started later."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # above all levels


def run(parts: Sequence[str], quick: bool) -> dict[str, dict[str, Any]]:
    """Part -> its result and seconds, or its error. Prints each table when the part has ended."""
    results: dict[str, dict[str, Any]] = {}
    quiet_profiler()
    for part in parts:
        print(f"\n{part}", flush=True)
        start = time.monotonic()
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            try:
                result = pool.submit(run_part, part, quick).result()
                print(table(result["rows"]), flush=True)
            except Exception as error:  # the other parts still run
                result = {"error": f"{type(error).__name__}: {error}", "rows": []}
                print(f"failed: {result['error']}", flush=True)
        results[part] = result | {"took_seconds": round(time.monotonic() - start, 1)}
    return results


def machine() -> dict[str, Any]:
    """Description of this machine, its packages and its load."""
    import torch

    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall("^model name.*: (.*)", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE)
    return describe() | {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit or None,
        "cpu": names[0] if names else platform.processor(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "load_average": os.getloadavg(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__.splitlines()[0])
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all, gpu where there is one"
    )
    parser.add_argument("--quick", action="store_true", help="see that all of it runs: small sizes, no limit is judged")
    parser.add_argument("--out", type=Path, default=ROOT / "dist" / "bench")
    arguments = parser.parse_args(argv)
    for part in arguments.parts:
        if part not in PARTS:
            parser.error(f"no part '{part}'; there are {', '.join(PARTS)}")
    check_writable(arguments.out / "bench.json")
    described = machine()
    print("\n".join([f"{described['cpu']}, commit {described['commit']}", *lines(described)]))
    if arguments.quick:
        print("quick: all of it runs; the figures of few rounds at small sizes mean little, and no limit is judged")
    results = run(arguments.parts or [part for part in PARTS if described["gpus"] or part != GPU], arguments.quick)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "bench.json", {"machine": described, "quick": arguments.quick, "parts": results})
    rows = [row for result in results.values() for row in result["rows"] if row["holds"] is not None]
    failed = [part for part, result in results.items() if "error" in result]
    judged = (
        "no limit is judged"
        if arguments.quick
        else f"{sum(row['holds'] for row in rows)} of {quantity(len(rows), 'limit holds', 'limits hold')}"
    )
    print(f"\n{judged}; {arguments.out}/bench.json")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
