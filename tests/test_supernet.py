"""The supernet: slices are small layers, attention is its plain twin, and nothing keeps an active subnet."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small import perturb, small_space, variants
from torch import Tensor, nn

from autoformer.attention import RelativePosition2D, attend_with_position, position_tables
from autoformer.checkpoint import load_supernet
from autoformer.complexity import count_macs
from autoformer.errors import AutoFormerError
from autoformer.layers import SlicedLayerNorm, SlicedLinear, embed_patches
from autoformer.sampling import make_sampler
from autoformer.space import SearchSpace, SubnetSpec
from autoformer.supernet import Supernet, SupernetQKV
from autoformer.vit import AutoFormer

SPEC = SubnetSpec(2, 12, (2, 1), (1.3, 2.0))
OTHER = SubnetSpec(3, 16, (3, 1, 2), (2.0, 1.0, 1.3))


def images(space: SearchSpace, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, space.in_channels, space.image_size, space.image_size)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


# --- layers ---


def test_sliced_linear_is_a_small_linear() -> None:
    large, small = perturb(SlicedLinear(10, 8)), nn.Linear(6, 5).double()
    small.load_state_dict({"weight": large.weight[:5, :6], "bias": large.bias[:5]})
    x = drawn(2, 3, 6)
    close(large(x, 5), small(x))


def test_sliced_linear_without_bias() -> None:
    large = SlicedLinear(10, 8, bias=False).double()
    x = drawn(2, 6)
    close(large(x, 5), F.linear(x, large.weight[:5, :6]))


def test_sliced_layer_norm_is_a_small_layer_norm() -> None:
    large, small = perturb(SlicedLayerNorm(10, eps=1e-5)), nn.LayerNorm(6, eps=1e-5).double()
    small.load_state_dict({"weight": large.weight[:6], "bias": large.bias[:6]})
    x = drawn(2, 3, 6)
    close(large(x), small(x))


def test_patch_embedding_is_the_convolution() -> None:
    conv = nn.Conv2d(3, 6, kernel_size=2, stride=2).double()
    assert conv.bias is not None
    x = drawn(2, 3, 8, 8)
    expected = conv(x).flatten(2).transpose(1, 2)
    close(embed_patches(x, conv.weight, conv.bias), expected)


def test_qkv_of_fewer_heads_is_a_prefix() -> None:
    large, small = perturb(SupernetQKV(10, 4, 8, "aligned")), nn.Linear(6, 3 * 2 * 8).double()
    small.load_state_dict({"weight": large.weight[:48, :6], "bias": large.bias[:48]})
    x = drawn(2, 5, 6)
    out = large(x, 2)
    assert out.shape == (2, 5, 2, 3, 8)
    close(out, small(x).view(2, 5, 2, 3, 8))
    close(out, large(x, 4)[:, :, :2])  # a head is the same head in both


def test_official_bias_rule_reads_q_k_and_v_one_after_the_other() -> None:
    large = perturb(SupernetQKV(10, 4, 8, "official"))
    bias = large.bias_of(2).view(2, 3, 8)
    for component in range(3):
        for head in range(2):
            start = component * 16 + head * 8
            assert torch.equal(bias[head, component], large.bias[start : start + 8])


# --- attention ---


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, on_keys: RelativePosition2D, on_values: RelativePosition2D
) -> Tensor:
    """The official form, with a vector for every pair of tokens. q, k, v: (B, N, H, d)."""
    tokens, dim, limit = q.shape[1], q.shape[-1], on_keys.max_relative_position
    grid = round((tokens - 1) ** 0.5)
    rows, columns = torch.zeros(2, tokens, tokens, dtype=torch.long)
    for i in range(1, tokens):
        for j in range(1, tokens):
            offset_y, offset_x = (j - 1) // grid - (i - 1) // grid, (j - 1) % grid - (i - 1) % grid
            rows[i, j] = max(-limit, min(limit, offset_y)) + limit + 1
            columns[i, j] = max(-limit, min(limit, offset_x)) + limit + 1
    keys, values = (module.table_v[rows] + module.table_h[columns] for module in (on_keys, on_values))  # N N d
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) + torch.einsum("bnhd,nmd->bhnm", q, keys)
    weights = (scores * dim**-0.5).softmax(dim=-1)
    return torch.einsum("bhnm,bmhd->bnhd", weights, v) + torch.einsum("bhnm,nmd->bnhd", weights, values)


@pytest.mark.parametrize(("grid", "limit"), [(4, 2), (4, 14), (3, 1), (1, 2)])
def test_separable_attention_is_its_plain_twin(grid: int, limit: int) -> None:
    torch.manual_seed(0)
    tokens, heads, dim = grid**2 + 1, 3, 6
    on_keys, on_values = (perturb(RelativePosition2D(limit, dim), seed) for seed in (1, 2))
    q, k, v = (drawn(2, tokens, heads, dim) for _ in range(3))
    target = torch.randn(2, tokens, heads, dim, dtype=torch.float64)
    inputs = [q, k, v, *on_keys.parameters(), *on_values.parameters()]

    expected = plain_attention(q, k, v, on_keys, on_values)
    qkv = torch.stack([q, k, v], dim=3)
    out = attend_with_position(qkv, on_keys(), on_values(), position_tables(grid, dim, limit), (grid, grid))
    close(out, expected)

    gradients = torch.autograd.grad((out * target).sum(), inputs)
    for gradient, twin in zip(gradients, torch.autograd.grad((expected * target).sum(), inputs), strict=True):
        torch.testing.assert_close(gradient, twin, rtol=1e-11, atol=1e-11)


def test_relative_position_matters() -> None:
    torch.manual_seed(0)
    one, other = (perturb(RelativePosition2D(2, 4), seed) for seed in (1, 2))
    qkv, position = drawn(1, 17, 2, 3, 4), position_tables(4, 4, 2)
    out = attend_with_position(qkv, one(), other(), position, (4, 4))
    swapped = attend_with_position(qkv, other(), one(), position, (4, 4))
    assert (out - swapped).abs().max() > 0.1


# --- subnets of one supernet ---


@pytest.mark.parametrize("rule", ["aligned", "official"])
@pytest.mark.parametrize("space", variants().values(), ids=variants())
def test_subnet_depends_on_nothing_outside_its_slice(space: SearchSpace, rule: str) -> None:
    supernet = perturb(Supernet(space, bias_rule=rule)).eval()  # type: ignore[arg-type]
    expected = supernet(images(space), SPEC)
    inside = supernet.extract(SPEC).state_dict()
    with torch.no_grad():
        for name, parameter in supernet.named_parameters():
            kept = parameter.clone()
            parameter.fill_(float("nan"))
            if name in inside:
                region = tuple(slice(n) for n in inside[name].shape)
                parameter[region] = kept[region]
    assert torch.equal(supernet(images(space), SPEC), expected)
    assert supernet(images(space), OTHER).isnan().all()


@pytest.mark.parametrize("space", variants().values(), ids=variants())
def test_gradient_stays_in_the_slice(space: SearchSpace) -> None:
    supernet = perturb(Supernet(space))
    supernet(images(space), SPEC).square().sum().backward()
    inside = supernet.extract(SPEC).state_dict()
    for name, parameter in supernet.named_parameters():
        if name not in inside:
            assert parameter.grad is None, name  # a block beyond the subnet's depth
            continue
        assert parameter.grad is not None, name
        gradient = parameter.grad.clone()
        gradient[tuple(slice(n) for n in inside[name].shape)] = 0
        assert gradient.count_nonzero() == 0, name


def test_forward_leaves_no_state() -> None:
    space = small_space()
    supernet, fresh = (perturb(Supernet(space)).eval() for _ in range(2))
    before = {key: id(value) for key, value in vars(supernet).items()}
    supernet(images(space), OTHER)
    supernet(images(space), space.largest)
    assert torch.equal(supernet(images(space), SPEC), fresh(images(space), SPEC))
    assert {key: id(value) for key, value in vars(supernet).items()} == before
    assert torch.equal(copy.deepcopy(supernet)(images(space), SPEC), fresh(images(space), SPEC))


def test_a_change_of_weights_is_seen_by_the_next_forward() -> None:
    space = small_space()
    supernet = perturb(Supernet(space)).eval()
    before = supernet(images(space), SPEC)
    with torch.no_grad():
        supernet.blocks[0].attn.qkv.weight.mul_(1.1)
    assert not torch.allclose(supernet(images(space), SPEC), before)


def test_pooling() -> None:
    mean, token = (perturb(Supernet(small_space(pooling=pooling))).eval() for pooling in ("mean", "class_token"))
    x = images(mean.space)
    features = mean.extract(SPEC).forward_features(x)
    weight, bias = mean.head.weight[:, :12], mean.head.bias
    close(mean(x, SPEC), F.linear(features[:, 1:].mean(1), weight, bias))
    close(token(x, SPEC), F.linear(features[:, 0], weight, bias))
    assert not torch.allclose(mean(x, SPEC), token(x, SPEC))


def test_without_relative_position_there_are_no_tables() -> None:
    supernet = Supernet(small_space(relative_position=False))
    assert not [name for name, _ in supernet.named_parameters() if "rel_pos" in name]
    assert any("rel_pos" in name for name, _ in Supernet(small_space()).named_parameters())


def test_no_weight_decay_names_parameters() -> None:
    supernet = Supernet(small_space())
    names = {name for name, _ in supernet.named_parameters()}
    assert supernet.no_weight_decay() <= names
    assert len(supernet.no_weight_decay()) == 2 + 3 * 4


# --- stochastic depth ---


def test_drop_path_is_linear_over_the_depth_of_the_supernet() -> None:
    supernet = Supernet(small_space(), drop_path=0.2)
    assert [block.drop_path for block in supernet.blocks] == pytest.approx([0.0, 0.1, 0.2])
    model = supernet.extract(SPEC)
    assert [getattr(block.drop_path, "drop_prob", 0.0) for block in model.blocks] == pytest.approx([0.0, 0.1])


def test_drop_path_is_off_in_evaluation_and_on_in_training() -> None:
    space = small_space()
    supernet, plain = perturb(Supernet(space, drop_path=1.0)), perturb(Supernet(space)).eval()
    x = images(space)
    assert torch.equal(supernet.eval()(x, OTHER), plain(x, OTHER))
    supernet.train()
    shallow = SubnetSpec(1, 12, (2,), (2.0,))  # its only block is the first of the supernet, which is never dropped
    assert torch.equal(supernet(x, shallow), plain(x, shallow))
    without_last = SubnetSpec(2, 16, OTHER.num_heads[:2], OTHER.mlp_ratio[:2])
    torch.manual_seed(0)
    deep = supernet(x, OTHER)
    torch.manual_seed(0)
    torch.testing.assert_close(deep, supernet(x, without_last))  # rate 1: the last block always drops


def test_drop_path_is_drawn_for_each_image_and_each_branch() -> None:
    space = small_space()
    supernet = perturb(Supernet(space, drop_path=1.0)).train()
    torch.manual_seed(0)
    out = supernet(images(space, batch=1).expand(64, -1, -1, -1), SPEC)  # the second block's rate is one half
    assert len({tuple(row) for row in out.round(decimals=6).tolist()}) == 4  # either branch kept or dropped


# --- initialisation ---


def test_initialisation() -> None:
    torch.manual_seed(0)
    supernet = Supernet(small_space(num_classes=500))
    assert supernet.head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert supernet.pos_embed.std().item() == pytest.approx(0.02, rel=0.15)
    for name, parameter in supernet.named_parameters():
        if name.endswith("bias") and "patch_embed" not in name:
            assert parameter.count_nonzero() == 0, name
        if "norm" in name and name.endswith("weight"):
            assert (parameter == 1).all(), name


# --- arguments ---


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"embed_dim": 21}, "embed_dim = 21 is larger than the supernet of 'small', which has 20"),
        ({"num_heads": (5,)}, "num_heads = 5 is larger"),
        ({"mlp_ratio": (3.5,)}, "mlp_ratio = 3.5 is larger"),
        ({"depth": 4, "num_heads": (1,) * 4, "mlp_ratio": (1.0,) * 4}, "depth = 4 is larger"),
    ],
)
def test_a_subnet_larger_than_the_supernet_has_no_logits(change: dict[str, Any], words: str) -> None:
    spec = replace(SubnetSpec(1, 8, (1,), (1.0,)), **change)
    with pytest.raises(AutoFormerError, match=words):
        Supernet(small_space())(torch.zeros(2, 3, 8, 8), spec)


@pytest.mark.parametrize("shape", [(2, 3, 4, 16), (2, 3, 16, 4), (2, 3, 16, 16), (2, 1, 8, 8), (3, 8, 8), (2, 3, 9, 8)])
@pytest.mark.parametrize("space", [variants()["mean"], variants()["stem"]], ids=["patches", "stem"])
def test_images_of_another_shape_have_no_logits(shape: tuple[int, ...], space: SearchSpace) -> None:
    """Oblong ones of as many patches would get the positions of a square."""
    scale = space.image_size / 8
    images = torch.zeros(*shape[:-2], int(shape[-2] * scale), int(shape[-1] * scale))
    with pytest.raises(AutoFormerError, match=rf"images of shape .*but 'small' takes \(B, 3, {space.image_size}, "):
        Supernet(space)(images, space.smallest)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s, word: Supernet(s, bias_rule=word), "bias_rule .* one of 'aligned', 'official'"),
        (lambda s, word: count_macs(s, s.smallest, word), "relative_position .* one of 'none', 'published', 'ours'"),
        (lambda s, word: s.resized(16, word), "offsets .* one of 'keep', 'stretch'"),
        (lambda s, word: AutoFormer.from_spec(s, s.smallest).set_input_size(16, offsets=word), "offsets .*'stretch'"),
        (lambda s, word: AutoFormer(weight_init=word), "weight_init .* one of '', 'skip'"),
        (lambda s, word: load_supernet(Path("supernet"), word), "weights .* one of 'ema', 'raw'"),
        (lambda s, word: make_sampler(word, s, 0), "sampling .* one of 'uniform', 'sandwich', 'uniform_params'"),
    ],
)
@pytest.mark.parametrize("word", ["Ours", "EMA", None, 3])
def test_a_word_that_is_none_of_the_choices_of_an_argument_is_refused(
    call: Callable[[SearchSpace, Any], Any], words: str, word: Any
) -> None:
    with pytest.raises(AutoFormerError, match=words):
        call(small_space(), word)


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan])
def test_a_stochastic_depth_rate_that_is_no_rate_is_refused(rate: float) -> None:
    for make in (
        lambda: Supernet(small_space(), drop_path=rate),
        lambda: AutoFormer(drop_path_rate=rate),
        lambda: AutoFormer(num_heads=(1,), mlp_ratio=(1.0,), drop_path=(rate,)),
    ):
        with pytest.raises(AutoFormerError, match="expected a rate from 0 to 1"):
            make()
