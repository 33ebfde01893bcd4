"""Search spaces and subnets by the names of their files in configs/."""

from pathlib import Path

from autoformer.errors import AutoFormerError, nearest
from autoformer.frozen import check_folder_name
from autoformer.space import NamedSubnet, SearchSpace

_PACKAGE = Path(__file__).resolve().parent
CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"


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
