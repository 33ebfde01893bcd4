"""An extracted subnet: timm's vision transformer with relative position, and heads and MLP width by block.

Dimensions: B images, N tokens, E embedding width, H heads, d head_dim.
"""

from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, Mlp, to_2tuple
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from autoformer.attention import RelativePosition2D, attend, position_features
from autoformer.errors import AutoFormerError
from autoformer.images.pixels import resized_side
from autoformer.layers import drop_path_rates, initialise
from autoformer.space import Offsets, SearchSpace, SubnetSpec, stretched_reach

LAYER_NORM_EPS = 1e-5
Pooling = Literal["", "avg", "avgmax", "max", "token", "map", "prr"]


class Attention(nn.Module):
    """Multi-head attention of width heads * head_dim, whatever `dim` is, with 2-D relative position."""

    features: Tensor

    def __init__(self, dim: int, num_heads: int, head_dim: int, grid: int, max_relative_position: int | None) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        self.qkv = nn.Linear(dim, 3 * num_heads * head_dim)  # rows ordered [head][q, k, v][channel]
        self.proj = nn.Linear(num_heads * head_dim, dim)
        self.rel_pos_k = self.rel_pos_v = None
        if max_relative_position is not None:
            self.rel_pos_k = RelativePosition2D(max_relative_position, head_dim)
            self.rel_pos_v = RelativePosition2D(max_relative_position, head_dim)
        self.max_relative_position = max_relative_position
        self.register_buffer("features", torch.empty(0), persistent=False)
        self.set_grid(grid)

    def set_grid(self, grid: int) -> None:
        """Set the grid of patches. No parameter depends on it."""
        self.grid = grid
        self.features = position_features(grid, self.head_dim).to(self.features)

    def stretch(self, grid: int) -> None:
        """Interpolate the relative tables to a grid of another size."""
        for tables in (self.rel_pos_k, self.rel_pos_v):
            if tables is not None:
                reach = tables.max_relative_position
                self.max_relative_position = stretched_reach(reach, self.grid, grid)
                tables.stretch(min(reach, self.grid - 1), self.max_relative_position)

    def reset_parameters(self) -> None:
        """Initialise the tables and features of a model that was moved from the meta device to empty storage."""
        for tables in (self.rel_pos_k, self.rel_pos_v):
            if tables is not None:
                nn.init.trunc_normal_(tables.table_v, std=0.02)
                nn.init.trunc_normal_(tables.table_h, std=0.02)
        self.set_grid(self.grid)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, E) -> (B, N, E)."""
        qkv = self.qkv(x).unflatten(-1, (self.num_heads, 3, self.head_dim))
        out = attend(qkv, self.rel_pos_k, self.rel_pos_v, self.features)  # (B, N, H, d)
        return self.proj(out.flatten(2))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, hidden_dim: int, drop_path: float, attention: Attention) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = attention
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, hidden_dim)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if attn_mask is not None or is_causal:  # timm passes them on; ignoring them would give wrong logits
            raise AutoFormerError("AutoFormer: attn_mask and is_causal are not supported; leave them out")
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class AutoFormer(VisionTransformer):
    """A vision transformer whose blocks differ in heads and MLP width, with 2-D relative position.

    timm's `VisionTransformer` interface works: `forward_features`, `forward_intermediates`, `forward_head`,
    `reset_classifier`, `feature_info`, `set_input_size`. Its other constructor arguments (norms, register tokens, patch
    dropout) are not part of an AutoFormer.

    Args:
        img_size, patch_size: a number or (height, width); square with relative position.
        num_heads, mlp_ratio: one entry per block.
        max_relative_position: larger offsets share an entry of the tables; None for no relative position.
        drop_path: stochastic depth rate of each block; by default linear from 0 to drop_path_rate.
        drop_rate, pos_drop_rate: dropout before the classifier, and after the positions.
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
        max_relative_position: int | None = 14,
        drop_path: Sequence[float] | None = None,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        fc_norm: bool = False,
        weight_init: Literal["", "skip"] = "",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if len(num_heads) != len(mlp_ratio):
            raise AutoFormerError(
                f"AutoFormer: {len(num_heads)} num_heads but {len(mlp_ratio)} mlp_ratio; give one a block"
            )
        rates = drop_path or drop_path_rates(drop_path_rate, len(num_heads))
        grid = _square_grid(img_size, patch_size, max_relative_position)

        def block(dim: int, depth: int, **_: Any) -> Block:
            attention = Attention(dim, num_heads[depth], head_dim, grid, max_relative_position)
            return Block(dim, int(dim * mlp_ratio[depth]), rates[depth], attention)

        super().__init__(
            img_size=img_size, patch_size=patch_size, in_chans=in_chans, num_classes=num_classes,
            global_pool=global_pool, embed_dim=embed_dim, depth=len(num_heads), num_heads=num_heads[0],
            fc_norm=fc_norm, drop_rate=drop_rate, pos_drop_rate=pos_drop_rate, weight_init=weight_init,
            norm_layer=_layer_norm, block_fn=block,
        )  # fmt: skip
        self.max_relative_position = max_relative_position
        self.to(device=device, dtype=dtype)

    @classmethod
    def from_spec(cls, space: SearchSpace, spec: SubnetSpec, drop_path: Sequence[float] | None = None) -> Self:
        """The model of a subnet, with fresh weights. `drop_path`: the supernet's rates, one per block."""
        model = cls(**timm_arguments(space, spec), drop_path=drop_path)
        model.pretrained_cfg = model.default_cfg = describe(
            space.name, space.image_size, space.in_channels, space.num_classes
        )
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
            AutoFormerError: an oblong grid of patches, with relative position.
        """
        embed = self.patch_embed
        grid = _square_grid(img_size or embed.img_size, patch_size or embed.patch_size, self.max_relative_position)
        super().set_input_size(img_size=img_size, patch_size=patch_size)
        for module in self.modules():
            if isinstance(module, Attention):
                if offsets == "stretch" and grid != module.grid:
                    module.stretch(grid)
                module.set_grid(grid)
                self.max_relative_position = module.max_relative_position


def _square_grid(img_size: Any, patch_size: Any, max_relative_position: int | None) -> int:
    rows, columns = (size // patch for size, patch in zip(to_2tuple(img_size), to_2tuple(patch_size), strict=True))
    if rows != columns and max_relative_position is not None:
        raise AutoFormerError(
            f"AutoFormer: img_size {img_size} gives {rows} x {columns} patches; relative position needs a square grid"
        )
    return rows


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
        "max_relative_position": space.max_relative_position if space.relative_position else None,
    }


def describe(name: str, image_size: int = 224, in_channels: int = 3, num_classes: int = 1000) -> dict[str, Any]:
    """timm's `pretrained_cfg` of a model: for three channels the official evaluation protocol."""
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


def _layer_norm(dim: int, **kwargs: Any) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=LAYER_NORM_EPS, **kwargs)
