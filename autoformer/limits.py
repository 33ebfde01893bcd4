"""Limits on parameters, MACs and latency, and moves of a subnet towards them. Torch-free."""

import math
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any, NamedTuple, Self, TypeVar

from pydantic import Field, model_validator

from autoformer.complexity import count_macs, count_params
from autoformer.frozen import Frozen
from autoformer.latency import LatencyTable
from autoformer.space import SearchSpace, SubnetSpec

UNITS = {"params_m": 1e6, "macs_g": 1e9, "latency_ms": 1}
Value = TypeVar("Value", int, float)


class Costs(NamedTuple):
    """What a subnet costs."""

    params: int
    macs: int
    latency_ms: float | None = None  # predicted; None without a table


def count_costs(space: SearchSpace, spec: SubnetSpec, table: LatencyTable | None = None) -> Costs:
    return Costs(count_params(space, spec), count_macs(space, spec), table.predict(spec) if table else None)


class Limits(Frozen):
    """What a legal candidate may cost, both ends included. None for no limit."""

    min_params_m: float | None = Field(None, ge=0, description="minimum parameters, in millions")
    max_params_m: float | None = Field(None, gt=0, description="maximum parameters, in millions")
    min_macs_g: float | None = Field(None, ge=0, description="minimum MACs per image, in billions")
    max_macs_g: float | None = Field(None, gt=0, description="maximum MACs per image, in billions")
    min_latency_ms: float | None = Field(
        None, ge=0, description="minimum latency in milliseconds, by search_subnet.latency.table"
    )
    max_latency_ms: float | None = Field(
        None, gt=0, description="maximum latency in milliseconds, by search_subnet.latency.table"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for cost in UNITS:
            low, high = getattr(self, f"min_{cost}"), getattr(self, f"max_{cost}")
            if low is not None and high is not None and low > high:
                raise ValueError(f"min_{cost} {low:g} is above max_{cost} {high:g}")
        return self

    @classmethod
    def on_params(cls, low: int, high: int) -> Self:
        return cls(min_params_m=low / UNITS["params_m"], max_params_m=high / UNITS["params_m"])

    def bounds(self, cost: str) -> tuple[float, float]:
        """Lowest and highest legal value of a cost of `UNITS`; without a limit 0 and infinity."""
        low, high = getattr(self, f"min_{cost}"), getattr(self, f"max_{cost}")
        unit = UNITS[cost]
        if unit == 1:
            return low or 0, math.inf if high is None else high
        return 0 if low is None else round(low * unit), math.inf if high is None else round(high * unit)

    @property
    def on_latency(self) -> bool:
        return self.min_latency_ms is not None or self.max_latency_ms is not None

    def allow(self, params: int, macs: int, latency_ms: float | None = None) -> bool:
        """Whether the costs are legal. `latency_ms` is required where there is a limit on it."""
        if self.on_latency and latency_ms is None:
            raise ValueError("a limit on latency needs a latency")
        values = dict(zip(UNITS, (params, macs, latency_ms or 0.0), strict=True))
        return all(low <= values[cost] <= high for cost in UNITS for low, high in [self.bounds(cost)])

    def __str__(self) -> str:
        parts = []
        for cost, name in (("params_m", "parameters"), ("macs_g", "multiply-adds"), ("latency_ms", "milliseconds")):
            low, high = self.bounds(cost)
            parts += [f"{name} >= {low:,}"] if getattr(self, f"min_{cost}") is not None else []
            parts += [f"{name} <= {high:,}"] if high < math.inf else []
        return " and ".join(parts) or "no limits"


def move_towards(
    space: SearchSpace, spec: SubnetSpec, limits: Limits, rng: Random, table: LatencyTable | None = None
) -> SubnetSpec:
    """Change one random choice at a time until the subnet is legal, or has moved past the limits.

    Near the ends of a space almost no uniform draw is legal: the smallest subnet of AutoFormer-S is one of 10^13.
    """
    first = 0
    while True:
        costs = count_costs(space, spec, table)
        too_large = any((value or 0) > limits.bounds(cost)[1] for cost, value in zip(UNITS, costs, strict=True))
        direction = -1 if too_large else 1
        neighbours = _neighbours(space, spec, direction)
        if limits.allow(*costs) or not neighbours or direction == -first:
            return spec
        first, spec = direction, rng.choice(neighbours)


def _neighbours(space: SearchSpace, spec: SubnetSpec, direction: int) -> list[SubnetSpec]:
    """The subnets with one value one choice lower (-1) or higher (1)."""

    def next_choice(value: Value, choices: Sequence[Value]) -> Sequence[Value]:
        """One choice, or none at the end."""
        index = choices.index(value) + direction
        return choices[index : index + 1] if index >= 0 else ()

    neighbours = []
    for depth in next_choice(spec.depth, space.choices.depth):
        blocks = [block % spec.depth for block in range(depth)]
        heads = tuple(spec.num_heads[block] for block in blocks)
        neighbours.append(SubnetSpec(depth, spec.embed_dim, heads, tuple(spec.mlp_ratio[block] for block in blocks)))
    for width in next_choice(spec.embed_dim, space.choices.embed_dim):
        neighbours.append(replace(spec, embed_dim=width))
    for block in range(spec.depth):
        for name in ("num_heads", "mlp_ratio"):
            values = getattr(spec, name)
            for value in next_choice(values[block], getattr(space.choices, name)):
                changed: dict[str, Any] = {name: (*values[:block], value, *values[block + 1 :])}
                neighbours.append(replace(spec, **changed))
    return neighbours
