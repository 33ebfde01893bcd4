"""The JSON card beside a model's weights, with everything needed to use them. Torch-free."""

from pathlib import Path
from typing import Any, Literal

from autoformer.errors import validated
from autoformer.frozen import Frozen
from autoformer.images.pixel_rule import ON_BLACK, PixelRule
from autoformer.reading import read_json
from autoformer.space import SearchSpace, SubnetField


class Preprocessing(Frozen):
    """Pixel statistics of the input, the rule for 8-bit opaque pixels, and the class names."""

    mean: tuple[float, ...]  # of pixels in [0, 1], one per channel
    std: tuple[float, ...]
    classes: tuple[str, ...]
    pixels: PixelRule = ON_BLACK


class SupernetCard(Frozen):
    """`supernet.json`. `provenance`: seed, configuration, hashes of inputs, code version."""

    space: SearchSpace
    bias_rule: Literal["aligned", "official"] = "aligned"
    preprocessing: Preprocessing
    provenance: dict[str, Any]


class SubnetCard(SupernetCard):
    """`model.json`."""

    subnet: SubnetField


def read_supernet_card(folder: Path) -> SupernetCard:
    file = folder / "supernet.json"
    return validated(SupernetCard, read_json(file), str(file))


def read_subnet_card(folder: Path) -> SubnetCard:
    file = folder / "model.json"
    return validated(SubnetCard, read_json(file), str(file))
