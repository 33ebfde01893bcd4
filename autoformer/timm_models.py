"""The published subnets as timm models: import this module, then `timm.create_model("autoformer_tiny")`.

No weights are hosted. `create_model("autoformer_tiny", pretrained=True, pretrained_cfg_overlay=dict(file=path))`
extracts the subnet from an official supernet checkpoint, or loads the weights of a saved model.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, resolve_pretrained_cfg
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from autoformer.errors import AutoFormerError
from autoformer.named import load_space, load_subnet
from autoformer.official import load_official
from autoformer.space import SubnetSpec
from autoformer.vit import AutoFormer, describe, timm_arguments
from autoformer.weights import check_same_kind, read_weights, unwrapped

__all__: list[str] = []  # register_model adds the models

_MODELS = ("autoformer_tiny", "autoformer_small", "autoformer_base", "autoformer_base_mmrazor")
default_cfgs = generate_default_cfgs({name: describe(name) for name in _MODELS})


@register_model  # type: ignore[untyped-decorator]
def autoformer_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """AutoFormer-T as published: 5.9 M parameters."""
    return _create("autoformer_tiny", "autoformer-tiny", "autoformer-tiny", pretrained, **kwargs)


@register_model  # type: ignore[untyped-decorator]
def autoformer_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """AutoFormer-S as published: 22.9 M parameters."""
    return _create("autoformer_small", "autoformer-small", "autoformer-small", pretrained, **kwargs)


@register_model  # type: ignore[untyped-decorator]
def autoformer_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """AutoFormer-B as published: 53.7 M parameters."""
    return _create("autoformer_base", "autoformer-base", "autoformer-base", pretrained, **kwargs)


@register_model  # type: ignore[untyped-decorator]
def autoformer_base_mmrazor(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The base subnet that mmrazor found: 54.5 M parameters. It also fits into the official base supernet."""
    return _create("autoformer_base_mmrazor", "mmrazor-base", "autoformer-base", pretrained, **kwargs)


def _create(variant: str, subnet: str, official_space: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Build a subnet of `configs/subnets/`. `official_space`: space of the checkpoint that its weights come from."""
    named = load_subnet(subnet)
    if pretrained:
        overlay = kwargs.get("pretrained_cfg_overlay")
        file = _source(variant, kwargs.get("pretrained_cfg"), overlay)
        if file is not None:
            kwargs["pretrained_cfg_overlay"] = dict(overlay or {}) | {"state_dict": read_weights(file)}
    model: nn.Module = build_model_with_cfg(
        AutoFormer,
        variant,
        pretrained,
        pretrained_filter_fn=partial(_weights, space=official_space, spec=named.subnet),
        feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
        **(timm_arguments(load_space(named.space), named.subnet) | kwargs),
    )
    holders: tuple[Any, ...] = model, getattr(model, "model", model)  # features_only wraps the model
    for holder in holders:
        holder.pretrained_cfg.pop("state_dict", None)
    return model


def _source(variant: str, cfg: Any, overlay: Mapping[str, Any] | None) -> Path | None:
    """The weight file, or None if timm gets the weights another way. Raises `AutoFormerError` if there are none."""
    resolved = resolve_pretrained_cfg(variant, cfg, dict(overlay or {}))
    if not (resolved.has_weights or resolved.state_dict or resolved.source):
        raise AutoFormerError(
            f"{variant}: no weights are hosted; give pretrained_cfg_overlay=dict(file=...) an official supernet "
            "checkpoint (.pth), from https://github.com/microsoft/Cream/tree/main/AutoFormer"
        )
    if not resolved.file or resolved.source or resolved.state_dict:
        return None
    if not Path(resolved.file).is_file():
        raise AutoFormerError(
            f"{resolved.file}: no such file; pretrained_cfg_overlay names it as the weights of {variant}"
        )
    return Path(resolved.file)


def _weights(state: Mapping[str, Tensor], model: AutoFormer, space: str, spec: SubnetSpec) -> dict[str, Tensor]:
    """timm's filter: the state dict of an official supernet, or of this subnet -> that of `model`."""
    state = unwrapped(state)
    if any(name.startswith("patch_embed_super.") for name in state):
        state = load_official(state, load_space(space)).extract(spec).state_dict()
    check_same_kind(state, model.state_dict(), "checkpoint")
    return checkpoint_filter_fn(dict(state), model)  # resizes positions and patches
