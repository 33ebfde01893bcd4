"""Fronts, ranks, crowding distances and hypervolumes: tables by hand, and plain twins on random points."""

import math
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoformer.pareto import crowding_distances, hypervolume, pareto_front, sort_into_fronts, whole_front

Points = list[tuple[float, ...]]
# small whole numbers, so that ties and equal points are frequent
POINTS = st.integers(1, 3).flatmap(lambda d: st.lists(st.tuples(*[st.integers(0, 4)] * d), max_size=14))

TABLE: Points = [(1, 5), (2, 3), (4, 1), (2, 3), (3, 4), (4, 3), (5, 5), (2, 6)]


def test_ranks_by_hand_with_equal_points_and_ties() -> None:
    """(1,5) (2,3) twice (4,1) are the front; then (3,4) (4,3) (2,6), each beaten by one of it alone; then (5,5)."""
    assert whole_front(TABLE) == [0, 1, 3, 2]  # by cost
    assert pareto_front(TABLE) == [0, 1, 2]
    assert sort_into_fronts(TABLE) == [[0, 1, 2, 3], [4, 5, 7], [6]]
    assert sort_into_fronts([]) == [] and sort_into_fronts([(1, 1)]) == [[0]]


def test_points_outside_the_limits_rank_after_all_inside_by_their_violation_alone() -> None:
    """Point 1 is the best of all and just outside; 4 and 0 are outside by as much, though 4 dominates 0."""
    costs: Points = [(1, 1), (0, 0), (9, 9), (8, 8), (0, 1)]
    assert sort_into_fronts(costs, [0.5, 0.1, 0, 0, 0.5]) == [[3], [2], [1], [0, 4]]
    assert sort_into_fronts(costs, [0.5, 0.1, 2, 2, 0.5]) == [[1], [0, 4], [2, 3]]
    assert sort_into_fronts(costs, [0.0] * 5) == sort_into_fronts(costs)


def test_crowding_distances_by_hand() -> None:
    """Ranges 8 and 10. Of (1,9): (4-0)/8 + (10-6)/10; of (4,6): (5-1)/8 + (9-5)/10; of (5,5): (8-4)/8 + (6-0)/10."""
    front: Points = [(5, 5), (0, 10), (8, 0), (1, 9), (4, 6)]
    assert crowding_distances(front) == pytest.approx([1.1, math.inf, math.inf, 0.9, 0.9])
    assert crowding_distances([]) == []
    assert crowding_distances([(1, 2)]) == [math.inf]
    assert crowding_distances([(1, 2), (1, 2), (1, 2)]) == [math.inf, 0, math.inf]  # a cost without a range counts 0


def test_hypervolumes_by_hand() -> None:
    """Two dimensions by slices, where (5, 5) lies within the others; three by inclusion and exclusion."""
    assert hypervolume([(2, 5), (3, 3), (5, 1), (5, 5)], (6, 6)) == 1 * 1 + 2 * 3 + 1 * 5
    assert hypervolume([(2,), (5,)], (6,)) == 4
    assert hypervolume([(0, 0), (7, 0), (6, 0)], (6, 6)) == 36  # one outside, one on the edge
    assert hypervolume([], (1, 1)) == 0.0 == hypervolume([(1, 0), (0, 1)], (1, 1))
    assert hypervolume([(1, 2, 3)], (2, 4, 6)) == 1 * 2 * 3
    corners: Points = [(0, 1, 1), (1, 0, 1), (1, 1, 0)]  # boxes of 2 x 1 x 1 to (2, 2, 2) that share 1 x 1 x 1
    assert hypervolume(corners, (2, 2, 2)) == 3 * 2 - 3 * 1 + 1
    assert hypervolume([*corners, (1, 1, 1), (0, 1, 1)], (2, 2, 2)) == 4


def dominates(first: Sequence[float], second: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(first, second, strict=True)) and tuple(first) != tuple(second)


def slow_ranks(costs: Sequence[Sequence[float]]) -> list[int]:
    """The longest chain of points that ends with each, every one dominating the next."""

    def rank(index: int) -> int:
        return max((1 + rank(i) for i, point in enumerate(costs) if dominates(point, costs[index])), default=0)

    return [rank(index) for index in range(len(costs))]


@given(POINTS)
def test_the_sort_equals_its_definition(costs: Points) -> None:
    ranks = slow_ranks(costs)
    fronts = sort_into_fronts(costs)
    assert fronts == [[i for i, rank in enumerate(ranks) if rank == level] for level in range(len(fronts))]
    assert sorted(whole_front(costs)) == (fronts[0] if fronts else [])


@given(POINTS)
def test_the_hypervolume_equals_the_counted_unit_cubes(costs: Points) -> None:
    """Points are whole numbers, so what they dominate up to 4 is made of unit cubes."""
    if not costs:
        return
    cubes: Points = [()]
    for _ in costs[0]:
        cubes = [(*cube, edge) for cube in cubes for edge in range(4)]
    inside = sum(any(all(a <= b for a, b in zip(point, cube, strict=True)) for point in costs) for cube in cubes)
    assert hypervolume(costs, (4,) * len(costs[0])) == inside


@pytest.mark.parametrize("dimensions", [2, 3, 4])
def test_the_hypervolume_equals_a_monte_carlo_estimate(dimensions: int) -> None:
    rng, samples = Random(dimensions), 20_000

    def point() -> tuple[float, ...]:
        return tuple(rng.random() for _ in range(dimensions))

    costs = [point() for _ in range(12)]
    hits = sum(any(map(dominates, costs, [place] * len(costs))) for place in (point() for _ in range(samples)))
    exact = hypervolume(costs, (1.0,) * dimensions)
    assert exact == pytest.approx(hits / samples, abs=4 * math.sqrt(0.25 / samples))
    assert hypervolume(costs[::-1], (1.0,) * dimensions) == pytest.approx(exact, rel=1e-12)
