"""What a GPU shows, in eight minutes: `python -m benchmarks.gpu`. See docs/benchmarks.md. Torch-free to import."""

import signal
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.machine import ROOT, describe
from benchmarks.gpu.running import SHARES, WORKER, Check, failed

OUT = ROOT / "dist" / "bench" / "gpu.json"


def check(
    out: Path = OUT,
    minutes: float = 8.0,
    parts: tuple[str, ...] = tuple(SHARES),
    device: str = "auto",
    size: str = "auto",
    worker: tuple[str, ...] = WORKER,
) -> dict[str, Any]:
    """Run the parts; what `out` holds at the end, and at every moment before. SIGTERM ends it as Ctrl-C does."""
    end = time.monotonic() + 60 * minutes
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return Check(out, describe(), end, [*worker, device, size]).run(parts)
    finally:
        signal.signal(signal.SIGTERM, former)


def measure(quick: bool = False) -> dict[str, Any]:
    """The part `gpu` of `make bench`. `quick`: at tiny sizes, on the CPU."""
    result = check(device="cpu", size="tiny") if quick else check()
    rows = [
        row | {"name": f"{part}: {row['name']}"} for part, found in result["parts"].items() for row in found["rows"]
    ]
    error = {"error": f"in {', '.join(failed(result))}; see {OUT.name}"} if failed(result) else {}
    return {"rows": rows, **error}
