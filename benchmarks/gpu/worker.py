"""The process that measures: `python -m benchmarks.gpu.worker DEVICE SIZE`, started by `benchmarks.gpu.running`.

It says what device it has, then does the parts that its standard input names, a JSON line each, and tells what it finds
in JSON lines. All that others print goes to standard error.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from autoformer.devices import find_device
from benchmarks.gpu.bench import FULL, TINY, Bench
from benchmarks.gpu.parity import parity
from benchmarks.gpu.resume import resume
from benchmarks.gpu.speed import changing, compiling, speed
from benchmarks.gpu.work import epoch, scoring

Part = Callable[[Bench], None]
PARTS: dict[str, Part] = {
    "parity": parity, "speed": speed, "supernet": changing, "compile": compiling, "scoring": scoring, "epoch": epoch,
    "resume": resume,
}  # fmt: skip
SIZES = {"full": FULL, "tiny": TINY}
THREADS = 2  # of a CPU that is measured itself


def main(device_name: str, size_name: str, parts: Mapping[str, Part] = PARTS) -> int:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def tell(kind: str, what: object) -> None:
        print(json.dumps({kind: what}), file=out, flush=True)

    device = find_device(device_name)
    size_name = size_name if size_name != "auto" else "full" if device.type == "cuda" else "tiny"
    if device.index is not None:
        torch.cuda.set_device(device)
    if device.type == "cpu":
        torch.set_num_threads(min(THREADS, torch.get_num_threads()))
    tell("ready", _described(device) | {"size": size_name})
    for line in sys.stdin:
        asked = json.loads(line)
        bench = Bench(device, SIZES[size_name], time.monotonic() + asked["seconds"], tell)
        with bench.attempt(asked["part"]):
            parts[asked["part"]](bench)
        tell("done", not bench.failed)
    return 0


def _described(device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {
        "device": str(device),
        "torch_cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "gpu_memory_gb": round(properties.total_memory / 1e9, 1),
            "capability": f"{properties.major}.{properties.minor}",
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], sys.argv[2]))
