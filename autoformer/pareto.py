"""Pareto fronts of plain numbers."""

from collections.abc import Sequence


def pareto_front(costs: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the points that no other point dominates; every cost is better when lower.

    A point dominates another where it is nowhere worse and somewhere better. Of equal points the first stays.
    The result is ordered by the first cost.
    """
    order = sorted(range(len(costs)), key=lambda index: (*costs[index], index))
    front: list[int] = []
    for index in order:
        if not any(_covers(costs[kept], costs[index]) for kept in front):
            front.append(index)
    return front


def _covers(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True))
