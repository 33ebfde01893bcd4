"""What a subnet may cost, and how one that costs more or less is moved there. Torch-free."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any, Self

from pydantic import Field, model_validator

from autoformer.complexity import count_macs, count_params
from autoformer.frozen import Frozen
from autoformer.space import SearchSpace, SubnetSpec

UNITS = {"params_m": 1e6, "macs_g": 1e9}  # of the limits on each cost


class Limits(Frozen):
    """What a legal candidate may cost; both ends are legal. Null for no limit."""

    min_params_m: float | None = Field(None, ge=0, description="least parameters, in millions")
    max_params_m: float | None = Field(None, gt=0, description="most parameters, in millions")
    min_macs_g: float | None = Field(None, ge=0, description="least multiply-adds for one image, in thousand millions")
    max_macs_g: float | None = Field(None, gt=0, description="most multiply-adds for one image, in thousand millions")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for cost in UNITS:
            low, high = getattr(self, f"min_{cost}"), getattr(self, f"max_{cost}")
            if low is not None and high is not None and low > high:
                raise ValueError(f"min_{cost} {low:g} is above max_{cost} {high:g}")
        return self

    @classmethod
    def on_params(cls, least: int, most: int) -> Self:
        """From `least` to `most` parameters, whatever the multiply-adds."""
        return cls(min_params_m=least / UNITS["params_m"], max_params_m=most / UNITS["params_m"])

    @property
    def min_params(self) -> int | None:
        return _count(self.min_params_m, UNITS["params_m"])

    @property
    def max_params(self) -> int | None:
        return _count(self.max_params_m, UNITS["params_m"])

    @property
    def min_macs(self) -> int | None:
        return _count(self.min_macs_g, UNITS["macs_g"])

    @property
    def max_macs(self) -> int | None:
        return _count(self.max_macs_g, UNITS["macs_g"])

    def allow(self, params: int, macs: int) -> bool:
        return _within(params, self.min_params, self.max_params) and _within(macs, self.min_macs, self.max_macs)

    def __str__(self) -> str:
        parts = []
        for name, low, high in (
            ("parameters", self.min_params, self.max_params),
            ("multiply-adds", self.min_macs, self.max_macs),
        ):
            if low is not None:
                parts.append(f"{name} >= {low:,}")
            if high is not None:
                parts.append(f"{name} <= {high:,}")
        return " and ".join(parts) or "no limits"


def towards(space: SearchSpace, spec: SubnetSpec, limits: Limits, rng: Random) -> SubnetSpec:
    """`spec` moved by single choices, drawn at random, until it is legal or was moved past the limits.

    Near the ends of a space hardly any uniform draw is legal: the smallest subnet of AutoFormer-S is one of 10^13.
    """
    first = 0
    while True:
        params, macs = count_params(space, spec), count_macs(space, spec)
        too_large = _above(params, limits.max_params) or _above(macs, limits.max_macs)
        direction = -1 if too_large else 1
        neighbours = _neighbours(space, spec, direction)
        if limits.allow(params, macs) or not neighbours or direction == -first:
            return spec
        first, spec = direction, rng.choice(neighbours)


def _neighbours(space: SearchSpace, spec: SubnetSpec, direction: int) -> list[SubnetSpec]:
    """The subnets with one value one choice lower (-1) or higher (1)."""

    def moved(value: float, choices: Sequence[float]) -> float | None:
        index = choices.index(value) + direction
        return choices[index] if 0 <= index < len(choices) else None

    choices, found = space.choices, []
    if (depth := moved(spec.depth, choices.depth)) is not None:
        blocks = range(int(depth))
        heads = tuple(spec.num_heads[block % spec.depth] for block in blocks)
        ratios = tuple(spec.mlp_ratio[block % spec.depth] for block in blocks)
        found.append(SubnetSpec(int(depth), spec.embed_dim, heads, ratios))
    if (width := moved(spec.embed_dim, choices.embed_dim)) is not None:
        found.append(replace(spec, embed_dim=int(width)))
    for block in range(spec.depth):
        if (heads_of := moved(spec.num_heads[block], choices.num_heads)) is not None:
            found.append(replace(spec, num_heads=_with(spec.num_heads, block, int(heads_of))))
        if (ratio := moved(spec.mlp_ratio[block], choices.mlp_ratio)) is not None:
            found.append(replace(spec, mlp_ratio=_with(spec.mlp_ratio, block, ratio)))
    return found


def _with(values: tuple[Any, ...], index: int, value: Any) -> tuple[Any, ...]:
    return (*values[:index], value, *values[index + 1 :])


def _count(value: float | None, unit: float) -> int | None:
    return None if value is None else round(value * unit)


def _within(value: int, low: int | None, high: int | None) -> bool:
    return (low is None or value >= low) and not _above(value, high)


def _above(value: int, high: int | None) -> bool:
    return high is not None and value > high
