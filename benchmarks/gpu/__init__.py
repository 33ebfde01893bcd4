"""What a GPU shows, in eight minutes: `python -m benchmarks.gpu`. See docs/benchmarks.md. Torch-free to import."""

import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.machine import ROOT, describe
from benchmarks.gpu.running import BUDGETS, Check, failed

OUT = ROOT / "dist" / "bench" / "gpu.json"


def check(
    out: Path = OUT,
    minutes: float = 8.0,
    parts: Sequence[str] = tuple(BUDGETS),
    device: str = "auto",
    size: str = "auto",
) -> dict[str, Any]:
    """Run the parts; return the content of `out`, which is written as figures come. SIGTERM ends it as Ctrl-C does."""
    end = time.monotonic() + 60 * minutes
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return Check(out, describe(), end, device, size).run(parts)
    finally:
        signal.signal(signal.SIGTERM, former)


def measure(quick: bool = False) -> dict[str, Any]:
    """The part `gpu` of `make bench`. `quick`: at tiny sizes, on the CPU."""
    result = check(device="cpu", size="tiny") if quick else check()
    parts = result["parts"].items()
    rows = [row | {"name": f"{part}: {row['name']}"} for part, found in parts for row in found["rows"]]
    error = {"error": f"in {', '.join(failed(result))}; see {OUT.name}"} if failed(result) else {}
    return {"rows": rows, **error}
