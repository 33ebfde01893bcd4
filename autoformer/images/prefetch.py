"""Batches that worker processes decode ahead, in order: one way for training and evaluation."""

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from autoformer.errors import AutoFormerError

Item = TypeVar("Item")


def prefetched(decode: Callable[[Item], Tensor], items: Iterable[Item], workers: int, ahead: int) -> Iterator[Tensor]:
    """`decode` of each item, in their order, whatever the number of workers; pinned where there is a GPU to copy to.

    Args:
        decode: a batch; a function of its argument alone. Workers are forked, or it is picklable.
        items: what each batch is made of; may be endless.
        workers: processes; 0 for none, then the caller's own decodes each batch when it is asked for.
        ahead: batches that each worker decodes before they are asked for.

    Raises:
        AutoFormerError: that of `decode`, from the batch that it belongs to; those after it can still be had.
    """
    loader = DataLoader(
        _Guarded(decode),
        batch_size=None,
        sampler=items,
        num_workers=workers,
        prefetch_factor=ahead if workers else None,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else a start of the loader would draw from the global one
    )
    return map(_batch, loader)


class _Guarded(Dataset[Tensor | AutoFormerError], Generic[Item]):
    """An error is a value, or its line would come with a worker's traceback."""

    def __init__(self, decode: Callable[[Item], Tensor]) -> None:
        self._decode = decode

    def __getitem__(self, item: Item) -> Tensor | AutoFormerError:
        try:
            return self._decode(item)
        except AutoFormerError as error:
            return error


def _batch(found: Tensor | AutoFormerError) -> Tensor:
    if isinstance(found, AutoFormerError):
        raise found
    return found
