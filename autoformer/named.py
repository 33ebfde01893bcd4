"""Search spaces and subnets by the names of their files in configs/, and the content of a named subnet."""

from pathlib import Path
from typing import Self

from autoformer.errors import AutoFormerError, nearest, validated
from autoformer.frozen import Frozen, Name, check_folder_name
from autoformer.reading import read_yaml
from autoformer.space import SearchSpace, SubnetField

_PACKAGE = Path(__file__).resolve().parent
CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"


class Published(Frozen):
    """Published ImageNet accuracy of a subnet with inherited weights, at its space's image size."""

    top1_percent: float
    top5_percent: float | None = None
    source: str


class NamedSubnet(Frozen):
    """The content of a file in `configs/subnets/`, or of a search's chosen.yaml."""

    name: Name
    space: Name
    source: str
    outside_space: str | None = None  # reason for values that the space does not offer
    published: Published | None = None
    subnet: SubnetField

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        return validated(cls, read_yaml(Path(path)), str(path))

    def check(self, space: SearchSpace) -> None:
        """Raise `AutoFormerError` unless the subnet is in `space`, or fits the supernet and has an `outside_space`."""
        if self.outside_space is None:
            space.check(self.subnet)
        space.check_fits(self.subnet)


def load_space(name: str | Path) -> SearchSpace:
    """A search space by its name in `configs/spaces/`, or by a file path."""
    return SearchSpace.from_yaml(file_of_space(str(name)))


def file_of_space(name: str) -> Path:
    """The file of a search space. Raises like `named_file`."""
    return named_file("spaces", name, "no file '{}.yaml' in configs/spaces; {}")


def load_subnet(name: str | Path) -> NamedSubnet:
    """A subnet by its name in `configs/subnets/`, or by a file path."""
    subnet = NamedSubnet.from_yaml(named_file("subnets", str(name), "no file '{}.yaml' in configs/subnets; {}"))
    subnet.check(load_space(subnet.space))
    return subnet


def named_file(folder: str, name: str, missing: str) -> Path:
    """The YAML file `name` in a folder of `configs/`, or `name` itself if it is a path.

    Raises:
        AutoFormerError: no such file. `missing` is the message, with placeholders for the name and the nearest names.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.exists() and path.name == name and (CONFIGS / folder / f"{path.stem}.yaml").is_file():
            raise AutoFormerError(f"{name}: no such file; did you mean '{path.stem}', that of configs/{folder}?")
        return path
    known = [file.stem for file in (CONFIGS / folder).glob("*.yaml")]
    try:
        check_folder_name(name)
    except ValueError:
        raise AutoFormerError(f"{missing.format(name, nearest(name, known))}; a path ends in .yaml") from None
    path = CONFIGS / folder / f"{name}.yaml"
    if not path.is_file():
        raise AutoFormerError(missing.format(name, nearest(name, known)))
    return path
