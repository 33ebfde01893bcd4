"""Resources of the image loader: worker processes, and memory for decoded images. Neither changes a result."""

import os
from typing import TYPE_CHECKING

from autoformer.cores import cores
from autoformer.errors import AutoFormerError
from runtime.common.processes import gigabytes_in_environment, ranks_on_machine

if TYPE_CHECKING:
    import torch

MAX_WORKERS = 16


def worker_count(device: "torch.device") -> int:
    """Number of processes that decode and augment: `AUTOFORMER_WORKERS`, else the cores that training leaves free."""
    text = os.environ.get("AUTOFORMER_WORKERS")
    if text is not None:
        if not text.isdecimal():
            raise AutoFormerError(f"AUTOFORMER_WORKERS = {text}: expected a number of processes, 0 or more")
        return int(text)
    own = cores() // ranks_on_machine()
    return min(MAX_WORKERS, own // 2 if device.type == "cpu" else max(1, own - 1))


def cache_bytes() -> int:
    """Bytes for decoded training images: this rank's share of `AUTOFORMER_CACHE_GB`; 0 by default."""
    return gigabytes_in_environment("AUTOFORMER_CACHE_GB", 0) // ranks_on_machine()
