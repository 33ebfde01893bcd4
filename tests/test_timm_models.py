"""The published subnets as registered timm models, and their pretrained weights."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from official_layout import write_checkpoint
from small import perturb, small_space
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

import autoformer.timm_models  # noqa: F401
from autoformer.complexity import count_params
from autoformer.errors import AutoFormerError
from autoformer.named import load_space, load_subnet
from autoformer.official import load_official
from autoformer.space import SubnetSpec
from autoformer.supernet import Supernet
from autoformer.timm_models import default_cfgs
from autoformer.vit import AutoFormer

MODELS = {
    "autoformer_tiny": "autoformer-tiny",
    "autoformer_small": "autoformer-small",
    "autoformer_base": "autoformer-base",
    "autoformer_base_mmrazor": "mmrazor-base",
}
SPEC = SubnetSpec(3, 12, (2, 1, 3), (1.3, 2.0, 1.0))


def tiny(**arguments: Any) -> Any:
    """The registered model at a quarter of its image size, for speed."""
    return timm.create_model("autoformer_tiny", **({"img_size": 64} | arguments))


def extracted(**changes: Any) -> AutoFormer:
    return perturb(Supernet(small_space(**changes))).extract(SPEC).eval()


def images(batch: int = 2, side: int = 8) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# --- the registered models ---


@pytest.mark.parametrize("name", MODELS)
def test_registered_model_is_the_named_subnet(name: str) -> None:
    named = load_subnet(MODELS[name])
    space = load_space(named.space)
    assert timm.is_model(name)
    with torch.device("meta"):
        model = timm.create_model(name)
        expected = Supernet(space).extract(named.subnet)
    assert sum(p.numel() for p in model.parameters()) == count_params(space, named.subnet)
    assert {key: tensor.shape for key, tensor in model.state_dict().items()} == {
        key: tensor.shape for key, tensor in expected.state_dict().items()
    }


@pytest.mark.parametrize("name", MODELS)
def test_pretrained_cfg_is_that_of_the_space(name: str) -> None:
    cfg = default_cfgs[name].default.to_dict()
    named = load_subnet(MODELS[name])
    with torch.device("meta"):
        of_space = AutoFormer.from_spec(load_space(named.space), named.subnet).pretrained_cfg
    shared = cfg.keys() & of_space.keys() - {"architecture"}
    assert len(shared) == 15
    assert {key: cfg[key] for key in shared} == {key: of_space[key] for key in shared}


def test_pretrained_cfg_is_complete() -> None:
    model = tiny()
    cfg = model.pretrained_cfg
    assert model.default_cfg is cfg
    assert cfg["architecture"] == "autoformer_tiny"
    assert (cfg["input_size"], cfg["num_classes"], cfg["fixed_input_size"]) == ((3, 224, 224), 1000, True)
    assert (cfg["crop_pct"], cfg["interpolation"]) == (0.875, "bicubic")
    assert isinstance(model.get_submodule(cfg["first_conv"]), nn.Conv2d)
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    data = resolve_model_data_config(model)
    assert data["input_size"] == (3, 224, 224)
    assert data["mean"] == (0.485, 0.456, 0.406)
    create_transform(**data)


def test_arguments_of_create_model() -> None:
    model = tiny(num_classes=7, in_chans=1, drop_path_rate=0.12, drop_rate=0.5)
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 7)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.01 * block for block in range(13)])
    assert model.head_drop.p == 0.5
    assert tiny(global_pool="token").global_pool == "token"
    assert tiny(num_classes=0)(torch.randn(1, 3, 64, 64)).shape == (1, 192)
    assert tiny(dtype=torch.bfloat16).head.weight.dtype == torch.bfloat16


def test_arguments_that_an_autoformer_does_not_have() -> None:
    with pytest.raises(TypeError, match="reg_tokens"):
        tiny(reg_tokens=4)
    with pytest.raises(AutoFormerError, match="mlp_ratio has 13 entries for depth 12"):
        tiny(num_heads=(3,) * 12)


def test_features_only() -> None:
    model = tiny(features_only=True, out_indices=(2, 5, -1)).eval()
    whole = tiny().eval()
    whole.load_state_dict(model.model.state_dict(), strict=False)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        out = model(x)
        expected = whole.forward_intermediates(x, indices=(2, 5, 12), intermediates_only=True)
    assert [tuple(y.shape) for y in out] == [(2, 192, 4, 4)] * 3
    for y, twin in zip(out, expected, strict=True):
        torch.testing.assert_close(y, twin)
    assert model.feature_info.channels() == [192] * 3
    assert model.feature_info.reduction() == [16] * 3
    assert model.feature_info.module_name() == ["blocks.2", "blocks.5", "blocks.12"]
    assert len(tiny(features_only=True)(x)) == 3
    assert len(tiny(features_only=True, out_indices=(0, 1)).model.blocks) == 2


def test_model_made_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = tiny()
    model.to_empty(device="cpu")
    other = tiny()
    for one in (model, other):
        torch.manual_seed(0)
        one.init_weights()
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(model.eval()(x), other.eval()(x))


# --- pretrained weights ---


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in the layout of the published supernet-tiny.pth, with random weights."""
    return write_checkpoint(tmp_path_factory.mktemp("official") / "supernet-tiny.pth", load_space("autoformer-tiny"))


def pretrained(file: Path, **arguments: Any) -> Any:
    return tiny(pretrained=True, pretrained_cfg_overlay={"file": str(file)}, **arguments).eval()


def test_weights_come_out_of_an_official_supernet(checkpoint: Path) -> None:
    state = torch.load(checkpoint, weights_only=False)["model"]
    supernet = load_official(state, load_space("autoformer-tiny"))
    expected = supernet.extract(load_subnet("autoformer-tiny").subnet).eval()
    model = pretrained(checkpoint, img_size=224)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(model(x), expected(x))
    assert model.load_state_dict(expected.state_dict()).missing_keys == []


def test_weights_are_adapted_to_classes_channels_and_size(checkpoint: Path) -> None:
    model = pretrained(checkpoint, num_classes=7, in_chans=1)
    whole = pretrained(checkpoint, img_size=224)
    assert model(torch.randn(1, 1, 64, 64)).shape == (1, 7)
    assert torch.equal(model.blocks[3].mlp.fc1.weight, whole.blocks[3].mlp.fc1.weight)
    assert torch.equal(model.pos_embed[:, 0], whole.pos_embed[:, 0])
    torch.testing.assert_close(model.patch_embed.proj.weight, whole.patch_embed.proj.weight.sum(1, keepdim=True))
    whole.set_input_size((64, 64))
    torch.testing.assert_close(model.pos_embed, whole.pos_embed)


def test_features_of_pretrained_weights(checkpoint: Path) -> None:
    features = pretrained(checkpoint, features_only=True, out_indices=(4,))
    whole = pretrained(checkpoint)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = whole.forward_intermediates(x, indices=(4,), intermediates_only=True)
        torch.testing.assert_close(features(x), expected)


def test_weights_of_the_model_itself_load_too(tmp_path: Path) -> None:
    model = tiny().eval()
    torch.save(model.state_dict(), tmp_path / "model.pth")
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(pretrained(tmp_path / "model.pth")(x), model(x))


def test_no_weights_are_hosted() -> None:
    with pytest.raises(AutoFormerError, match="no weights are hosted; give pretrained_cfg_overlay=") as error:
        timm.create_model("autoformer_small", pretrained=True)
    assert "github.com/microsoft/Cream" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(AutoFormerError, match=r"none\.pth: no such file"):
        pretrained(Path("none.pth"))


def test_checkpoint_of_another_space_is_named(checkpoint: Path) -> None:
    with pytest.raises(AutoFormerError, match="'autoformer-small'"):
        timm.create_model("autoformer_small", pretrained=True, pretrained_cfg_overlay={"file": str(checkpoint)})
