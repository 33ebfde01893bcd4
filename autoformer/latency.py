"""Latency of any subnet, as the sum of the measured times of its parts. Torch-free.

A table has one time for each layer before the blocks and for each head, by width, and one for each block, by width,
heads and MLP ratio. The sum, plus a constant, is the time of a subnet. `autoformer.part_times` measures a table.
"""

from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Literal, Self

from pydantic import Field, model_validator

from autoformer.errors import AutoFormerError, quantity
from autoformer.frozen import Frozen
from autoformer.reading import read_json_as
from autoformer.recipe import Dtype
from autoformer.space import Choices, SearchSpace, SubnetField, SubnetSpec

Clock = Literal["processor time", "wall time", "CUDA events"]
FILE = "latency_table.json"  # a search with a latency table copies it to its folder
AT_REST = "measure again, with nothing else running"
REMEDY = "make the table again with `make latency`"
# The keys of a space that decide the model of a subnet; name and supernet do not.
_SHAPE = tuple(key for key in SearchSpace.model_fields if key not in ("name", "supernet", "choices"))


class WidthTime(Frozen):
    embed_dim: int = Field(gt=0)
    ms: float = Field(gt=0, le=1e9)


class BlockTime(WidthTime):
    num_heads: int = Field(gt=0)
    mlp_ratio: float = Field(gt=0)


class CheckedSubnet(Frozen):
    """A whole subnet that the table is checked with."""

    subnet: SubnetField
    predicted_ms: float
    measured_ms: float = Field(gt=0)

    @property
    def error_percent(self) -> float:
        return 100 * abs(self.predicted_ms - self.measured_ms) / self.measured_ms


class LatencyTable(Frozen):
    """Times of one forward pass in milliseconds, and the device that they were measured on."""

    device: str = Field(min_length=1)  # name of the processor
    threads: int | None = Field(gt=0)  # CPU threads; None on a GPU
    batch_size: int = Field(gt=0)
    precision: Dtype
    clock: Clock
    torch: str
    rounds: int = Field(gt=0)  # each round measured every part
    space: SearchSpace
    constant_ms: float = Field(ge=-1e9, le=1e9)
    embedding: tuple[WidthTime, ...]
    blocks: tuple[BlockTime, ...]
    head: tuple[WidthTime, ...]
    check: tuple[CheckedSubnet, ...] = ()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        choices = self.space.choices
        widths = list(choices.embed_dim)
        blocks = [(w, heads, ratio) for w in widths for heads in choices.num_heads for ratio in choices.mlp_ratio]
        for name, found, expected in (
            ("embedding", [part.embed_dim for part in self.embedding], widths),
            ("head", [part.embed_dim for part in self.head], widths),
            ("blocks", [(part.embed_dim, part.num_heads, part.mlp_ratio) for part in self.blocks], blocks),
        ):
            if sorted(found) != sorted(expected):
                raise ValueError(
                    f"{name} has {quantity(len(found), 'time')}, not one for each of "
                    f"{quantity(len(expected), 'choice')}"
                )
        if self.extremes(self.space)[0] <= 0:
            raise ValueError(f"with constant_ms {self.constant_ms:g} some subnets would take no time")
        return self

    @cached_property
    def _times(self) -> dict[tuple[float, ...], float]:
        """Width -> embedding and head; width, heads and MLP ratio -> block."""
        times: dict[tuple[float, ...], float] = {(part.embed_dim,): part.ms for part in self.embedding}
        for part in self.head:
            times[part.embed_dim,] += part.ms
        return times | {(part.embed_dim, part.num_heads, part.mlp_ratio): part.ms for part in self.blocks}

    def predict(self, spec: SubnetSpec) -> float:
        """Milliseconds of one forward pass. Raises `AutoFormerError` for a choice that was not measured."""
        width = spec.embed_dim
        try:
            blocks = (
                self._times[width, heads, ratio] for heads, ratio in zip(spec.num_heads, spec.mlp_ratio, strict=True)
            )
            return self.constant_ms + self._times[width,] + sum(blocks)
        except KeyError as missing:
            raise AutoFormerError(f"latency: {missing} is not in the table of '{self.space.name}'; {REMEDY}") from None

    def extremes(self, space: SearchSpace) -> tuple[float, float]:
        """The lowest and the highest predicted latency, in milliseconds, of all subnets of a space."""
        choices, found = space.choices, list[float]()
        for width in choices.embed_dim:
            blocks = [self._times[width, heads, ratio] for heads in choices.num_heads for ratio in choices.mlp_ratio]
            for depth in choices.depth:
                found += [
                    self.constant_ms + self._times[width,] + depth * block for block in (min(blocks), max(blocks))
                ]
        return min(found), max(found)

    def check_fits(self, space: SearchSpace, where: str) -> None:
        """Raise `AutoFormerError` unless the table predicts every subnet of `space`.

        A space of another name or supernet is accepted: a subnet is measured as a model of its own, which depends on
        neither. `note_on` reports the difference.
        """
        for key in _SHAPE:
            measured, wanted = getattr(self.space, key), getattr(space, key)
            if measured != wanted:
                raise AutoFormerError(
                    f"{where}: measured for {key} = {measured}, but '{space.name}' has {wanted}; {REMEDY} for it"
                )
        for key in Choices.model_fields:
            missing = set(getattr(space.choices, key)) - set(getattr(self.space.choices, key))
            if missing:
                raise AutoFormerError(
                    f"{where}: measured without {key} = {min(missing):g} of '{space.name}'; {REMEDY} for it"
                )

    def note_on(self, space: SearchSpace) -> str:
        """A sentence if the table was measured for another space, which `check_fits` has accepted; else empty."""
        if self.space == space:
            return ""
        keys = ", ".join(key for key in SearchSpace.model_fields if getattr(self.space, key) != getattr(space, key))
        return (
            f"measured for the space '{self.space.name}', which differs from '{space.name}' in {keys}; "
            "the layers of a subnet are the same in both"
        )

    @property
    def median_error_percent(self) -> float | None:
        """Median error of the predictions for the checked subnets; None if there are none."""
        return median(subnet.error_percent for subnet in self.check) if self.check else None

    @property
    def conditions(self) -> str:
        """The device, threads, batch size and precision, in words."""
        threads = "" if self.threads is None else f", {quantity(self.threads, 'thread')}"
        return f"{self.device}{threads}, batch {self.batch_size}, {self.precision}"


def table_of_search(folder: Path) -> LatencyTable | None:
    """The latency table in a search's folder; None if there is none."""
    return read_latency_table(folder / FILE) if (folder / FILE).exists() else None


def read_latency_table(path: str | Path) -> LatencyTable:
    """Read a latency table. Raises `AutoFormerError` naming the file if it is missing or damaged."""
    return read_json_as(LatencyTable, Path(path), REMEDY)
