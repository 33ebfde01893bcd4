"""The weight-entangled supernet (paper section 3.2): one set of weights in which every subnet is a slice.

Dimensions: B images, N tokens, E embedding width, D = heads * head_dim, H heads, d head_dim.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from timm.layers import drop_path
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from autoformer.attention import Position, PositionBuffers, RelativePosition2D, attend, attend_with_position
from autoformer.blocks import LAYER_NORM_EPS
from autoformer.errors import AutoFormerError, check_choice
from autoformer.layers import (
    SlicedLayerNorm,
    SlicedLinear,
    drop_path_rates,
    embed_patches,
    initialise,
    normal_parameter,
)
from autoformer.space import SearchSpace, SubnetSpec
from autoformer.stem import embed_by_stem, stem_layers
from autoformer.vit import AutoFormer

BiasRule = Literal["aligned", "official"]


class SupernetQKV(SlicedLinear):
    """The projection to queries, keys and values, with rows ordered [head][q, k, v][channel].

    So the rows of a subnet with fewer heads are one contiguous view. The rule "aligned" slices the bias like the
    weight. "official" reproduces the published checkpoints, whose bias is sliced differently: its first 3D entries are
    read as [q, k, v][head][channel], whatever their channel in the supernet.
    """

    def __init__(self, in_features: int, num_heads: int, head_dim: int, bias_rule: BiasRule) -> None:
        super().__init__(in_features, 3 * num_heads * head_dim)
        self.head_dim = head_dim
        self.bias_rule = bias_rule

    def forward(self, x: Tensor, num_heads: int) -> Tensor:  # type: ignore[override]
        """(B, N, E) -> (B, N, H, 3, d)."""
        rows = 3 * num_heads * self.head_dim
        out = nn.functional.linear(x, self.weight[:rows, : x.shape[-1]], self.bias_of(num_heads))
        return out.unflatten(-1, (num_heads, 3, self.head_dim))

    def bias_of(self, num_heads: int) -> Tensor:
        """The bias of a subnet with `num_heads` heads (3D,), ordered like its weight rows."""
        bias = self.bias[: 3 * num_heads * self.head_dim]
        if self.bias_rule == "aligned":
            return bias
        return bias.view(3, num_heads, self.head_dim).transpose(0, 1).reshape(-1)


class SupernetAttention(nn.Module):
    def __init__(self, space: SearchSpace, bias_rule: BiasRule) -> None:
        super().__init__()
        size = space.supernet
        self.head_dim, self.grid = space.head_dim, (space.grid, space.grid)
        self.qkv = SupernetQKV(size.embed_dim, size.num_heads, space.head_dim, bias_rule)
        self.proj = SlicedLinear(size.num_heads * space.head_dim, size.embed_dim)
        self.rel_pos_k = self.rel_pos_v = None
        if space.relative_position:
            self.rel_pos_k = RelativePosition2D(space.max_relative_position, space.head_dim)
            self.rel_pos_v = RelativePosition2D(space.max_relative_position, space.head_dim)

    def forward(self, x: Tensor, num_heads: int, position: Position) -> Tensor:
        """(B, N, E) -> (B, N, E)."""
        qkv = self.qkv(x, num_heads)
        if self.rel_pos_k is None or self.rel_pos_v is None:
            out = attend(qkv)
        else:
            out = attend_with_position(qkv, self.rel_pos_k(), self.rel_pos_v(), position, self.grid)
        return self.proj(out.flatten(2), x.shape[-1])


class SupernetMlp(nn.Module):
    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = SlicedLinear(embed_dim, hidden_dim)
        self.fc2 = SlicedLinear(hidden_dim, embed_dim)

    def forward(self, x: Tensor, hidden_dim: int) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x, hidden_dim)), x.shape[-1])


class SupernetBlock(nn.Module):
    def __init__(self, space: SearchSpace, drop_path: float, bias_rule: BiasRule) -> None:
        super().__init__()
        size = space.supernet
        self.drop_path = drop_path
        self.norm1 = SlicedLayerNorm(size.embed_dim, eps=LAYER_NORM_EPS)
        self.attn = SupernetAttention(space, bias_rule)
        self.norm2 = SlicedLayerNorm(size.embed_dim, eps=LAYER_NORM_EPS)
        self.mlp = SupernetMlp(size.embed_dim, int(size.embed_dim * size.mlp_ratio))

    def forward(self, x: Tensor, num_heads: int, hidden_dim: int, position: Position) -> Tensor:
        x = x + drop_path(self.attn(self.norm1(x), num_heads, position), self.drop_path, self.training)
        return x + drop_path(self.mlp(self.norm2(x), hidden_dim), self.drop_path, self.training)


class SupernetPatchEmbed(nn.Module):
    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        embed_dim, patch = space.supernet.embed_dim, space.patch_size
        self.proj: nn.Conv2d | nn.Sequential = (
            stem_layers(space.in_channels, space.stem_channels, embed_dim)
            if space.stem_channels
            else nn.Conv2d(space.in_channels, embed_dim, kernel_size=patch, stride=patch)
        )

    def forward(self, images: Tensor, embed_dim: int) -> Tensor:
        """(B, C, S, S) -> (B, P, E)."""
        if isinstance(self.proj, nn.Sequential):
            return embed_by_stem(images, self.proj, embed_dim)
        assert self.proj.bias is not None
        return embed_patches(images, self.proj.weight[:embed_dim], self.proj.bias[:embed_dim])


class Supernet(nn.Module):
    """The supernet: one set of weights for all subnets of a search space.

    The subnet is an argument of `forward`; there is no active subnet. Width, heads and MLP ratio are prefixes; a
    smaller depth leaves out the last blocks. Parameters have the names of the extracted model, whose tensors are
    prefixes of those here.

    Args:
        drop_path: stochastic depth rate of the deepest block; linear from 0, not rescaled with a subnet's depth.
        bias_rule: how a subnet's qkv bias is sliced; "official" is for `autoformer.official.load_official`.
    """

    def __init__(self, space: SearchSpace, drop_path: float = 0.0, bias_rule: BiasRule = "aligned") -> None:
        super().__init__()
        check_choice("bias_rule", bias_rule, get_args(BiasRule))
        self.space, self.bias_rule = space, bias_rule
        self.image_shape = (space.in_channels, space.image_size, space.image_size)
        self.grad_checkpointing = False
        embed_dim, depth = space.supernet.embed_dim, space.supernet.depth
        self.patch_embed = SupernetPatchEmbed(space)
        self.cls_token = normal_parameter(1, 1, embed_dim)
        self.pos_embed = normal_parameter(1, 1 + space.num_patches, embed_dim)
        self.drop_path_rates = drop_path_rates(drop_path, depth)
        self.blocks = nn.ModuleList(SupernetBlock(space, rate, bias_rule) for rate in self.drop_path_rates)
        self.norm = SlicedLayerNorm(embed_dim, eps=LAYER_NORM_EPS)
        self.head = SlicedLinear(embed_dim, space.num_classes)
        self.position = PositionBuffers(space.grid, space.head_dim, space.max_relative_position)
        initialise(self)

    def forward(self, images: Tensor, spec: SubnetSpec) -> Tensor:
        """Images (B, C, S, S) -> logits (B, K) of the subnet `spec`.

        Raises `AutoFormerError` if the subnet does not fit (`SearchSpace.check_fits`), or for images of another shape:
        slices would silently be those of another subnet.
        """
        self.space.check_fits(spec)
        if images.shape[1:] != self.image_shape:
            raise AutoFormerError(
                f"supernet: images of shape {tuple(images.shape)}, but '{self.space.name}' takes (B, "
                f"{', '.join(map(str, self.image_shape))})"
            )
        x = self.patch_embed(images, spec.embed_dim)  # (B, P, E)
        class_token = self.cls_token[..., : spec.embed_dim].expand(len(x), -1, -1)
        x = torch.cat([class_token, x], dim=1) + self.pos_embed[..., : spec.embed_dim]  # (B, N, E)
        position = self.position()
        for block, heads in enumerate(spec.num_heads):
            arguments = x, heads, spec.hidden_dim(block), position
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(self.blocks[block], *arguments, use_reentrant=False)
            else:
                x = self.blocks[block](*arguments)
        x = self.norm(x)
        x = x[:, 1:].mean(dim=1) if self.space.pooling == "mean" else x[:, 0]  # (B, E)
        return self.head(x, self.space.num_classes)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only each block's input for the backward pass, which recomputes the rest. timm's name."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay, besides all 1-D ones: tokens, positions, tables. timm's name."""
        return {name for name, _ in self.named_parameters() if "rel_pos" in name} | {"cls_token", "pos_embed"}

    def matrix_slices(self, specs: Sequence[SubnetSpec]) -> dict[str, tuple[int, int]]:
        """Parameter name -> rows and columns of each block matrix that contain the slices of all `specs`."""
        slices: dict[str, tuple[int, int]] = {}
        for spec in specs:
            for block, heads in enumerate(spec.num_heads):
                embed, width, hidden = spec.embed_dim, heads * self.space.head_dim, spec.hidden_dim(block)
                for layer, used in (
                    ("attn.qkv", (3 * width, embed)),
                    ("attn.proj", (embed, width)),
                    ("mlp.fc1", (hidden, embed)),
                    ("mlp.fc2", (embed, hidden)),
                ):
                    name = f"blocks.{block}.{layer}.weight"
                    before = slices.get(name, (0, 0))
                    slices[name] = max(used[0], before[0]), max(used[1], before[1])
        return slices

    def extract(self, spec: SubnetSpec) -> AutoFormer:
        """The subnet `spec` as a plain vision transformer with its own weights."""
        self.space.check_fits(spec)
        model = AutoFormer.from_spec(self.space, spec, drop_path=self.drop_path_rates)
        model.to(dtype=self.cls_token.dtype, device=self.cls_token.device)
        model.load_state_dict(self.slices(model.state_dict(), spec))
        return model.train(self.training)

    def slices(self, shapes: dict[str, Tensor], spec: SubnetSpec) -> dict[str, Tensor]:
        """Copies of this supernet's tensors, sliced to the shapes of the extracted model's state dict."""
        own = self.state_dict()
        cut = {name: own[name][tuple(slice(n) for n in like.shape)].clone() for name, like in shapes.items()}
        for block, heads in enumerate(spec.num_heads):
            name = f"blocks.{block}.attn.qkv"
            qkv = self.get_submodule(name)
            assert isinstance(qkv, SupernetQKV)
            cut[f"{name}.bias"] = qkv.bias_of(heads).detach().clone()
        return cut
