"""A space or a model's card may name any size: what would take all memory is refused before anything is made of it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tracking_fixtures import subnet_folder

from autoformer.checkpoint import load_subnet, load_supernet, save_supernet
from autoformer.errors import AutoFormerError
from autoformer.named import load_space
from autoformer.racing import Racing
from autoformer.space import SearchSpace
from runtime.common.config import load_config

__all__ = ["subnet_folder"]
HUGE = {
    "depth": {"supernet": {"depth": 10**9}},
    "width": {"supernet": {"embed_dim": 10**12}},
    "width and depth": {"supernet": {"embed_dim": 60_000, "depth": 900}},
    "heads": {"supernet": {"num_heads": 60_000}},
    "hidden width": {"supernet": {"mlp_ratio": 1e9}},
    "width of a head": {"head_dim": 10**7},
    "classes": {"num_classes": 10**9},
    "offsets": {"max_relative_position": 10**9},
    "channels": {"in_channels": 10**9},
    "patches": {"image_size": 7 * 2**13, "stem_channels": []},
    "stem": {"stem_channels": [60_000, 60_000]},
}  # fmt: skip


@pytest.mark.parametrize("kind", HUGE)
def test_a_space_beyond_all_memory_is_refused(kind: str) -> None:
    space = load_space("fashion-mnist").model_dump(mode="json")
    changed: Any = HUGE[kind]
    with pytest.raises(ValidationError, match=r"less than or equal|at most"):
        SearchSpace.model_validate(space | changed | {"supernet": space["supernet"] | changed.get("supernet", {})})


def test_a_model_larger_than_its_weights_is_refused_before_it_is_built(subnet_folder: Path, tmp_path: Path) -> None:
    """900 blocks of a full width take seconds and half a gigabyte."""
    shutil.copytree(subnet_folder, tmp_path / "model")
    card = json.loads((tmp_path / "model" / "model.json").read_text())
    card["space"]["supernet"]["depth"], card["space"]["choices"]["depth"] = 900, [900]
    card["subnet"] = {"depth": 900, "embed_dim": 128, "num_heads": [4] * 900, "mlp_ratio": [4.0] * 900}
    (tmp_path / "model" / "model.json").write_text(json.dumps(card))
    with pytest.raises(
        AutoFormerError, match=r"model.safetensors: not the weights .* bytes for \d+,\d+,\d+ parameters"
    ):
        load_subnet(tmp_path / "model")


def test_a_supernet_larger_than_its_weights_is_refused_before_it_is_built(tmp_path: Path) -> None:
    from autoformer.cards import Preprocessing, SupernetCard

    space = load_space("fashion-mnist")
    preprocessing = Preprocessing(mean=(0.0,), std=(1.0,), classes=tuple(map(str, range(10))))
    card = SupernetCard(space=space, preprocessing=preprocessing, provenance={})
    save_supernet(tmp_path / "supernet", {"a": torch.zeros(1)}, None, card)
    with pytest.raises(AutoFormerError, match=r"weights.safetensors: not the weights .* parameters"):
        load_supernet(tmp_path / "supernet")


def test_a_race_has_a_bounded_number_of_rounds() -> None:
    assert len(Racing(growth=1.01, first_images=1).rounds(10**8)) < 3000
    with pytest.raises(AutoFormerError, match=r"racing\.growth"):
        load_config("smoke", ["search_subnet.racing={growth: 1.0000000000000002}"])
