"""The convolutional stem: counts, tokens, timm's interface, tools, files, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from small import SPACES, perturb, small_space, specs, variants
from test_complexity import executed_macs
from torch import Tensor

from autoformer.complexity import count_macs, count_params
from autoformer.errors import AutoFormerError
from autoformer.export import export_program
from autoformer.named import load_space
from autoformer.space import SearchSpace, SubnetSpec
from autoformer.stem import ChannelsLastMaxPool2d, embed_by_stem, stem_layers
from autoformer.supernet import Supernet
from autoformer.vit import AutoFormer

SPACE = variants()["stem"]  # 28 pixels, halved three times to 4: two of the sizes are rounded up
SPEC = SubnetSpec(2, 12, (2, 1), (1.3, 2.0))


def model_of(space: SearchSpace = SPACE) -> AutoFormer:
    return perturb(Supernet(space)).extract(SPEC).eval()


def images(size: int = 28, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 3, size, size, generator=generator, dtype=torch.float64)


@given(spec=specs(SPACE))
@settings(max_examples=15, deadline=None)
def test_parameters_and_macs_are_those_of_the_model(spec: SubnetSpec) -> None:
    model = AutoFormer.from_spec(SPACE, spec).eval()
    assert count_params(SPACE, spec) == sum(parameter.numel() for parameter in model.parameters())
    plain = SPACE.model_copy(update={"relative_position": False})
    alone = AutoFormer.from_spec(plain, spec).eval()
    assert executed_macs(lambda: alone(torch.zeros(1, 3, 28, 28))) == count_macs(plain, spec)


def test_the_counts_by_hand() -> None:
    """3 -> 6 channels at 28 x 28, 6 -> 5 at 14 x 14, 5 -> 12 at 4 x 4, 9 weights each."""
    patches = small_space(image_size=28, patch_size=7, max_relative_position=3)
    stem, patch = (3 * 9 + 1) * 6 + (6 * 9 + 1) * 5 + (5 * 9 + 1) * 12, (3 * 49 + 1) * 12
    assert count_params(SPACE, SPEC) - count_params(patches, SPEC) == stem - patch
    macs = 784 * 27 * 6 + 196 * 54 * 5 + 16 * 45 * 12
    assert count_macs(SPACE, SPEC) - count_macs(patches, SPEC) == macs - 16 * 147 * 12


@pytest.mark.parametrize("name", SPACES)
def test_published_spaces_have_none(name: str) -> None:
    space = load_space(name)
    assert space.stem_channels == () and "patch_embed.proj.weight" in Supernet(space).state_dict()


def test_tokens_are_the_grid_of_convolutions_row_by_row() -> None:
    layers = stem_layers(1, (2, 3), 4).double()
    x = torch.randn(2, 1, 28, 28, dtype=torch.float64)
    y = torch.nn.functional.gelu(torch.nn.functional.max_pool2d(layers[0](x), 2))
    y = torch.nn.functional.gelu(torch.nn.functional.max_pool2d(layers[3](y), 2))
    y = torch.nn.functional.conv2d(y, layers[6].weight, layers[6].bias, stride=2, padding=1)
    assert y.shape == (2, 4, 4, 4)
    tokens = embed_by_stem(x, layers, 4)
    for row in range(4):
        for column in range(4):
            torch.testing.assert_close(tokens[:, 4 * row + column], y[:, :, row, column])


@pytest.mark.parametrize("size", [(8, 6), (7, 5)])
def test_pooling_is_pytorchs_also_in_its_choice_among_equal_pixels(size: tuple[int, int]) -> None:
    whole = torch.randint(4, (2, 3, *size), generator=torch.Generator().manual_seed(0))
    ours, theirs = (whole.double().requires_grad_() for _ in range(2))
    pooled, expected = (
        ChannelsLastMaxPool2d(2, ceil_mode=True)(ours),
        torch.nn.functional.max_pool2d(theirs, 2, ceil_mode=True),
    )
    torch.testing.assert_close(pooled, expected, rtol=0, atol=0)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for result in (pooled, expected):
        (result * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=0)
    torch.testing.assert_close(ChannelsLastMaxPool2d(2, ceil_mode=True)(ours[0]), pooled[0], rtol=0, atol=0)


def test_gradients_of_single_images_are_those_of_images_alone() -> None:
    """By torch.func.vmap, as for differential privacy."""
    model, x = model_of(), images(batch=2)
    params = {name: one.detach() for name, one in model.named_parameters()}

    def loss(params: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(model, params, (image[None],)).square().sum()

    together = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(params, x)
    for number, image in enumerate(x):
        alone = torch.func.grad(loss)(params, image)
        for name in params:
            torch.testing.assert_close(together[name][number], alone[name])


def test_the_interface_of_timm_works() -> None:
    model = model_of()
    x = images()
    features = model.forward_features(x)
    assert features.shape == (2, 17, 12)
    torch.testing.assert_close(model.forward_head(features), model(x))
    final, maps = model.forward_intermediates(x, indices=[1])
    torch.testing.assert_close(final, features)
    assert maps[0].shape == (2, 12, 4, 4)
    first = model.get_submodule(model.pretrained_cfg["first_conv"])
    assert isinstance(first, torch.nn.Conv2d) and first.in_channels == 3
    assert model.patch_embed.grid_size == (4, 4) and model.patch_embed.num_patches == 16
    again = AutoFormer.from_spec(SPACE, SPEC).double().eval()
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(x), model(x))


def test_another_image_size_has_the_grid_that_the_convolutions_make() -> None:
    model, dynamic = model_of(), AutoFormer(
        img_size=28, patch_size=7, num_classes=5, embed_dim=12, num_heads=(2, 1), mlp_ratio=(1.3, 2.0), head_dim=4,
        stem_channels=(6, 5), max_relative_position=3, dynamic_img_size=True, dynamic_img_pad=True,
    ).double().eval()  # fmt: skip
    dynamic.load_state_dict(model.state_dict())
    for size, grid in ((21, 3), (35, 5), (56, 7)):  # patches would make 8 of the last
        model.set_input_size(img_size=size)
        assert model.patch_embed.grid_size == (grid, grid)
        assert model(images(size)).shape == (2, 5)
        assert dynamic.patch_embed.dynamic_feat_size((size, size)) == (grid, grid)
        torch.testing.assert_close(dynamic(images(size)).isfinite().all(), torch.tensor(True))
    with pytest.raises(AutoFormerError, match="a convolutional stem has no patch size to change"):
        model.set_input_size(patch_size=4)


@pytest.mark.parametrize("tool", [
    torch.jit.script,
    lambda model: torch.jit.trace(model, images()),
    torch.fx.symbolic_trace,
    lambda model: torch.export.export(model, (images(),)).module(),
], ids=["script", "trace", "fx", "export"])  # fmt: skip
def test_tools_give_the_logits_of_the_model(tool: Any) -> None:
    model = model_of()
    torch.testing.assert_close(tool(model)(images()), model(images()))


def test_an_exported_file_gives_the_logits_for_any_batch(tmp_path: Path) -> None:
    model = model_of().float()
    export_program(model, tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    for batch in (1, 5):
        torch.testing.assert_close(program(images(batch=batch).float()), model(images(batch=batch).float()))


def test_a_stem_that_does_not_make_the_grid_is_refused() -> None:
    for changes, says in (
        ({"stem_channels": (6,)}, r"\[6\] halve 28 pixels 2 times, to 7, but patch_size 7 makes a grid of 4"),
        ({"stem_channels": (6, 0)}, "greater than 0"),
        ({"image_size": 56, "patch_size": 7}, "to 7, but patch_size 7 makes a grid of 8"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            SearchSpace.model_validate(SPACE.model_dump() | changes)
    with pytest.raises(AutoFormerError, match="makes a grid of 8"):
        SPACE.resized(56)
    assert SPACE.resized(21).grid == 3
