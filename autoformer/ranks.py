"""Processes that do one job together: which one this is, and what they tell each other.

The value is torch-free; what is said goes through the process group that the caller has opened.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """One process of `count`, which are numbered from 0. Alone by default, and then nothing is said to anybody."""

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes, logs and decides for all."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items that are this process's: every `count`-th, none of them padded or repeated."""
        return items[self.rank :: self.count]

    def broadcast(self, value: Item) -> Item:
        """What rank 0 says. Every rank calls it; the value of the others is passed over."""
        if self.count == 1:
            return value
        from torch import distributed

        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Item) -> list[Item]:
        """What each rank says, in the order of the ranks. Every rank calls it, and all of them hear."""
        if self.count == 1:
            return [value]
        from torch import distributed

        heard: list[Item] = [value] * self.count
        distributed.all_gather_object(heard, value)
        return heard

    def add(self, tensor: "Tensor") -> "Tensor":
        """The sum of what each rank holds, in place, on its device. Every rank calls it."""
        if self.count > 1:
            from torch import distributed

            distributed.all_reduce(tensor)
        return tensor


ALONE = Ranks()
