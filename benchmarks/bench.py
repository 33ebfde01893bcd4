"""All benchmarks in one table: `make bench`, or

    python -m benchmarks.bench [PART …] [--quick] [--out dist/bench]

Each part is a module benchmarks/<part>.py with `measure(quick: bool) -> dict`, whose "rows" are those of
`benchmarks.rows`. It runs in a process of its own, one after the other. Written are bench.json, with what machine it
was and what each part says beside its rows, and bench.png, the figures against their limits. A missed limit is shown,
and is no error; a part that fails is.
"""

import argparse
import importlib
import importlib.util
import multiprocessing
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from autoformer.files import replacing, write_json
from benchmarks.rows import table
from runtime.common.config import ROOT

PARTS = ("engine", "loader", "s3", "index", "ranks", "search", "sampling", "anchors", "gpu")
MOST_SHOWN = 3.0  # multiples of a limit; a control is off by thousands of them
ON_A_GPU = ("gpu",)  # left out by default where there is none


def run_part(part: str, quick: bool) -> dict[str, Any]:
    """What the part's `measure` returns; called in a process of its own."""
    if "fork" in multiprocessing.get_all_start_methods():
        multiprocessing.set_start_method("fork", force=True)  # Linux's own; this process has been spawned
    result: dict[str, Any] = importlib.import_module(f"benchmarks.{part}").measure(quick=quick)
    return result


def run(parts: Sequence[str], quick: bool) -> dict[str, dict[str, Any]]:
    """By part: its result with the seconds it took, or the error that ended it. Prints tables as they come."""
    results: dict[str, dict[str, Any]] = {}
    for part in parts:
        if importlib.util.find_spec(f"benchmarks.{part}") is None:
            print(f"\n{part}: not there, left out", flush=True)
            continue
        print(f"\n{part}", flush=True)
        start = time.monotonic()
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            try:
                result = pool.submit(run_part, part, quick).result()
                print(table(result["rows"]), flush=True)
            except Exception as error:  # whatever it is, the other parts are still worth their figures
                result = {"error": f"{type(error).__name__}: {error}", "rows": []}
                print(f"failed: {result['error']}", flush=True)
        results[part] = result | {"took_seconds": round(time.monotonic() - start, 1)}
    return results


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import numpy
    import torch

    model = next((line for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    memory = next((line for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), "MemTotal: 0 kB")
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    blas = next((line.strip(" -") for line in torch.__config__.show().splitlines() if "Math Kernel" in line), "unknown")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip() or None,
        "cpu": model.partition(":")[2].strip() or platform.processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(int(memory.split()[1]) * 1024 / 1e9, 1),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": version("timm"),
        "numpy": numpy.__version__,
        "blas": blas,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "load_average": os.getloadavg(),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def draw(path: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Every figure that has a limit, as a multiple of it: blue where it holds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [row for result in results.values() for row in result["rows"] if row["limit"]]
    figure, axis = plt.subplots(figsize=(9, 1 + 0.32 * max(len(rows), 1)))
    shares = [min(row["value"] / row["limit"], MOST_SHOWN) for row in rows]  # the text beside has the figure
    axis.barh(range(len(rows)), shares, color=["#2a6f97" if row["holds"] else "#c1121f" for row in rows])
    axis.axvline(1, color="black", linewidth=1)
    axis.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
    for place, (row, share) in enumerate(zip(rows, shares, strict=True)):
        told = f" {row['value']:.3g} {row['unit']}, {row['direction']} {row['limit']:g}"
        axis.text(share, place, told, va="center", fontsize=7)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.5 * max([1, *shares]))
    axis.set_xlabel(f"of the limit (bars end at {MOST_SHOWN:g})")
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__.splitlines()[0])
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all without, gpu where there is one"
    )
    parser.add_argument("--quick", action="store_true", help="to see that all of it runs; figures mean little")
    parser.add_argument("--out", type=Path, default=ROOT / "dist" / "bench")
    arguments = parser.parse_args(argv)
    for part in arguments.parts:
        if part not in PARTS:
            parser.error(f"no part '{part}'; there are {', '.join(PARTS)}")
    described = machine()
    print(", ".join(f"{key} {described[key]}" for key in ("cpu", "cores", "memory_gb", "torch", "timm", "commit")))
    results = run(arguments.parts or [p for p in PARTS if described["gpus"] or p not in ON_A_GPU], arguments.quick)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "bench.json", {"machine": described, "quick": arguments.quick, "parts": results})
    draw(arguments.out / "bench.png", results)
    rows = [row for result in results.values() for row in result["rows"] if row["holds"] is not None]
    failed = [part for part, result in results.items() if "error" in result]
    print(f"\n{sum(row['holds'] for row in rows)} of {len(rows)} limits hold; {arguments.out}/bench.json, bench.png")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
