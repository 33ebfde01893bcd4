"""Batches that worker processes decode in advance, in order, for training and evaluation."""

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from autoformer.errors import AutoFormerError

Item = TypeVar("Item")


def prefetched(decode: Callable[[Item], Tensor], items: Iterable[Item], workers: int, factor: int) -> Iterator[Tensor]:
    """`decode(item)` of each item, in order, in pinned memory if there is a GPU.

    Args:
        decode: a pure function of its argument; picklable if workers are not forked.
        items: one per batch; may be endless.
        workers: processes; 0 to decode in this process, on demand.
        factor: batches that each worker decodes in advance.

    Raises:
        AutoFormerError: from `decode`, for its batch; later batches can still be read.
    """
    loader = DataLoader(
        _Guarded(decode),
        batch_size=None,
        sampler=items,
        num_workers=workers,
        prefetch_factor=factor if workers else None,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # otherwise the start of a loader draws from the global one
    )
    return map(_raise_error, loader)


class _Guarded(Dataset[Tensor | AutoFormerError], Generic[Item]):
    """Return errors as values: an error raised in a worker would carry the worker's traceback."""

    def __init__(self, decode: Callable[[Item], Tensor]) -> None:
        self._decode = decode

    def __getitem__(self, item: Item) -> Tensor | AutoFormerError:
        try:
            return self._decode(item)
        except AutoFormerError as error:
            return error


def _raise_error(batch: Tensor | AutoFormerError) -> Tensor:
    if isinstance(batch, AutoFormerError):
        raise batch
    return batch
