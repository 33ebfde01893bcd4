"""Latency of one image on this machine's CPU, for the model card only."""

import platform
import time
from pathlib import Path
from typing import NamedTuple

from autoformer.cores import cores
from autoformer.errors import quantity
from runtime.common.processes import set_threads

WARM_UP_PASSES = 10  # not timed: the first passes fill caches and start threads
MOST_PASSES, FEWEST_PASSES, SECONDS = 300, 20, 3.0


class Latency(NamedTuple):
    """Time of one forward pass with batch size 1, without reading and decoding the image."""

    median_ms: float
    p90_ms: float
    passes: int
    threads: int
    cpu: str


def measure(model_folder: Path, threads: int | None) -> Latency:
    """Time a subnet in float32 on the CPU.

    Args:
        model_folder: input of `autoformer.checkpoint.load_subnet`.
        threads: torch's CPU threads; None for torch's default.
    """
    import torch

    from autoformer.checkpoint import load_subnet

    set_threads(threads)
    model, card = load_subnet(model_folder)
    space = card.space
    image = torch.zeros(1, space.in_channels, space.image_size, space.image_size)
    seconds: list[float] = []
    with torch.inference_mode():
        for _ in range(WARM_UP_PASSES):
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
    """CPU model and the number of cores that this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    model = next(names, "") or platform.processor() or platform.machine()
    return f"{model}, {quantity(cores(), 'core')}"
