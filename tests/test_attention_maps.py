"""Attention maps, by the recipes that people use on timm's models: `fused_attn`, `attn_drop`, `AttentionExtract`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
from test_model_tools import TOOLS, _quiet, images, small  # noqa: F401
from timm.layers import set_fused_attn
from timm.utils import AttentionExtract
from torch import Tensor

from autoformer.attention import RelativePosition2D
from autoformer.blocks import Attention
from autoformer.vit import AutoFormer

KINDS: dict[str, dict[str, Any]] = {
    "square": {},
    "clipped offsets, class token": {"max_relative_position": 1, "global_pool": "token"},
    "oblong": {"img_size": (32, 80)},
    "no relative position": {"max_relative_position": None},
}


def unfused(model: AutoFormer, fused: bool = False) -> AutoFormer:
    for block in model.blocks:
        block.attn.fused_attn = fused
    return model


def pairs(tables: RelativePosition2D, grid: tuple[int, int]) -> Tensor:
    """The vector of every pair of tokens (N, N, d), by the definition."""
    limit, places = tables.max_relative_position, [(y, x) for y in range(grid[0]) for x in range(grid[1])]
    entry = torch.zeros(2, len(places) + 1, len(places) + 1, dtype=torch.long)
    for i, (y, x) in enumerate(places, 1):
        for j, (other_y, other_x) in enumerate(places, 1):
            entry[0, i, j] = max(-limit, min(limit, other_y - y)) + limit + 1
            entry[1, i, j] = max(-limit, min(limit, other_x - x)) + limit + 1
    return tables.table_v[entry[0]] + tables.table_h[entry[1]]


def weights_by_definition(attention: Attention, qkv: Tensor) -> Tensor:
    """softmax((q k + q R) / sqrt(d)) from the output of the layer `qkv`. (B, H, N, N)."""
    q, k, _ = qkv.unflatten(-1, (attention.num_heads, 3, attention.head_dim)).unbind(3)
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k)
    if attention.rel_pos_k is not None:
        scores = scores + torch.einsum("bnhd,nmd->bhnm", q, pairs(attention.rel_pos_k, attention.grid))
    return (scores / attention.head_dim**0.5).softmax(-1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_hook_on_attn_drop_sees_the_attention_with_relative_position(kind: str) -> None:
    model, maps, wanted = unfused(small(**KINDS[kind])), list[Tensor](), list[Tensor]()
    for block in model.blocks:
        definition = partial(weights_by_definition, block.attn)
        block.attn.qkv.register_forward_hook(lambda _, _x, out, find=definition: wanted.append(find(out)))
        block.attn.attn_drop.register_forward_hook(lambda _, _x, out: maps.append(out))
    with torch.no_grad():
        model(images(2, *model.patch_embed.img_size))
    torch.testing.assert_close(maps, wanted)
    assert [one.shape[1] for one in maps] == [3, 4] and maps[0].std() > 0.01
    rollout = torch.eye(maps[0].shape[-1], dtype=torch.float64)
    for one in maps:
        rollout = (one.mean(1) + torch.eye(one.shape[-1])) / 2 @ rollout
    torch.testing.assert_close(rollout.sum(-1), torch.ones(2, len(rollout[0]), dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_gradients_and_weights_are_those_of_the_fused_form(kind: str) -> None:
    model = small(**KINDS[kind])
    x, tokens = images(2, *model.patch_embed.img_size), model.pos_embed.shape[1]
    mask = torch.ones(tokens, tokens, dtype=torch.bool).index_fill(1, torch.tensor([3]), False)

    def results() -> list[Tensor]:
        model.zero_grad()
        logits = model(x)
        logits.square().sum().backward()
        masked = [model.forward_features(x, is_causal=True), model.forward_features(x, attn_mask=mask)]
        return [logits, *masked, *(parameter.grad.clone() for parameter in model.parameters())]

    keys = list(model.state_dict())
    fused = results()
    unfused(model)
    torch.testing.assert_close(results(), fused)
    assert list(model.state_dict()) == keys and not any("attn_drop" in key for key in keys)


def test_images_of_another_size_have_their_own_maps() -> None:
    model = small(dynamic_img_size=True)
    x = images(2, 96, 48)
    torch.testing.assert_close(unfused(model)(x), unfused(model, True)(x))
    maps = AttentionExtract(unfused(model), method="hook")(x)
    assert [one.shape for one in maps.values()] == [(2, 3, 19, 19), (2, 4, 19, 19)]


@pytest.mark.parametrize(("method", "names"), [("fx", "softmax"), ("hook", "attn_drop")])
def test_timms_attention_extract_finds_the_maps_of_every_block(method: str, names: str) -> None:
    model = unfused(small())
    wanted = list[Tensor]()
    for block in model.blocks:
        block.attn.attn_drop.register_forward_hook(lambda _, _x, out: wanted.append(out))
    with torch.no_grad():
        model(images(2))
        found = AttentionExtract(model, method=method)(images(2))
    assert list(found) == [f"blocks.{number}.attn.{names}" for number in (0, 1)]
    torch.testing.assert_close(list(found.values()), wanted[:2])


def test_timms_switch_decides_how_a_new_model_attends() -> None:
    assert small().blocks[0].attn.fused_attn
    set_fused_attn(False)
    try:
        assert not timm.create_model("autoformer_tiny", img_size=32).blocks[0].attn.fused_attn
    finally:
        set_fused_attn(True)


@pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)
def test_what_a_tool_makes_without_fused_attention_gives_the_same_logits(tool: Callable[[AutoFormer], Any]) -> None:
    model = small()
    with torch.no_grad():
        wanted = model(images(2))
        torch.testing.assert_close(tool(unfused(model))(images(2)), wanted, rtol=1e-5, atol=1e-5)
