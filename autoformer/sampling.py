"""Which subnets an optimiser step trains, and what each of them learns from. Torch-free.

A sampler is a function of the step, from 0, made from a space and a seed: nothing to save, and every rank of a job
takes the same subnets without asking another.

- `uniform`: one subnet a step, every choice uniform: single-path training (AutoFormer, arXiv 2107.00651, section 3.3).
- `sandwich`: the largest, the smallest and some random ones, the others taught by the largest (BigNAS, arXiv
  2003.11142, section 3; slimmable networks, arXiv 1903.05134). A step costs as many passes as there are subnets.
- `fair`: one subnet a step, uniform in its number of parameters. Uniform choices add up to subnets of middling size
  (the sum of many draws), so that small and large ones are hardly ever trained as such.
"""

from collections.abc import Callable
from random import Random
from typing import Literal, NamedTuple

from autoformer.complexity import count_params
from autoformer.limits import Limits, towards
from autoformer.randomness import derived_rng
from autoformer.space import SearchSpace, SubnetSpec

FAIR_BINS = 32  # of the range of parameters, each trained once in as many steps
FAIR_DRAWS = 16  # uniform draws for one that lies in the bin as it is
FAIR_MOVES = 6  # walks towards it, to and fro
Sampling = Literal["uniform", "sandwich", "fair"]


class Lesson(NamedTuple):
    """One forward and backward pass over the images of a step."""

    subnet: SubnetSpec | None = None  # None for a model that is no supernet: all of it
    from_first: bool = False  # learns the answers of the step's first subnet, not the labels


Lessons = Callable[[int], tuple[Lesson, ...]]


def sampler(kind: Sampling, space: SearchSpace, seed: int, sandwich_random: int = 2) -> Lessons:
    """The lessons of each step, by the name of a way to sample. `sandwich_random`: random subnets of a sandwich."""
    match kind:
        case "uniform":
            return uniform(space, seed)
        case "sandwich":
            return sandwich(space, seed, sandwich_random)
        case "fair":
            return fair(space, seed)


def whole_model(step: int) -> tuple[Lesson, ...]:
    """Every step trains all of the model."""
    return (Lesson(),)


def uniform(space: SearchSpace, seed: int) -> Lessons:
    """One uniformly drawn subnet a step."""
    return lambda step: (Lesson(sampled_subnet(space, seed, step)),)


def sampled_subnet(space: SearchSpace, seed: int, step: int) -> SubnetSpec:
    """The subnet of an optimiser step in uniform single-path sampling (paper section 3.3)."""
    return space.sample(derived_rng("subnet", seed, step))


def sandwich(space: SearchSpace, seed: int, random: int = 2) -> Lessons:
    """The largest subnet, taught by the labels; the smallest and `random` others, taught by its answers."""

    def lessons(step: int) -> tuple[Lesson, ...]:
        rng = derived_rng("subnet", seed, step)
        others = [space.smallest, *(space.sample(rng) for _ in range(random))]
        return (Lesson(space.largest), *(Lesson(subnet, from_first=True) for subnet in others))

    return lessons


def fair(space: SearchSpace, seed: int, bins: int = FAIR_BINS) -> Lessons:
    """One subnet a step, its number of parameters uniform between those of the smallest and of the largest.

    The range is cut into `bins` of one width; every `bins` steps visit each of them once, in an order of their own.
    """
    low, high = count_params(space, space.smallest), count_params(space, space.largest)

    def lessons(step: int) -> tuple[Lesson, ...]:
        cycle, place = divmod(step, bins)
        order = list(range(bins))
        derived_rng("parameter bins", seed, cycle).shuffle(order)
        ends = [low + (high - low) * (order[place] + end) // bins for end in (0, 1)]
        return (Lesson(subnet_within(space, ends[0], ends[1], derived_rng("subnet", seed, step))),)

    return lessons


def subnet_within(space: SearchSpace, low: int, high: int, rng: Random) -> SubnetSpec:
    """A random subnet with `low` to `high` parameters, or, where none is found, one near that.

    The first of some uniform draws that lies there, so that every subnet can come. Near the ends of a space hardly
    any draw does; then the nearest of them is moved there by single choices, and back where it was moved past.
    """

    def distance(subnet: SubnetSpec) -> int:
        params = count_params(space, subnet)
        return max(low - params, params - high, 0)

    draws: list[SubnetSpec] = []
    for _ in range(FAIR_DRAWS):
        draws.append(space.sample(rng))
        if not distance(draws[-1]):
            return draws[-1]
    moved = [min(draws, key=distance)]
    limits = Limits.on_params(low, high)
    while distance(moved[-1]) and len(moved) <= FAIR_MOVES:
        moved.append(towards(space, moved[-1], limits, rng))
    return min(moved, key=distance)
