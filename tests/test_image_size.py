"""Models for images of another size: relative positions that are kept or stretched."""

from typing import Any

import pytest
import torch
from small import perturb, small_space
from torch import Tensor

from autoformer.attention import RelativePosition2D
from autoformer.errors import AutoFormerError
from autoformer.space import SubnetSpec, stretched_reach
from autoformer.supernet import Supernet
from autoformer.vit import AutoFormer

SPEC = SubnetSpec(3, 12, (2, 1, 3), (1.3, 2.0, 1.0))


def extracted(**changes: Any) -> AutoFormer:
    return perturb(Supernet(small_space(**changes))).extract(SPEC).eval()


def images(side: int) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_a_stretched_table_is_interpolated() -> None:
    """Entry 0 is the class token's. One offset on each side becomes two, and one again."""
    tables = RelativePosition2D(2, 1)
    values = torch.tensor([7.0, -99.0, 10.0, 20.0, 60.0, 99.0])[:, None]  # of offsets -2 to 2; 2 was never trained
    with torch.no_grad():
        tables.table_v.copy_(values)
        tables.table_h.copy_(-values)
    tables.stretch(1, 2)
    assert tables.table_v.flatten().tolist() == [7, 10, 15, 20, 40, 60]
    assert tables.table_h.flatten().tolist() == [-7, -10, -15, -20, -40, -60]
    tables.stretch(2, 1)
    assert tables.table_v.flatten().tolist() == [7, 10, 20, 60]
    assert tables.max_relative_position == 1


@pytest.mark.parametrize(
    ("reach", "grid", "new_grid", "expected"),
    [
        (14, 14, 18, 17),  # the published models at 288 pixels: 13 offsets were trained, 17 are wanted
        (14, 14, 24, 23),
        (14, 14, 12, 11),
        (14, 14, 14, 13),
        (2, 4, 7, 4),  # clipped before, clipped at the same part of the image after
        (3, 4, 2, 1),
        (5, 1, 4, 5),  # one patch knows no offsets
    ],
)
def test_the_reach_follows_the_grid(reach: int, grid: int, new_grid: int, expected: int) -> None:
    assert stretched_reach(reach, grid, new_grid) == expected


@pytest.mark.parametrize("reach", [2, 5])
@pytest.mark.parametrize("side", [4, 12, 16])
def test_a_stretched_model_is_one_of_the_resized_space(side: int, reach: int) -> None:
    """It can be saved, loaded and trained further."""
    model = extracted(max_relative_position=reach)
    space = small_space(max_relative_position=reach).resized(side, "stretch")
    model.set_input_size((side, side), offsets="stretch")
    fresh = AutoFormer.from_spec(space, SPEC).double().eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(images(side)), model(images(side)))
    assert model.max_relative_position == space.max_relative_position
    model.train()(images(side)).sum().backward()
    assert model.blocks[0].attn.rel_pos_k.table_h.grad is not None


@pytest.mark.parametrize("offsets", ["keep", "stretch"])
def test_the_same_size_changes_nothing(offsets: Any) -> None:
    model = extracted(max_relative_position=5)
    before, state = model(images(8)), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.set_input_size((8, 8), offsets=offsets)
    assert torch.equal(model(images(8)), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert small_space().resized(8, offsets) == small_space()


def test_only_a_stretched_model_uses_no_untrained_entries() -> None:
    """8 x 8 pixels are 4 x 4 patches, with offsets up to 3. Larger entries of the tables are untrained."""
    found = {}
    for offsets in ("keep", "stretch"):
        one, other = extracted(max_relative_position=5), extracted(max_relative_position=5)
        with torch.no_grad():
            for name, table in other.named_parameters():
                if "rel_pos" in name:
                    table[[1, 2, -2, -1]] += 1
        assert torch.equal(one(images(8)), other(images(8)))
        for model in (one, other):
            model.set_input_size((16, 16), offsets=offsets)  # type: ignore[arg-type]
        found[offsets] = torch.equal(one(images(16)), other(images(16)))
    assert found == {"keep": False, "stretch": True}


def test_a_size_that_patches_do_not_divide_is_refused() -> None:
    with pytest.raises(AutoFormerError, match="space 'small': patch_size 2 does not divide image_size 9"):
        small_space().resized(9)
