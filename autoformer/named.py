"""The files of configs/ by name: search spaces and subnets, and the rule by which all of them are found."""

from pathlib import Path

from autoformer.errors import AutoFormerError, nearest
from autoformer.space import NamedSubnet, SearchSpace

_PACKAGE = Path(__file__).resolve().parent
CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"


def load_space(name: str) -> SearchSpace:
    """A search space by the name of its file in `configs/spaces/`, or by the path of any such file."""
    return SearchSpace.from_yaml(named_file("spaces", name, "no file '{}.yaml' in configs/spaces; {}"))


def load_subnet(name: str) -> NamedSubnet:
    """A subnet by the name of its file in `configs/subnets/`, or by the path of any such file."""
    subnet = NamedSubnet.from_yaml(named_file("subnets", name, "no file '{}.yaml' in configs/subnets; {}"))
    subnet.check(load_space(subnet.space))
    return subnet


def named_file(folder: str, name: str, missing: str) -> Path:
    """The YAML file of a name in a folder of `configs/`, or the path itself where `name` is one.

    Raises:
        AutoFormerError: there is no such file; `missing` with the name and the nearest names filled in.
    """
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    path = CONFIGS / folder / f"{name}.yaml"
    if not path.is_file():
        known = [file.stem for file in path.parent.glob("*.yaml")]
        raise AutoFormerError(missing.format(name, nearest(name, known)))
    return path
