"""timm's interface of an extracted model: features, classifiers, other sizes, parameter groups, export."""

import copy
import warnings
from typing import Any

import pytest
import torch
from small import perturb, small_space
from test_timm_models import SPEC, extracted, images
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn

import autoformer.timm_models  # noqa: F401
from autoformer.errors import AutoFormerError
from autoformer.supernet import Supernet
from autoformer.vit import AutoFormer


@pytest.mark.parametrize("pooling", ["mean", "class_token"])
def test_forward_is_features_then_head(pooling: str) -> None:
    model = extracted(pooling=pooling)
    x = images()
    features = model.forward_features(x)
    assert features.shape == (2, 17, 12)
    pooled = model.forward_head(features, pre_logits=True)
    expected = features[:, 1:].mean(1) if pooling == "mean" else features[:, 0]
    torch.testing.assert_close(pooled, expected)
    torch.testing.assert_close(model.forward_head(features), model.head(pooled))
    assert torch.equal(model(x), model.forward_head(features))


def test_forward_intermediates() -> None:
    model = extracted()
    x = images()
    seen: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _module, _inputs, out: seen.append(out))
    final, spatial = model.forward_intermediates(x)
    blocks = list(seen)
    assert len(spatial) == len(blocks) == 3
    assert torch.equal(final, model.forward_features(x))
    for y, tokens in zip(spatial, blocks, strict=True):
        assert torch.equal(y, tokens[:, 1:].reshape(2, 4, 4, 12).permute(0, 3, 1, 2))
    flat = model.forward_intermediates(x, indices=[0, 2], output_fmt="NLC", intermediates_only=True)
    assert [torch.equal(y, blocks[i][:, 1:]) for y, i in zip(flat, (0, 2), strict=True)] == [True, True]
    pairs = model.forward_intermediates(
        x, indices=1, return_prefix_tokens=True, norm=True, output_fmt="NLC", intermediates_only=True
    )
    ((patches, class_token),) = pairs
    torch.testing.assert_close(torch.cat([class_token, patches], dim=1), final)
    seen.clear()
    (early,) = model.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
    assert len(seen) == 2 and torch.equal(early, spatial[1])
    as_dict = model.forward_intermediates(x, indices=1, output_dict=True, return_prefix_tokens=True)
    assert torch.equal(as_dict["image_features"], final)
    assert torch.equal(as_dict["image_intermediates"][0], spatial[2])


def test_reset_classifier() -> None:
    model = extracted()
    assert (model.num_features, model.head_hidden_size, model.num_classes) == (12, 12, 5)
    assert model.get_classifier() is model.head
    model.reset_classifier(3)
    assert (model.num_classes, model(images()).shape) == (3, (2, 3))
    model.reset_classifier(0)
    torch.testing.assert_close(model(images()), model.forward_features(images())[:, 1:].mean(1))
    model.reset_classifier(0, "")
    assert model(images()).shape == (2, 17, 12)
    model.reset_classifier(4, "token")
    torch.testing.assert_close(model(images()), model.head(model.forward_features(images())[:, 0]))


def test_feature_info_and_pruning() -> None:
    model = extracted()
    assert [info["module"] for info in model.feature_info] == ["blocks.0", "blocks.1", "blocks.2"]
    assert all((info["num_chs"], info["reduction"]) == (12, 2) for info in model.feature_info)
    expected = model.forward_intermediates(images(), indices=[0, 1], intermediates_only=True)
    assert model.prune_intermediate_layers([0, 1]) == [0, 1]
    assert len(model.blocks) == 2 and isinstance(model.head, nn.Identity)
    torch.testing.assert_close(model.forward_intermediates(images(), indices=[0, 1], intermediates_only=True), expected)


def test_gradient_checkpointing() -> None:
    model, twin = extracted().train(), extracted().train()
    model.set_grad_checkpointing()
    passes: list[int] = []
    model.blocks[1].attn.register_forward_hook(lambda *_: passes.append(1))
    for one in (model, twin):
        one(images()).square().sum().backward()
    assert len(passes) == 2  # once forward, once again for the backward pass
    for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad)


def test_parameter_groups() -> None:
    model = extracted()
    tables = {name for name, _ in model.named_parameters() if "rel_pos" in name}
    assert model.no_weight_decay() == tables | {"cls_token", "pos_embed"}
    undecayed, decayed = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    assert (undecayed["weight_decay"], decayed["weight_decay"]) == (0.0, 0.05)
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    assert len(decayed["params"]) == 1 + 3 * 4 + 1  # patches, four a block, head
    groups = param_groups_layer_decay(model, 0.05, model.no_weight_decay(), layer_decay=0.5)
    assert {group["lr_scale"] for group in groups} == {0.5**4, 0.5**3, 0.5**2, 0.5, 1.0}  # stem, 3 blocks, head


def test_another_image_size() -> None:
    """Positions are resampled; the relative tables serve any grid, with clipped offsets."""
    model = extracted(max_relative_position=5)
    tables = model.blocks[0].attn.rel_pos_k.table_v.clone()
    model.set_input_size((16, 16))
    assert model.pos_embed.shape == (1, 65, 12)
    assert torch.equal(model.blocks[0].attn.rel_pos_k.table_v, tables)
    fresh = perturb(Supernet(small_space(max_relative_position=5, image_size=16))).extract(SPEC).eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(model(images(side=16)), fresh(images(side=16)))
    assert "features" not in "".join(model.state_dict())
    with pytest.raises(AutoFormerError, match="8 x 4 patches; offsets stretch between square grids alone"):
        model.set_input_size((16, 8), offsets="stretch")
    assert torch.equal(model(images(side=16)), fresh(images(side=16)))  # refused before anything changed
    with pytest.raises(AssertionError, match="doesn't match model"):
        model(images(side=8))


def test_another_patch_size() -> None:
    model = extracted()
    model.set_input_size(img_size=(16, 16), patch_size=(4, 4))
    assert model.patch_embed.proj.weight.shape == (12, 3, 4, 4)
    assert model(images(side=16)).shape == (2, 5)


def test_oblong_images_without_relative_position() -> None:
    model = extracted(relative_position=False)
    model.set_input_size((8, 16))
    x = torch.cat([images(), images()], dim=-1)
    assert model(x).shape == (2, 5)


def test_deepcopy_after_training_steps() -> None:
    model = extracted()
    model(images()).sum().backward()
    twin = copy.deepcopy(model)
    assert torch.equal(twin(images()), model(images()))
    assert twin.pretrained_cfg == model.default_cfg
    with torch.no_grad():
        twin.head.weight.zero_()
    assert model.head.weight.count_nonzero() > 0


@pytest.mark.parametrize("relative_position", [True, False])
def test_export_with_any_batch_keeps_attention_whole(relative_position: bool) -> None:
    model = extracted(relative_position=relative_position).float()
    batch = torch.export.Dim("batch", min=1, max=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, (images(2).float(),), dynamic_shapes={"x": {0: batch}})
    calls = [str(node.target) for node in program.graph.nodes]
    assert sum("scaled_dot_product_attention" in call for call in calls) == 3
    run = program.module()
    for size in (1, 2, 7):
        torch.testing.assert_close(run(images(size).float()), model(images(size).float()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_heads": (), "mlp_ratio": ()}, "depth = 0: expected a positive integer"),
        ({"num_heads": 3, "mlp_ratio": 4.0}, "num_heads = 3: expected a list"),
        ({"num_heads": (0, 1)}, "num_heads = 0: expected a positive integer"),
        ({"num_heads": (1.5, 1)}, "num_heads = 1.5: expected a positive integer"),
        ({"mlp_ratio": (-1, 1)}, "mlp_ratio = -1: expected a positive number"),
        ({"mlp_ratio": (0.01, 1)}, "mlp_ratio = 0.01 of embed_dim 8 is an MLP without channels"),
        ({"embed_dim": 0}, "embed_dim = 0: expected a positive integer"),
        ({"head_dim": 0}, "head_dim = 0: expected at least 1"),
        ({"max_relative_position": -1}, "max_relative_position = -1: expected at least 0"),
        ({"stem_channels": (4, 0)}, "stem_channels = 0: expected at least 1"),
        ({"drop_path": (0.1,)}, "expected a rate from 0 to 1 for each block"),
        ({"drop_path": ()}, "expected a rate from 0 to 1 for each block"),
        ({"img_size": 15}, "an image of 15 x 15 pixels has no patch of 16 x 16"),
        ({"img_size": (64, 8)}, "an image of 64 x 8 pixels has no patch"),
        ({"patch_size": 0}, "no patch of 0 x 0"),
    ],
)
def test_sizes_that_make_no_model_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(AutoFormerError, match=words):
        AutoFormer(**({"img_size": 32, "embed_dim": 8, "num_heads": (1, 1), "mlp_ratio": (1, 1)} | change))


@pytest.mark.parametrize("size", [(4, None), (None, 64), (0, None), (None, 0)])
def test_a_size_without_a_patch_leaves_the_model_as_it_was(size: tuple[Any, Any]) -> None:
    model = AutoFormer(img_size=32, patch_size=8, embed_dim=8, num_heads=(1,), mlp_ratio=(1,)).eval()
    images = torch.randn(2, 3, 32, 32)
    before = model(images)
    with pytest.raises(AutoFormerError, match="has no patch of"):
        model.set_input_size(*size)
    assert torch.equal(model(images), before)
