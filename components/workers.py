"""How many processes decode images ahead of those that use them."""

import os
from typing import TYPE_CHECKING

from autoformer.errors import AutoFormerError

if TYPE_CHECKING:
    import torch

MOST_WORKERS = 16


def worker_count(device: "torch.device") -> int:
    """Processes that decode and augment ahead: `AUTOFORMER_WORKERS`, else what leaves the process they serve its cores.

    It changes no result, and so is no part of the configuration.
    """
    given = os.environ.get("AUTOFORMER_WORKERS")
    if given is not None:
        if not given.isdecimal():
            raise AutoFormerError(f"AUTOFORMER_WORKERS = {given}: expected a number of processes, 0 or more")
        return int(given)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, cores // 2 if device.type == "cpu" else max(1, cores - 1))
