"""Limits on parameters, MACs and latency, and moves of a subnet towards them. Torch-free."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any, Self, TypeVar

from pydantic import Field, model_validator

from autoformer.complexity import COUNTED_MACS, RelativePosition, count_macs, count_params
from autoformer.errors import AutoFormerError
from autoformer.frozen import Frozen
from autoformer.latency import LatencyTable
from autoformer.space import SearchSpace, SubnetSpec

UNITS = {"params_m": 1e6, "macs_g": 1e9, "latency_ms": 1}
Value = TypeVar("Value", int, float)


class Limits(Frozen):
    """Minimum and maximum costs of a legal candidate, inclusive. None for no limit."""

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
    relative_position: RelativePosition = Field(
        "none",
        description="MACs of relative position in these limits: none, as in most papers and all figures of a run; "
        "those that the published code executes; or those that this code executes",
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
        """Lowest and highest legal value of a cost in `UNITS`, by default 0 and infinity."""
        low, high = getattr(self, f"min_{cost}"), getattr(self, f"max_{cost}")
        unit = UNITS[cost]
        if unit == 1:
            return low or 0, math.inf if high is None else high
        return 0 if low is None else round(low * unit), math.inf if high is None else round(high * unit)

    @property
    def on_latency(self) -> bool:
        return self.min_latency_ms is not None or self.max_latency_ms is not None

    def count(self, space: SearchSpace, spec: SubnetSpec, table: LatencyTable | None = None) -> dict[str, float]:
        """The costs of a subnet by their names in `UNITS`, as these limits count them; latency only with a table."""
        counts: dict[str, float] = {
            "params_m": count_params(space, spec),
            "macs_g": count_macs(space, spec, self.relative_position),
        }
        return counts | ({"latency_ms": table.predict(spec)} if table else {})

    def allow(self, counts: Mapping[str, float]) -> bool:
        """Whether costs from `count` are legal. Raises `AutoFormerError` if a limited latency is missing."""
        if self.on_latency and "latency_ms" not in counts:
            raise AutoFormerError("limits: a limit on latency needs a latency; count with a latency table")
        return all(low <= count <= high for cost, count in counts.items() for low, high in [self.bounds(cost)])

    def __str__(self) -> str:
        parts, macs = [], COUNTED_MACS[self.relative_position]
        for cost, name in (("params_m", "parameters"), ("macs_g", macs), ("latency_ms", "milliseconds")):
            low, high = self.bounds(cost)
            parts += [f"{name} >= {low:,}"] if getattr(self, f"min_{cost}") is not None else []
            parts += [f"{name} <= {high:,}"] if high < math.inf else []
        return " and ".join(parts) or "no limits"


def move_towards(
    space: SearchSpace, spec: SubnetSpec, limits: Limits, rng: Random, table: LatencyTable | None = None
) -> SubnetSpec:
    """Change one random choice at a time until the subnet is legal or has passed the limits.

    Near the ends of a space almost no uniform draw is legal: AutoFormer-S has 10^13 subnets and one smallest.
    """
    first = 0
    while True:
        counts = limits.count(space, spec, table)
        too_large = any(count > limits.bounds(cost)[1] for cost, count in counts.items())
        direction = -1 if too_large else 1
        neighbours = _neighbours(space, spec, direction)
        if limits.allow(counts) or not neighbours or direction == -first:
            return spec
        first, spec = direction, rng.choice(neighbours)


def _neighbours(space: SearchSpace, spec: SubnetSpec, direction: int) -> list[SubnetSpec]:
    """The subnets with one value one choice lower (-1) or higher (1)."""

    def next_choice(value: Value, choices: Sequence[Value]) -> Sequence[Value]:
        """The neighbouring choice as a list of one; empty at the end of the choices."""
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
