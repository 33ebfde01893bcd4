"""Which subnets an optimiser step trains, and what each of them learns from. Torch-free.

A sampler is a function of the step, from 0, made from a space and a seed: nothing to save, and every rank of a job
takes the same subnets without asking another.

- `uniform`: one subnet a step, every choice uniform: single-path training (AutoFormer, arXiv 2107.00651, section 3.3).
- `sandwich`: the largest, the smallest and some random ones, the others taught by the largest (BigNAS, arXiv
  2003.11142, section 3; slimmable networks, arXiv 1903.05134). A step costs as many passes as there are subnets.
- `uniform_params`: one subnet a step, uniform in its number of parameters. Uniform choices seldom give a small or a
  large subnet: the size is a sum of many draws.
"""

from collections.abc import Callable
from random import Random
from typing import Literal, NamedTuple

from autoformer.complexity import count_params
from autoformer.limits import Limits, towards
from autoformer.randomness import derived_rng
from autoformer.space import SearchSpace, SubnetSpec

PARAM_BINS = 32  # of the range of parameters, each trained once in as many steps
PARAM_DRAWS = 16  # uniform draws for one that lies in the bin as it is
PARAM_MOVES = 6  # walks towards it, to and fro
Sampling = Literal["uniform", "sandwich", "uniform_params"]


class SubnetPass(NamedTuple):
    """One forward and backward pass over the images of a step."""

    subnet: SubnetSpec | None = None  # None for a model that is no supernet: all of it
    in_place_distillation: bool = False  # learns the answers of the step's first subnet, not the labels


SubnetSampler = Callable[[int], tuple[SubnetPass, ...]]


def make_sampler(kind: Sampling, space: SearchSpace, seed: int, sandwich_random: int = 2) -> SubnetSampler:
    """The lessons of each step, by the name of a way to sample. `sandwich_random`: random subnets of a sandwich."""
    match kind:
        case "uniform":
            return uniform(space, seed)
        case "sandwich":
            return sandwich(space, seed, sandwich_random)
        case "uniform_params":
            return uniform_params(space, seed)


def whole_model(step: int) -> tuple[SubnetPass, ...]:
    """Every step trains all of the model."""
    return (SubnetPass(),)


def uniform(space: SearchSpace, seed: int) -> SubnetSampler:
    """One uniformly drawn subnet a step."""
    return lambda step: (SubnetPass(sampled_subnet(space, seed, step)),)


def sampled_subnet(space: SearchSpace, seed: int, step: int) -> SubnetSpec:
    """The subnet of an optimiser step in uniform single-path sampling (paper section 3.3)."""
    return space.sample(derived_rng("subnet", seed, step))


def sandwich(space: SearchSpace, seed: int, random: int = 2) -> SubnetSampler:
    """The largest subnet, taught by the labels; the smallest and `random` others, taught by its answers."""

    def sampler(step: int) -> tuple[SubnetPass, ...]:
        rng = derived_rng("subnet", seed, step)
        others = [space.smallest, *(space.sample(rng) for _ in range(random))]
        return (SubnetPass(space.largest), *(SubnetPass(subnet, in_place_distillation=True) for subnet in others))

    return sampler


def uniform_params(space: SearchSpace, seed: int, bins: int = PARAM_BINS) -> SubnetSampler:
    """One subnet a step, its number of parameters uniform between those of the smallest and of the largest.

    The range is cut into `bins` of one width; every `bins` steps visit each of them once, in an order of their own.
    """
    low, high = count_params(space, space.smallest), count_params(space, space.largest)

    def sampler(step: int) -> tuple[SubnetPass, ...]:
        cycle, place = divmod(step, bins)
        order = list(range(bins))
        derived_rng("parameter bins", seed, cycle).shuffle(order)
        ends = [low + (high - low) * (order[place] + end) // bins for end in (0, 1)]
        return (SubnetPass(subnet_within(space, ends[0], ends[1], derived_rng("subnet", seed, step))),)

    return sampler


def subnet_within(space: SearchSpace, low: int, high: int, rng: Random) -> SubnetSpec:
    """A random subnet with `low` to `high` parameters, or, where none is found, one near that.

    The first of some uniform draws that lies there, so that every subnet can come. Near the ends of a space hardly
    any draw does; then the nearest of them is moved there by single choices, and back where it was moved past.
    """

    def distance(subnet: SubnetSpec) -> int:
        params = count_params(space, subnet)
        return max(low - params, params - high, 0)

    draws: list[SubnetSpec] = []
    for _ in range(PARAM_DRAWS):
        draws.append(space.sample(rng))
        if not distance(draws[-1]):
            return draws[-1]
    moved = [min(draws, key=distance)]
    limits = Limits.on_params(low, high)
    while distance(moved[-1]) and len(moved) <= PARAM_MOVES:
        moved.append(towards(space, moved[-1], limits, rng))
    return min(moved, key=distance)
