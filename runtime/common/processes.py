"""Which process of a step this is, and what of the machine is its own: read from what torchrun has set."""

import os
from pathlib import Path

from autoformer.errors import AutoFormerError

REPORT_FOLDER = "AUTOFORMER_RANKS"  # environment variable: where ranks report to the process that started them
DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # NVIDIA's, that of Windows' subsystem, AMD's


def is_rank() -> bool:
    """Whether torchrun has started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_rank_zero() -> bool:
    """Whether this process speaks: rank 0, or one that is alone."""
    return os.environ.get("RANK", "0") == "0"


def ranks_on_machine() -> int:
    """How many ranks share this machine's cores with this one, itself counted."""
    return number_in_environment("LOCAL_WORLD_SIZE", 1)


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(threads: int | None) -> None:
    """Set the CPU threads of torch in this process; None leaves them as they are."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def threads_of_rank() -> int:
    """CPU threads of one of several ranks: OMP_NUM_THREADS, or an equal share of this machine's cores."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) > 0 else max(1, cores() // ranks_on_machine())


def gpus() -> int:
    """GPUs of this machine. Where it has no driver, torch is not imported to hear so: bad input is told at once."""
    if not any(Path(driver).exists() for driver in DRIVERS):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def number_in_environment(name: str, otherwise: int) -> int:
    """A whole number of the environment."""
    text = os.environ.get(name)
    if text is None:
        return otherwise
    if not text.isdecimal():
        raise AutoFormerError(f"{name} = {text}: expected a whole number, 0 or more")
    return int(text)


def gigabytes_in_environment(name: str, otherwise: float) -> int:
    """Bytes, from gigabytes of the environment."""
    text = os.environ.get(name, str(otherwise))
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = -1.0
    if not 0 <= gigabytes < float("inf"):
        raise AutoFormerError(f"{name} = {text}: expected gigabytes, 0 or more")
    return int(gigabytes * 1e9)
