"""What of a machine goes to reading images: processes that decode ahead, and memory in which images are kept."""

import os
from typing import TYPE_CHECKING

from autoformer.errors import AutoFormerError
from runtime.common.processes import cores, gigabytes_in_environment, machine_share

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
    mine = cores() // machine_share()
    return min(MOST_WORKERS, mine // 2 if device.type == "cpu" else max(1, mine - 1))


def cache_bytes() -> int:
    """Memory in which decoded training images are kept: `AUTOFORMER_CACHE_GB`, else none.

    It changes no result, and so is no part of the configuration. The ranks of a machine share it out.
    """
    return gigabytes_in_environment("AUTOFORMER_CACHE_GB", 0) // machine_share()
