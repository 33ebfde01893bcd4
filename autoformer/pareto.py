"""Pareto fronts of plain numbers: fronts, ranks, crowding distance, hypervolume. Lower costs are better.

A point dominates another if it is nowhere worse and somewhere better.
"""

import math
from collections.abc import Sequence


def pareto_front(costs: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the points that no other dominates, ordered by the first cost. Of equal points the first is kept."""
    order = sorted(range(len(costs)), key=lambda index: (*costs[index], index))
    front: list[int] = []
    for index in order:
        if not any(all(a <= b for a, b in zip(costs[other], costs[index], strict=True)) for other in front):
            front.append(index)
    return front


def whole_front(costs: Sequence[Sequence[float]]) -> list[int]:
    """`pareto_front` with all equal points, ordered by their costs."""
    best = {tuple(costs[index]) for index in pareto_front(costs)}
    return sorted((i for i in range(len(costs)) if tuple(costs[i]) in best), key=lambda i: (*costs[i], i))


def sort_into_fronts(costs: Sequence[Sequence[float]], violations: Sequence[float] | None = None) -> list[list[int]]:
    """Indices by rank, best first: the front, then the front of the rest, and so on. Equal points share a rank.

    Args:
        violations: how far each point is outside the limits, 0 inside; None if all are inside. A point inside ranks
            before all outside, and of two outside the one with less violation (Deb et al. 2002, section VI).
    """
    violations = violations or [0.0] * len(costs)
    left = [index for index, violation in enumerate(violations) if not violation]
    ranks: list[list[int]] = []
    while left:
        ranks.append(sorted(left[place] for place in whole_front([costs[index] for index in left])))
        left = sorted(set(left) - set(ranks[-1]))
    outside = sorted({violation for violation in violations if violation})
    return ranks + [[index for index, found in enumerate(violations) if found == value] for value in outside]


def crowding_distances(costs: Sequence[Sequence[float]]) -> list[float]:
    """Of each point of one front: the distance between its two neighbours, summed over the costs; infinite at the ends.

    The distance in a cost is a fraction of the front's range in it (Deb et al. 2002, section III B).
    """
    distances = [0.0] * len(costs)
    for cost in zip(*costs, strict=True):
        order = sorted(range(len(cost)), key=lambda index: (cost[index], index))
        low, high = cost[order[0]], cost[order[-1]]
        distances[order[0]] = distances[order[-1]] = math.inf
        if high > low:
            for before, index, after in zip(order, order[1:], order[2:], strict=False):
                distances[index] += (cost[after] - cost[before]) / (high - low)
    return distances


def hypervolume(costs: Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """The volume that the points dominate, up to the reference point. Exact, by slices along the first cost.

    Points that are not better than the reference in every cost add nothing.
    """
    inside = [costs[index] for index in pareto_front(costs)]
    inside = [point for point in inside if all(a < b for a, b in zip(point, reference, strict=True))]
    if not inside:
        return 0.0
    if len(reference) == 1:
        return reference[0] - inside[0][0]
    edges = [point[0] for point in inside[1:]] + [reference[0]]
    slices = (
        (edge - point[0]) * hypervolume([other[1:] for other in inside[: place + 1]], reference[1:])
        for place, (point, edge) in enumerate(zip(inside, edges, strict=True))
        if edge > point[0]
    )
    return math.fsum(slices)
