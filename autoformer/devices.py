"""Which device and precision a step works with, and how many images at a time fit its memory."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from autoformer.errors import AutoFormerError
from autoformer.recipe import Precision

_SAYS_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")


def find_device(name: str) -> torch.device:
    """The device of a name; "auto" is the first GPU, Apple's, or the CPU.

    Raises `AutoFormerError` where this machine has no such device.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if gpus else "mps" if torch.backends.mps.is_available() else "cpu")
    kind, _, number = name.partition(":")
    has = ", ".join(["cpu", *(f"cuda:{index}" for index in range(gpus))])
    if (kind == "cuda" and int(number or 0) >= gpus) or (kind == "mps" and not torch.backends.mps.is_available()):
        raise AutoFormerError(f"device = {name}: this machine has {has}; set device to one of them, or to auto")
    return torch.device(name)


def find_precision(wanted: Precision, device: torch.device) -> Literal["float32", "bfloat16", "float16"]:
    """Of the forward pass: what is asked for, or for "auto" the fastest that trains well on the device."""
    if wanted != "auto":
        return wanted
    if device.type != "cuda":
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def autocast(device: torch.device, precision: Literal["float32", "bfloat16", "float16"]) -> torch.autocast:
    """A context in which forward passes compute in that precision; in "float32" it changes nothing."""
    return torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch, or Python's own, says that memory has run out."""
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in _SAYS_OUT_OF_MEMORY)
    )


def fewest_micro_batches(
    trial: Callable[[int], object], images: int, even: bool = False, minimum: int = 1
) -> int | None:
    """Into how many equal parts `images` must be split so that `trial(images of a part)` does not run out of memory.

    Args:
        trial: uses as much memory as the largest forward and backward pass of so many images.
        even: parts of an even number of images only, as mixup needs.
        minimum: parts.

    Returns:
        the smallest number that does, or None where not even a part of one image fits (two, where `even`).
    """
    for parts in range(minimum, images + 1):
        if images % parts or (even and (images // parts) % 2):
            continue
        try:
            trial(images // parts)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        else:
            return parts
    return None


def halve_on_oom(work: Callable[..., tuple[Tensor, ...]], *batch: Tensor) -> tuple[Tensor, ...]:
    """`work(*batch)`; a batch that does not fit into memory is halved, down to single images, and the results joined.

    Args:
        work: from tensors of B images each to tensors of B results each. Other kernels run for other B, so that
            halving moves a result by its rounding.
    """
    try:
        return work(*batch)
    except Exception as error:
        if not is_out_of_memory(error) or len(batch[0]) == 1:
            raise
    # not inside `except`: the error holds the tensors that did not fit
    results = [halve_on_oom(work, *half) for half in zip(*(part.chunk(2) for part in batch), strict=True)]
    return tuple(torch.cat(parts) for parts in zip(*results, strict=True))


def memory_bytes(device: torch.device) -> int | None:
    """All memory of a GPU; None for other devices."""
    return int(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else None
