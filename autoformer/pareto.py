"""Pareto fronts of plain numbers."""

from collections.abc import Sequence


def pareto_front(costs: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the points that no other dominates, ordered by the first cost. Lower costs are better.

    A point dominates another if it is nowhere worse and somewhere better. The first of equal points stays.
    """
    order = sorted(range(len(costs)), key=lambda index: (*costs[index], index))
    front: list[int] = []
    for index in order:
        if not any(all(a <= b for a, b in zip(costs[other], costs[index], strict=True)) for other in front):
            front.append(index)
    return front
