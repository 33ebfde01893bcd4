"""An extracted subnet: timm's vision transformer with relative position, and heads and MLP width per block.

Dimensions: B images, N tokens, E embedding width, H heads, d head_dim.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, Self, get_args

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import PatchEmbed, to_2tuple
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from autoformer.blocks import LAYER_NORM_EPS, Attention, Block
from autoformer.errors import AutoFormerError, check_choice
from autoformer.images.pixels import resized_side
from autoformer.layers import drop_path_rates, initialise
from autoformer.space import Offsets, SearchSpace, SubnetSpec
from autoformer.stem import ConvStem

Pooling = Literal["", "avg", "avgmax", "max", "token", "map", "prr"]


class _OfGrid:
    """A model whose blocks use a given grid of patches, for methods of timm that call the blocks one by one."""

    def __init__(self, model: "AutoFormer", grid: tuple[int, int]) -> None:
        self.model = model
        self.blocks = [partial(block, grid=grid) for block in model.blocks]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


class AutoFormer(VisionTransformer):
    """A vision transformer whose blocks differ in heads and MLP width, with 2-D relative position.

    timm's `VisionTransformer` interface works: `forward_features`, `forward_intermediates`, `forward_head`,
    `reset_classifier`, `feature_info`, `set_input_size`, masks; so do jit, torch.fx, torch.export, ONNX and torch.func.
    Its other constructor arguments (norms, register tokens, dropout in blocks) are not part of an AutoFormer.

    Raises `AutoFormerError` for sizes that make no model, and timm's errors otherwise.

    Args:
        img_size, patch_size: a number or (height, width).
        dynamic_img_size: take images of any size: positions are resampled, larger offsets clipped.
        dynamic_img_pad: pad images to whole patches.
        num_heads, mlp_ratio: one entry per block.
        stem_channels: of the convolutions of `autoformer.stem`; none for patches.
        max_relative_position: larger offsets share an entry of the tables; None for no relative position.
        drop_path: stochastic depth rate of each block; by default linear from 0 to drop_path_rate.
        drop_rate, pos_drop_rate: dropout before the classifier, and after adding positions.
    """

    pretrained_cfg: dict[str, Any]
    default_cfg: dict[str, Any]

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: Pooling = "avg",
        embed_dim: int = 192,
        num_heads: Sequence[int] = (3,) * 12,
        mlp_ratio: Sequence[float] = (4.0,) * 12,
        head_dim: int = 64,
        stem_channels: Sequence[int] = (),
        max_relative_position: int | None = 14,
        drop_path: Sequence[float] | None = None,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        fc_norm: bool = False,
        dynamic_img_size: bool = False,
        dynamic_img_pad: bool = False,
        weight_init: Literal["", "skip"] = "",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        depth = len(num_heads) if isinstance(num_heads, Sequence) else 1
        spec = SubnetSpec(depth, embed_dim, num_heads, mlp_ratio)  # type: ignore[arg-type]  # checks them
        embed_dim, num_heads, mlp_ratio = spec.embed_dim, spec.num_heads, spec.mlp_ratio
        check_choice("weight_init", weight_init, ("", "skip"))
        rates = drop_path_rates(drop_path_rate, depth) if drop_path is None else drop_path
        if len(rates) < depth or not all(0 <= rate <= 1 for rate in rates):
            raise AutoFormerError(f"AutoFormer: drop_path = {list(rates)}: expected a rate from 0 to 1 for each block")
        sizes = [("head_dim", head_dim, 1), ("max_relative_position", max_relative_position or 0, 0)]
        for name, value, least in (*sizes, *(("stem_channels", channels, 1) for channels in stem_channels)):
            if value < least:
                raise AutoFormerError(f"AutoFormer: {name} = {value}: expected at least {least}")
        embed: Any = partial(ConvStem, stem_channels) if stem_channels else PatchEmbed
        _check_patches(img_size, patch_size)
        grid = embed(img_size=img_size, patch_size=patch_size, device="meta").grid_size

        def block(dim: int, depth: int, **_: Any) -> Block:
            attention = Attention(dim, num_heads[depth], head_dim, grid, max_relative_position)
            return Block(dim, int(dim * mlp_ratio[depth]), rates[depth], attention)

        super().__init__(
            img_size=img_size, patch_size=patch_size, in_chans=in_chans, num_classes=num_classes,
            global_pool=global_pool, embed_dim=embed_dim, depth=len(num_heads), num_heads=num_heads[0],
            fc_norm=fc_norm, drop_rate=drop_rate, pos_drop_rate=pos_drop_rate, weight_init=weight_init,
            dynamic_img_size=dynamic_img_size, dynamic_img_pad=dynamic_img_pad, norm_layer=_layer_norm, block_fn=block,
            embed_layer=embed,
        )  # fmt: skip
        self.max_relative_position = max_relative_position
        self.to(device=device, dtype=dtype)

    @classmethod
    def from_spec(cls, space: SearchSpace, spec: SubnetSpec, drop_path: Sequence[float] | None = None) -> Self:
        """The model of a subnet, with new weights. `drop_path`: the supernet's rates, one per block."""
        model = cls(**timm_arguments(space, spec), drop_path=drop_path)
        model.pretrained_cfg = model.default_cfg = pretrained_cfg(space)
        return model

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialise like the supernet. `needs_reset`: first call every layer's `reset_parameters`."""
        for module in self.modules() if needs_reset else ():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
        initialise(self)
        assert self.cls_token is not None and self.pos_embed is not None
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if "rel_pos" in name} | {"cls_token", "pos_embed"}

    def set_input_size(self, img_size: Any = None, patch_size: Any = None, offsets: Offsets = "keep") -> None:
        """Change the image size. Positions are resampled as in timm.

        Args:
            offsets: of the relative tables. "keep" changes nothing: two patches to the right stay two patches to the
                right, and weights fit a model made for the new size. Offsets that the old grid lacked use an untrained
                entry (the published tables have one on each side), larger ones the last entry. For smaller images and
                for further training.
                "stretch" interpolates the trained offsets to the new grid, like the positions: a quarter of the image
                stays a quarter of the image. For evaluation without further training. It changes the tables' length;
                `SearchSpace.resized` describes the new model.

        Raises:
            AutoFormerError: an image without a patch; "stretch" from or to an oblong grid of patches.
        """
        check_choice("offsets", offsets, get_args(Offsets))
        embed = self.patch_embed
        size = to_2tuple(embed.img_size if img_size is None else img_size)
        patch = to_2tuple(embed.patch_size if patch_size is None else patch_size)
        _check_patches(size, patch)
        grid = size[0] // patch[0], size[1] // patch[1]
        if isinstance(embed, ConvStem):
            grid = embed.dynamic_feat_size(size)
        oblong = [one for one in (embed.grid_size, grid) if one[0] != one[1]]
        if offsets == "stretch" and oblong and self.max_relative_position is not None:
            raise AutoFormerError(
                f"AutoFormer: {oblong[0][0]} x {oblong[0][1]} patches; offsets stretch between square grids alone; "
                'use offsets="keep"'
            )
        super().set_input_size(img_size=img_size, patch_size=patch_size)
        for module in self.modules():
            if isinstance(module, Attention):
                if offsets == "stretch" and grid != module.grid:
                    module.stretch(grid[0])
                module.set_grid(grid)
                self.max_relative_position = module.max_relative_position

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        grid: tuple[int, int] | None = None
        if self.dynamic_img_size:
            grid = self.patch_embed.dynamic_feat_size((x.shape[-2], x.shape[-1]))
        x = self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))  # (B, N, E)
        if grid is None and attn_mask is None and not is_causal and not self.grad_checkpointing:
            x = self.blocks(x)
        else:
            for block in self.blocks:
                if self.grad_checkpointing and not torch.jit.is_scripting():  # type: ignore[attr-defined]
                    x = checkpoint(block, x, attn_mask, is_causal, grid, use_reentrant=False)
                else:
                    x = block(x, attn_mask, is_causal, grid)
        return self.norm(x)

    def forward_intermediates(self, x: Tensor, *arguments: Any, **keywords: Any) -> Any:
        if not self.dynamic_img_size:
            return super().forward_intermediates(x, *arguments, **keywords)
        model: Any = _OfGrid(self, self.patch_embed.dynamic_feat_size(x.shape[-2:]))
        return VisionTransformer.forward_intermediates(model, x, *arguments, **keywords)


def timm_arguments(space: SearchSpace, spec: SubnetSpec) -> dict[str, Any]:
    """The constructor arguments of `AutoFormer` for a subnet."""
    return {
        "img_size": space.image_size,
        "patch_size": space.patch_size,
        "in_chans": space.in_channels,
        "num_classes": space.num_classes,
        "global_pool": "avg" if space.pooling == "mean" else "token",
        "embed_dim": spec.embed_dim,
        "num_heads": spec.num_heads,
        "mlp_ratio": spec.mlp_ratio,
        "head_dim": space.head_dim,
        "stem_channels": space.stem_channels,
        "max_relative_position": space.max_relative_position if space.relative_position else None,
    }


def pretrained_cfg(space: SearchSpace) -> dict[str, Any]:
    """timm's description of the model's input; for three channels the official evaluation protocol."""
    described = describe(space.name, space.image_size, space.in_channels, space.num_classes)
    return described | ({"first_conv": "patch_embed.proj.0"} if space.stem_channels else {})


def describe(name: str, image_size: int = 224, in_channels: int = 3, num_classes: int = 1000) -> dict[str, Any]:
    """`pretrained_cfg` without a search space."""
    rgb = in_channels == 3
    return {
        "url": "",
        "num_classes": num_classes,
        "input_size": (in_channels, image_size, image_size),
        "pool_size": None,
        "crop_pct": image_size / resized_side(image_size),
        "interpolation": "bicubic",
        "fixed_input_size": True,
        "mean": IMAGENET_DEFAULT_MEAN if rgb else (0.5,) * in_channels,
        "std": IMAGENET_DEFAULT_STD if rgb else (0.5,) * in_channels,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "mit",
        "paper_ids": "arXiv:2107.00651",
        "paper_name": "AutoFormer: Searching Transformers for Visual Recognition",
        "origin_url": "https://github.com/microsoft/Cream",
        "architecture": name,
    }


def _check_patches(img_size: int | tuple[int, int], patch_size: int | tuple[int, int]) -> None:
    """Raise `AutoFormerError` for an image that is smaller than a patch, before a model is made or changed."""
    size, patch = to_2tuple(img_size), to_2tuple(patch_size)
    if not all(1 <= pixels <= side for pixels, side in zip(patch, size, strict=True)):
        raise AutoFormerError(
            f"AutoFormer: an image of {size[0]} x {size[1]} pixels has no patch of {patch[0]} x {patch[1]}"
        )


def _layer_norm(dim: int, **kwargs: Any) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=LAYER_NORM_EPS, **kwargs)
