"""Search spaces and their subnets. Torch-free.

A search space (paper section 3.3 and table 1) has the choices of embedding width, depth, heads and MLP ratio, and the
size of the supernet. A `SubnetSpec` is one point of it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, PlainSerializer, field_validator, model_validator

from autoformer.bounds import BOUNDS
from autoformer.errors import AutoFormerError, check_choice, quantity, short_repr, validated
from autoformer.frozen import Frozen, Name
from autoformer.reading import parse_json_text, read_yaml

Offsets = Literal["keep", "stretch"]  # of relative positions at another image size; see `AutoFormer.set_input_size`
MOST = 2**16  # of a width, a side or a number of heads; `BOUNDS` limits their product
_FIELDS = ("depth", "embed_dim", "num_heads", "mlp_ratio")


@dataclass(frozen=True, order=True)
class SubnetSpec:
    """Depth, embedding width, and heads and MLP ratio of each block.

    Raises `AutoFormerError` for a value that is not positive, or a list without one entry per block.
    """

    depth: int
    embed_dim: int
    num_heads: tuple[int, ...]
    mlp_ratio: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("depth", "embed_dim"):
            object.__setattr__(self, name, _positive(name, getattr(self, name), int))
        for name, kind in (("num_heads", int), ("mlp_ratio", float)):
            values = getattr(self, name)
            if isinstance(values, str) or not isinstance(values, Sequence):
                raise AutoFormerError(f"subnet: {name} = {values!r}: expected a list, one entry for each block")
            object.__setattr__(self, name, tuple(_positive(name, value, kind) for value in values))
            if len(values) != self.depth:
                raise AutoFormerError(
                    f"subnet: {name} has {quantity(len(values), 'entry')} for depth {self.depth}; give one a block"
                )
        if int(self.embed_dim * min(self.mlp_ratio)) < 1:
            raise AutoFormerError(
                f"subnet: mlp_ratio = {min(self.mlp_ratio):g} of embed_dim {self.embed_dim} is an MLP without channels"
            )

    def hidden_dim(self, block: int) -> int:
        """Width of the MLP of a block, truncated as in the official code."""
        return int(self.embed_dim * self.mlp_ratio[block])

    def to_dict(self) -> dict[str, Any]:
        return {
            "depth": self.depth,
            "embed_dim": self.embed_dim,
            "num_heads": list(self.num_heads),
            "mlp_ratio": list(self.mlp_ratio),
        }

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        if not isinstance(data, Mapping) or set(data) != set(_FIELDS):
            found = ", ".join(map(str, data)) if isinstance(data, Mapping) else type(data).__name__
            raise AutoFormerError(f"subnet: a subnet has the keys {', '.join(_FIELDS)}; found {found}")
        return cls(**data)

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls.from_dict(parse_json_text(text, "subnet"))

    def values(self) -> list[tuple[str, float]]:
        """Pairs of field and value, one for each block in `num_heads` and `mlp_ratio`."""
        by_block = [(name, value) for name in ("num_heads", "mlp_ratio") for value in getattr(self, name)]
        return [("depth", self.depth), ("embed_dim", self.embed_dim), *by_block]


def _to_spec(value: Any) -> SubnetSpec:
    return value if isinstance(value, SubnetSpec) else SubnetSpec.from_dict(value)


SubnetField = Annotated[SubnetSpec, BeforeValidator(_to_spec), PlainSerializer(SubnetSpec.to_dict)]
"""A field of a pydantic model, a mapping in JSON and YAML."""


def _positive(name: str, value: Any, kind: type) -> Any:
    is_number = isinstance(value, Real) and not isinstance(value, bool)  # numpy's and pandas' too
    if not is_number or not 0 < value <= MOST or kind(value) != value:
        expected = "number" if kind is float else "integer"
        raise AutoFormerError(f"subnet: {name} = {short_repr(value)}: expected a positive {expected}, {MOST:,} at most")
    return kind(value)


class SupernetSize(Frozen):
    """The dimensions of the supernet, an upper bound for every subnet."""

    embed_dim: int = Field(gt=0, le=MOST, description="channels of a token")
    depth: int = Field(gt=0, le=1000, description="blocks")
    num_heads: int = Field(gt=0, le=MOST, description="attention heads of each block")
    mlp_ratio: float = Field(gt=0, le=1000, description="hidden width of each block's MLP, as a multiple of embed_dim")


class Choices(Frozen):
    """The choices of each dimension; heads and MLP ratio are chosen per block."""

    embed_dim: tuple[int, ...] = Field(description="ascending; one for the whole subnet")
    depth: tuple[int, ...] = Field(description="ascending; one for the whole subnet")
    num_heads: tuple[int, ...] = Field(description="ascending; one for each block")
    mlp_ratio: tuple[float, ...] = Field(description="ascending; one for each block")

    @field_validator("*")
    @classmethod
    def _ascending(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if not values or values[0] <= 0 or list(values) != sorted(set(values)):
            raise ValueError("expected positive choices, each once, in ascending order")
        return values


class SearchSpace(Frozen):
    """The shape of the images, the supernet, and the choices."""

    name: Name = Field(min_length=1, description="that of the file")
    image_size: int = Field(gt=0, le=MOST, description="pixels in height and in width")
    patch_size: int = Field(gt=0, le=MOST, description="pixels in height and in width; divides image_size")
    in_channels: int = Field(gt=0, le=MOST, description="1 for grey, 3 for RGB")
    num_classes: int = Field(gt=0, le=BOUNDS.classes, description="of the data set")
    head_dim: int = Field(gt=0, le=MOST, description="channels of an attention head")
    max_relative_position: int = Field(gt=0, le=MOST, description="patches; greater offsets share one entry")
    relative_position: bool = Field(True, description="whether attention has relative position")
    pooling: Literal["mean", "class_token"] = Field(
        "mean", description="input of the classifier: the mean of the patches, or the class token"
    )
    stem_channels: tuple[Annotated[int, Field(gt=0, le=MOST)], ...] = Field(
        (),
        description="a stem of 3 x 3 convolutions that each halve the image, in place of the patch embedding: channels "
        "of each but the last, which has embed_dim; [] for patches",
    )
    supernet: SupernetSize
    choices: Choices

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} does not divide image_size {self.image_size}")
        halvings = len(self.stem_channels) + 1
        if self.stem_channels and halved(self.image_size, halvings) != self.grid:
            raise ValueError(
                f"stem_channels {list(self.stem_channels)} halve {self.image_size} pixels "
                f"{quantity(halvings, 'time')}, to {halved(self.image_size, halvings)}, but patch_size "
                f"{self.patch_size} makes a grid of {self.grid}"
            )
        for field, choices in self.choices:
            if max(choices) > getattr(self.supernet, field):
                raise ValueError(
                    f"choices.{field} has {max(choices)}, but supernet.{field} is {getattr(self.supernet, field)}; "
                    "raise the supernet's or drop the choice"
                )
        width, ratio = self.choices.embed_dim[0], self.choices.mlp_ratio[0]
        if int(width * ratio) < 1:
            raise ValueError(f"choices.mlp_ratio has {ratio:g}: at embed_dim {width} an MLP without channels")
        if self.num_patches > BOUNDS.patches:
            raise ValueError(f"{self.num_patches:,} patches in an image, {BOUNDS.patches:,} at most")
        if (weights := self._weights()) > BOUNDS.params:
            raise ValueError(f"a supernet of about {weights:,.0f} parameters, {BOUNDS.params:,} at most")
        return self

    def _weights(self) -> float:
        """Approximate parameters of the supernet, without biases and norms; `autoformer.complexity` counts exactly."""
        embed, width, size = self.supernet.embed_dim, self.supernet.num_heads * self.head_dim, self.supernet
        tables = 8 * self.max_relative_position * self.head_dim
        blocks = size.depth * (4 * embed * width + 2 * embed**2 * size.mlp_ratio + tables)
        channels = (self.in_channels, *self.stem_channels, embed)
        stem = sum(9 * one * other for one, other in pairwise(channels))
        return (
            blocks
            + max(stem, self.in_channels * self.patch_size**2 * embed)
            + embed * (self.num_patches + self.num_classes)
        )

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Read a search space file. Raises `AutoFormerError` naming the file and the key."""
        return validated(cls, read_yaml(Path(path)), str(path))

    @property
    def grid(self) -> int:
        """Patches on a side of the image."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.grid**2

    @property
    def smallest(self) -> SubnetSpec:
        return self._extreme(min)

    @property
    def whole(self) -> SubnetSpec:
        """The whole supernet as a subnet, which may be larger than the largest choices."""
        size = self.supernet
        return SubnetSpec(size.depth, size.embed_dim, (size.num_heads,) * size.depth, (size.mlp_ratio,) * size.depth)

    @property
    def largest(self) -> SubnetSpec:
        return self._extreme(max)

    @property
    def middle(self) -> SubnetSpec:
        """The subnet of the middle choices; of an even number of choices, the upper middle one."""
        return self._extreme(lambda choices: choices[len(choices) // 2])

    def _extreme(self, pick: Any) -> SubnetSpec:
        c = self.choices
        depth = pick(c.depth)
        return SubnetSpec(depth, pick(c.embed_dim), (pick(c.num_heads),) * depth, (pick(c.mlp_ratio),) * depth)

    def resized(self, image_size: int, offsets: Offsets = "keep") -> Self:
        """The space for another image size; `offsets` as in `AutoFormer.set_input_size`.

        Raises `AutoFormerError` if the patches do not divide that size.
        """
        check_choice("offsets", offsets, get_args(Offsets))
        reach = self.max_relative_position
        if offsets == "stretch" and image_size != self.image_size:
            reach = stretched_reach(reach, self.grid, image_size // self.patch_size)
        changed = self.model_dump() | {"image_size": image_size, "max_relative_position": reach}
        return validated(type(self), changed, f"space '{self.name}'")

    def count(self) -> int:
        """The number of different subnets."""
        c = self.choices
        blocks = len(c.num_heads) * len(c.mlp_ratio)
        return len(c.embed_dim) * sum(blocks**depth for depth in c.depth)

    def sample(self, rng: Random) -> SubnetSpec:
        """A subnet with every choice uniform, so every depth is equally likely.

        Drawn in the official order: depth, MLP ratios, heads, width.
        """
        c = self.choices
        depth = rng.choice(c.depth)
        mlp_ratio = tuple(rng.choice(c.mlp_ratio) for _ in range(depth))
        num_heads = tuple(rng.choice(c.num_heads) for _ in range(depth))
        return SubnetSpec(depth, rng.choice(c.embed_dim), num_heads, mlp_ratio)

    def check(self, spec: SubnetSpec) -> None:
        """Raise `AutoFormerError` unless `spec` is a subnet of this space."""
        for field, value in spec.values():
            choices = getattr(self.choices, field)
            if value not in choices:
                raise AutoFormerError(
                    f"subnet: {field} = {value:g} is not in the search space '{self.name}'; "
                    f"legal choices: {', '.join(f'{choice:g}' for choice in choices)}"
                )

    def check_fits(self, spec: SubnetSpec) -> None:
        """Raise `AutoFormerError` unless `spec` is a slice of the supernet.

        Weaker than `check`: the published AutoFormer-T has an MLP ratio of 3.0, which its space does not offer.
        """
        for field, value in spec.values():
            limit = getattr(self.supernet, field)
            if value > limit:
                raise AutoFormerError(
                    f"subnet: {field} = {value:g} is larger than the supernet of '{self.name}', which has {limit:g}"
                )


def halved(size: int, times: int) -> int:
    """Pixels on a side after being halved so many times, rounded up each time."""
    return -(-size // 2**times)


def stretched_reach(reach: int, grid: int, new_grid: int) -> int:
    """`max_relative_position` in patches, after the offsets in use on the old grid are stretched to a new grid."""
    used = min(reach, grid - 1)
    return max(1, round(used * (new_grid - 1) / (grid - 1))) if grid > 1 else reach
