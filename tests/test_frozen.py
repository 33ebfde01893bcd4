"""The validated values of the library, constructed directly: one line that names the class, the key and the fault."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest
from small import small_space

from autoformer.errors import AutoFormerError, validated
from autoformer.images.pixel_rule import PixelRule
from autoformer.limits import Limits
from autoformer.named import NamedSubnet
from autoformer.racing import Racing
from autoformer.recipe import Augmentation, Recipe
from autoformer.search import EvolutionSettings
from autoformer.space import Choices, SupernetSize

WRONG: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (Limits, {"max_params_m": -1}, "Limits: max_params_m = -1: input should be greater than 0"),
    (Limits, {"max_param_m": 1}, "Limits: unknown key 'max_param_m'; did you mean 'max_params_m'?"),
    (Limits, {"min_macs_g": 2, "max_macs_g": 1}, "Limits: min_macs_g 2 is above max_macs_g 1"),
    (Limits, {"relative_position": "mine"}, "Limits: relative_position = 'mine': input should be 'none', 'published'"),
    (Limits, {"max_params_m": float("nan")}, "Limits: max_params_m = nan: "),
    (EvolutionSettings, {"parents": 99}, "EvolutionSettings: parents 99 are more than population 50"),
    (EvolutionSettings, {"populatoin": 9}, "EvolutionSettings: unknown key 'populatoin'; did you mean 'population'?"),
    (Racing, {"first": True}, "Racing: "),
    (Recipe, {"epochs": 0}, "Recipe: "),
    (Augmentation, {"flip": "perhaps"}, "Augmentation: flip = 'perhaps': "),
    (PixelRule, {"background": 256}, "PixelRule: background = 256: "),
    (SupernetSize, {"embed_dim": 8, "depth": 1, "num_heads": 1}, "SupernetSize: 'mlp_ratio' is missing"),
    (small_space, {"patch_size": 3}, "SearchSpace: patch_size 3 does not divide image_size 8"),
    (small_space, {"supernet": {"embed_dim": 0}}, "SearchSpace: supernet.embed_dim = 0: input should be"),
    (NamedSubnet, {"name": "x", "space": "y", "source": "z", "subnet": 5}, "NamedSubnet: subnet = 5: subnet: a"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "values", "says"), WRONG, ids=[says[:40] for _, _, says in WRONG])
def test_a_wrong_value_is_one_line(kind: Callable[..., Any], values: dict[str, Any], says: str) -> None:
    with pytest.raises(AutoFormerError) as caught:
        kind(**values)
    message = str(caught.value)
    assert message.startswith(says) and "\n" not in message and "pydantic" not in message
    assert str(pickle.loads(pickle.dumps(caught.value))) == message


def test_a_value_within_another_keeps_its_whole_key() -> None:
    """Pydantic does not construct it by its class's own `__init__`."""
    data = small_space().model_dump() | {
        "choices": {"embed_dim": [8], "depth": [1], "num_heads": [0], "mlp_ratio": [1]}
    }
    with pytest.raises(AutoFormerError, match=r"^mine: choices\.num_heads = \[0\]: expected positive choices"):
        validated(type(small_space()), data, "mine")


def test_sound_values_are_as_before() -> None:
    choices = Choices(embed_dim=(8,), depth=(1,), num_heads=(1, 2), mlp_ratio=(1,))
    assert choices == Choices.model_validate(choices.model_dump()) and choices.mlp_ratio == (1.0,)
    assert Limits() == Limits.model_validate({})


def test_a_limit_on_latency_needs_one() -> None:
    with pytest.raises(AutoFormerError, match="a limit on latency needs a latency; count with a latency table"):
        Limits(max_latency_ms=1).allow({"params_m": 1})
