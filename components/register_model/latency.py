"""How long one image takes on this machine's CPU. A clock reading: it decides nothing, and enters no result."""

import platform
import time
from pathlib import Path
from typing import NamedTuple

from runtime.common.processes import cores, set_threads

WARM_UP = 10  # passes that are not counted: the first ones fill caches and start threads
MOST_PASSES, FEWEST_PASSES, SECONDS = 300, 20, 3.0


class Latency(NamedTuple):
    """Of a forward pass of one image, without reading or decoding it."""

    median_ms: float
    p90_ms: float
    passes: int
    threads: int
    cpu: str


def measure(model_folder: Path, threads: int | None) -> Latency:
    """Time the subnet of a folder, batch 1, float32, on the CPU.

    Args:
        model_folder: as `autoformer.checkpoint.load_subnet` reads it.
        threads: of torch; None leaves torch's own choice.
    """
    import torch

    from autoformer.checkpoint import load_subnet

    set_threads(threads)
    model, card = load_subnet(model_folder)
    space = card.space
    image = torch.zeros(1, space.in_channels, space.image_size, space.image_size)
    seconds: list[float] = []
    with torch.inference_mode():
        for _ in range(WARM_UP):
            model(image)
        end = time.perf_counter() + SECONDS
        while len(seconds) < FEWEST_PASSES or (len(seconds) < MOST_PASSES and time.perf_counter() < end):
            start = time.perf_counter()
            model(image)
            seconds.append(time.perf_counter() - start)
    times = torch.tensor(seconds, dtype=torch.float64).mul(1000)
    median, p90 = times.quantile(torch.tensor([0.5, 0.9], dtype=torch.float64)).tolist()
    return Latency(median, p90, len(seconds), torch.get_num_threads(), cpu_name())


def cpu_name() -> str:
    """The processor's model and the number of cores that this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    model = next(named, "") or platform.processor() or platform.machine()
    return f"{model}, {cores()} cores"
