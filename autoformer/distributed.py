"""This process among those that train or score together, and its collectives.

`World` itself is torch-free. The collectives use the process group that the caller has opened.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Item = TypeVar("Item")


@dataclass(frozen=True)
class World:
    """Rank of this process and number of processes. A single process by default; collectives are then no-ops.

    Every rank must call each collective, in the same order.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process writes files, logs, and decides for all."""
        return self.rank == 0

    def shard(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every `size`-th item, from `rank` on; no padding, no repetition."""
        return items[self.rank :: self.size]

    def broadcast(self, value: Item) -> Item:
        """The value of rank 0, a picklable object, on all ranks."""
        if self.size == 1:
            return value
        from torch import distributed

        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def all_gather(self, value: Item) -> list[Item]:
        """The values of all ranks, picklable objects, in rank order."""
        if self.size == 1:
            return [value]
        from torch import distributed

        values: list[Item] = [value] * self.size
        distributed.all_gather_object(values, value)
        return values

    def all_reduce(self, tensor: "Tensor") -> "Tensor":
        """Sum a tensor over all ranks, in place, on its device."""
        if self.size > 1:
            from torch import distributed

            distributed.all_reduce(tensor)
        return tensor


SINGLE_PROCESS = World()
