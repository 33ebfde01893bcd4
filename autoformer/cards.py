"""The JSON beside the weights of a model: all that is needed to use them. Torch-free."""

from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, field_serializer, field_validator

from autoformer.errors import validated
from autoformer.files import read_json
from autoformer.frozen import Frozen
from autoformer.space import SearchSpace, SubnetSpec


class Preprocessing(Frozen):
    """Pixel statistics of the input, and names of the classes."""

    mean: tuple[float, ...]  # of pixels in [0, 1], one per channel
    std: tuple[float, ...]
    classes: tuple[str, ...]


class SupernetCard(Frozen):
    """`supernet.json`. `provenance`: seed, configuration, hashes of inputs, code version."""

    space: SearchSpace
    bias_rule: Literal["aligned", "official"] = "aligned"
    preprocessing: Preprocessing
    provenance: dict[str, Any]


class SubnetCard(SupernetCard):
    """`model.json`."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    subnet: SubnetSpec

    @field_validator("subnet", mode="before")
    @classmethod
    def _from_dict(cls, value: Any) -> SubnetSpec:
        return value if isinstance(value, SubnetSpec) else SubnetSpec.from_dict(value)

    @field_serializer("subnet")
    def _to_dict(self, spec: SubnetSpec) -> dict[str, Any]:
        return spec.to_dict()


def read_supernet_card(folder: Path) -> SupernetCard:
    file = folder / "supernet.json"
    return validated(SupernetCard, read_json(file), str(file))


def read_subnet_card(folder: Path) -> SubnetCard:
    file = folder / "model.json"
    return validated(SubnetCard, read_json(file), str(file))
