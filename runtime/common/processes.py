"""Rank, threads and GPUs of this process, from the environment that torchrun sets."""

import math
import os
import re
from pathlib import Path

from autoformer.cores import cores, is_limited
from autoformer.errors import AutoFormerError

REPORT_FOLDER = "AUTOFORMER_RANKS"  # environment variable: folder in which ranks report to their parent process
DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # of NVIDIA, of WSL, of AMD


def is_rank() -> bool:
    """Whether torchrun has started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_rank_zero() -> bool:
    """Whether this process prints and writes for all ranks: rank 0, or a single process."""
    return os.environ.get("RANK", "0") == "0"


def ranks_on_machine() -> int:
    """The number of ranks on this machine, including this one."""
    return number_in_environment("LOCAL_WORLD_SIZE", 1)


def set_threads(threads: int | None) -> None:
    """Set torch's CPU threads in this process; None keeps torch's default, within the CPU quota."""
    if threads is None and is_limited():
        threads = threads_of_rank()
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def threads_of_rank() -> int:
    """CPU threads of one of several ranks: OMP_NUM_THREADS, or an equal share of the cores."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    wanted = int(text) if re.fullmatch("[0-9]{1,4}", text) else 0
    return wanted or max(1, cores() // ranks_on_machine())


def gpus() -> int:
    """The number of GPUs. Does not import torch if there is no driver, so bad input is reported at once."""
    if not any(Path(driver).exists() for driver in DRIVERS):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def number_in_environment(name: str, default: int, most: int = 2**31 - 1) -> int:
    """A whole number from the environment."""
    text = os.environ.get(name)
    if text is None:
        return default
    if not re.fullmatch("[0-9]{1,10}", text):
        raise AutoFormerError(f"{name} = {text[:40]}: expected a whole number, 0 or more")
    if int(text) > most:
        raise AutoFormerError(f"{name} = {text}: more than {most}")
    return int(text)


def gigabytes_in_environment(name: str, default: float) -> int:
    """Gigabytes from the environment, in bytes."""
    text = os.environ.get(name, str(default))
    return int(1e9 * number_of(text, 0, 1e298, f"{name} = {text[:40]}: expected gigabytes, 0 or more"))


def number_of(text: str, least: float, most: float, refusal: str) -> float:
    """The number in a text. Raises `AutoFormerError` with the message `refusal` if it is none, or out of range."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not least <= number <= most:
        raise AutoFormerError(refusal)
    return number
