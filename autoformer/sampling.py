"""The subnets that an optimiser step trains, and their losses. Torch-free.

A sampler is a function of the step, made from a space and a seed. It has no state, and all ranks draw the same subnets.

- `uniform`: one subnet per step, every choice uniform: single-path training (AutoFormer, arXiv 2107.00651, section
  3.3).
- `sandwich`: the largest subnet, the smallest and some random ones, the others by in-place distillation from the
  largest (BigNAS, arXiv 2003.11142, section 3; slimmable networks, arXiv 1903.05134). A step costs one pass per
  subnet. In a short training the largest is a poor teacher, so by default the labels count as much as its outputs.
- `uniform_params`: one subnet per step, uniform in its number of parameters. Uniform choices seldom give a small or a
  large subnet, because the size is a sum of many draws.
"""

from collections.abc import Callable
from random import Random
from typing import Literal, NamedTuple, get_args

from autoformer.complexity import count_params
from autoformer.errors import check_choice
from autoformer.limits import Limits, move_towards
from autoformer.randomness import derived_rng
from autoformer.space import SearchSpace, SubnetSpec

PARAM_BINS = 32  # bins of the range of parameters, each sampled once in as many steps
PARAM_DRAWS = 16  # uniform draws before a subnet is moved into its bin
PARAM_MOVES = 6  # moves towards the bin, from either side
TEACHER_WEIGHT = 0.5  # weight of the largest subnet's outputs in a sandwich; the labels have the rest
Sampling = Literal["uniform", "sandwich", "uniform_params"]


class SubnetPass(NamedTuple):
    """One forward and backward pass over the images of a step."""

    subnet: SubnetSpec | None = None  # None for the whole of a model that is not a supernet
    teacher_weight: float = 0.0  # weight of the outputs of the step's first subnet; the labels have the rest


SubnetSampler = Callable[[int], tuple[SubnetPass, ...]]


def make_sampler(
    kind: Sampling,
    space: SearchSpace,
    seed: int,
    sandwich_random: int = 2,
    sandwich_teacher_weight: float = TEACHER_WEIGHT,
) -> SubnetSampler:
    check_choice("sampling", kind, get_args(Sampling))
    match kind:
        case "uniform":
            return uniform(space, seed)
        case "sandwich":
            return sandwich(space, seed, sandwich_random, sandwich_teacher_weight)
        case "uniform_params":
            return uniform_params(space, seed)


def whole_model(step: int) -> tuple[SubnetPass, ...]:
    """The sampler of a model that is not a supernet."""
    return (SubnetPass(),)


def uniform(space: SearchSpace, seed: int) -> SubnetSampler:
    return lambda step: (SubnetPass(sampled_subnet(space, seed, step)),)


def sampled_subnet(space: SearchSpace, seed: int, step: int) -> SubnetSpec:
    """The subnet that uniform sampling draws in a step."""
    return space.sample(derived_rng("subnet", seed, step))


def sandwich(space: SearchSpace, seed: int, random: int = 2, teacher_weight: float = TEACHER_WEIGHT) -> SubnetSampler:
    """The largest subnet, the smallest and `random` random ones. BigNAS uses a `teacher_weight` of 1."""

    def sampler(step: int) -> tuple[SubnetPass, ...]:
        rng = derived_rng("subnet", seed, step)
        others = [space.smallest, *(space.sample(rng) for _ in range(random))]
        return (SubnetPass(space.largest), *(SubnetPass(subnet, teacher_weight) for subnet in others))

    return sampler


def uniform_params(space: SearchSpace, seed: int, bins: int = PARAM_BINS) -> SubnetSampler:
    """One subnet per step, uniform in parameters: every `bins` steps visit each bin of equal width once, shuffled."""
    low, high = count_params(space, space.smallest), count_params(space, space.largest)

    def sampler(step: int) -> tuple[SubnetPass, ...]:
        cycle, position = divmod(step, bins)
        order = list(range(bins))
        derived_rng("parameter bins", seed, cycle).shuffle(order)
        ends = [low + (high - low) * (order[position] + end) // bins for end in (0, 1)]
        return (SubnetPass(subnet_within(space, ends[0], ends[1], derived_rng("subnet", seed, step))),)

    return sampler


def subnet_within(space: SearchSpace, low: int, high: int, rng: Random) -> SubnetSpec:
    """A random subnet with `low` to `high` parameters, or one near them if none is found.

    The first of `PARAM_DRAWS` uniform draws in the range, so every subnet can occur. Otherwise the nearest draw, moved
    towards the range.
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
        moved.append(move_towards(space, moved[-1], limits, rng))
    return min(moved, key=distance)
