"""Device, precision, and batch sizes that fit into memory."""

from collections.abc import Callable

import torch
from torch import Tensor

from autoformer.errors import AutoFormerError
from autoformer.recipe import Dtype, Precision

_OUT_OF_MEMORY_TEXTS = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")


def find_device(name: str) -> torch.device:
    """A device by name; "auto": the first GPU, else Apple's GPU, else the CPU. Raises `AutoFormerError` if missing."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if gpus else "mps" if torch.backends.mps.is_available() else "cpu")
    kind, _, number = name.partition(":")
    has = ", ".join(["cpu", *(f"cuda:{index}" for index in range(gpus))])
    if (kind == "cuda" and int(number or 0) >= gpus) or (kind == "mps" and not torch.backends.mps.is_available()):
        raise AutoFormerError(f"device = {name}: this machine has {has}; set device to one of them, or to auto")
    return torch.device(name)


def find_precision(wanted: Precision, device: torch.device) -> Dtype:
    """The precision of the forward pass; "auto": bfloat16 or float16 on a GPU, float32 on a CPU."""
    if wanted != "auto":
        return wanted
    if device.type != "cuda":
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def autocast(device: torch.device, precision: Dtype) -> torch.autocast:
    """Mixed precision for the forward pass; a no-op for "float32"."""
    return torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or Python means out of memory."""
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY_TEXTS)
    )


def fewest_micro_batches(
    trial: Callable[[int], object], images: int, even: bool = False, minimum: int = 1
) -> int | None:
    """The smallest number of equal micro-batches of `images` that fit into memory; None if none fits.

    Args:
        trial: allocates the memory of the largest forward and backward pass of so many images.
        even: only micro-batches with an even number of images, as mixup needs.
        minimum: smallest number of micro-batches to try.
    """
    for count in range(minimum, images + 1):
        if images % count or (even and (images // count) % 2):
            continue
        try:
            trial(images // count)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        else:
            return count
    return None


def halve_on_oom(work: Callable[..., tuple[Tensor, ...]], *batch: Tensor) -> tuple[Tensor, ...]:
    """Call `work(*batch)`; halve a batch that does not fit into memory, down to single images, and join the results.

    Args:
        work: from tensors (B, ...) to tensors (B, ...). Other batch sizes run other kernels, so halving changes results
            by rounding.
    """
    try:
        return work(*batch)
    except Exception as error:
        if not is_out_of_memory(error) or len(batch[0]) == 1:
            raise
    # outside `except`: the error holds the tensors that did not fit
    results = [halve_on_oom(work, *half) for half in zip(*(tensor.chunk(2) for tensor in batch), strict=True)]
    return tuple(torch.cat(halves) for halves in zip(*results, strict=True))


def memory_bytes(device: torch.device) -> int | None:
    """Total memory of a GPU; None for other devices."""
    return int(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else None
