"""The ranks that train or score together, and their collectives.

`World` itself is torch-free. Its collectives use the open process group.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Item = TypeVar("Item")


@dataclass(frozen=True)
class World:
    """Rank of this process and number of processes. By default a single process, whose collectives are no-ops.

    Every rank must call each collective, in the same order.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process writes files, logs, and makes decisions for all ranks."""
        return self.rank == 0

    def shard(self, items: Sequence[Item]) -> Sequence[Item]:
        """This rank's items: every `size`-th from `rank` on, without padding."""
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
