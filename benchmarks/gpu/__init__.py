"""Check numbers and speed on a GPU in eight minutes: `python -m benchmarks.gpu`. See docs/benchmarks.md. Torch-free."""

from typing import Any

from benchmarks.gpu.machine import describe
from benchmarks.gpu.running import OUT, Check, failed


def measure(quick: bool = False) -> dict[str, Any]:
    """The part `gpu` of `make bench`. `quick`: at tiny sizes, on the CPU."""
    result = (Check(OUT, describe(), "cpu", "tiny") if quick else Check(OUT, describe())).run()
    parts = result["parts"].items()
    rows = [row | {"name": f"{part}: {row['name']}"} for part, found in parts for row in found["rows"]]
    error = {"error": f"in {', '.join(failed(result))}; see {OUT.name}"} if failed(result) else {}
    return {"rows": rows, **error}
