"""The search spaces and subnets that come with the project, by name."""

from pathlib import Path

from autoformer.errors import AutoFormerError, nearest
from autoformer.space import NamedSubnet, SearchSpace

_PACKAGE = Path(__file__).resolve().parent
CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"


def load_space(name: str) -> SearchSpace:
    """A search space by the name of its file in `configs/spaces/`, or by the path of any such file."""
    return SearchSpace.from_yaml(_find(name, "spaces"))


def load_subnet(name: str) -> NamedSubnet:
    """A subnet by the name of its file in `configs/subnets/`, or by the path of any such file."""
    subnet = NamedSubnet.from_yaml(_find(name, "subnets"))
    subnet.check(load_space(subnet.space))
    return subnet


def _find(name: str, kind: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    path = CONFIGS / kind / f"{name}.yaml"
    if not path.is_file():
        known = [file.stem for file in (CONFIGS / kind).glob("*.yaml")]
        raise AutoFormerError(f"no file '{name}.yaml' in configs/{kind}; {nearest(name, known)}")
    return path
