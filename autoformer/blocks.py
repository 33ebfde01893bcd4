"""The transformer block of an extracted subnet.

Dimensions: B images, N tokens, E embedding width, H heads, d head_dim.
"""

from typing import Final

import torch
import torch.fx
from timm.layers import DropPath, Mlp, use_fused_attn
from timm.layers.attention import maybe_add_mask, resolve_self_attn_mask
from torch import Tensor, nn

from autoformer.attention import PositionBuffers, RelativePosition2D, attend, attend_with_position
from autoformer.plain_attention import relative_scores, relative_values
from autoformer.space import stretched_reach

LAYER_NORM_EPS = 1e-5

# each is one node in a graph of torch.fx; the first keeps the fast form
torch.fx.wrap("attend_with_position")
torch.fx.wrap("relative_scores")
torch.fx.wrap("relative_values")
torch.fx.wrap("maybe_add_mask")
torch.fx.wrap("resolve_self_attn_mask")


def _after_loading(attention: "Attention", _: object) -> None:
    """No file holds the constants: after `to_empty` they would be whatever the memory holds."""
    attention.init_non_persistent_buffers()


class Attention(nn.Module):
    """Multi-head attention with 2-D relative position. Its width is heads * head_dim, independent of `dim`.

    As in timm, `fused_attn = False` computes the attention weights (B, H, N, N), which are then the output of
    `attn_drop`: for attention maps.
    """

    fused_attn: Final[bool]

    def __init__(
        self, dim: int, num_heads: int, head_dim: int, grid: tuple[int, int], max_relative_position: int | None
    ) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        self.qkv = nn.Linear(dim, 3 * num_heads * head_dim)  # rows ordered [head][q, k, v][channel]
        self.fused_attn = use_fused_attn()
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(num_heads * head_dim, dim)
        self.rel_pos_k = self.rel_pos_v = self.position = None
        if max_relative_position is not None:
            self.position = PositionBuffers(max(grid), head_dim, max_relative_position)
            self.rel_pos_k = RelativePosition2D(max_relative_position, head_dim)
            self.rel_pos_v = RelativePosition2D(max_relative_position, head_dim)
        self.max_relative_position, self.grid = max_relative_position, grid
        self.register_load_state_dict_post_hook(_after_loading)

    def set_grid(self, grid: tuple[int, int]) -> None:
        """Set the rows and columns of patches. No parameter depends on them."""
        self.grid = grid
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Compute the constants of the grid where the weights are. timm calls it for a model from the meta device."""
        if self.position is not None and self.rel_pos_k is not None and self.max_relative_position is not None:
            device = self.rel_pos_k.table_v.device
            self.position.set(max(self.grid), self.head_dim, self.max_relative_position, device)

    def stretch(self, grid: int) -> None:
        """Interpolate the relative tables from a square grid to one of another size."""
        for tables in (self.rel_pos_k, self.rel_pos_v):
            if tables is not None:
                reach = tables.max_relative_position
                self.max_relative_position = stretched_reach(reach, self.grid[0], grid)
                tables.stretch(min(reach, self.grid[0] - 1), self.max_relative_position)

    def reset_parameters(self) -> None:
        """Initialise tables and buffers after `to_empty` has moved a model from the meta device."""
        for tables in (self.rel_pos_k, self.rel_pos_v):
            if tables is not None:
                nn.init.trunc_normal_(tables.table_v, std=0.02)
                nn.init.trunc_normal_(tables.table_h, std=0.02)
        self.set_grid(self.grid)

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        grid: tuple[int, int] | None = None,
    ) -> Tensor:
        """(B, N, E) -> (B, N, E). `grid`: rows and columns of patches; by default those of `set_grid`."""
        qkv = self.qkv(x).unflatten(-1, (self.num_heads, 3, self.head_dim))
        if not self.fused_attn:
            out = self._attend_in_steps(qkv, attn_mask, is_causal, self.grid if grid is None else grid)
        elif self.rel_pos_k is None or self.rel_pos_v is None or self.position is None:
            out = attend(qkv, attn_mask, is_causal)
        else:
            grid = self.grid if grid is None else grid
            tables = self.rel_pos_k(), self.rel_pos_v()
            out = attend_with_position(qkv, tables[0], tables[1], self.position(), grid, attn_mask, is_causal)
        return self.proj(out.flatten(2))

    def _attend_in_steps(self, qkv: Tensor, attn_mask: Tensor | None, is_causal: bool, grid: tuple[int, int]) -> Tensor:
        """(B, N, H, 3, d) -> (B, N, H, d)."""
        q, k, v = qkv.transpose(1, 2).unbind(dim=3)  # (B, H, N, d)
        scores = q @ k.transpose(-2, -1)
        if self.rel_pos_k is not None:
            scores = scores + relative_scores(q, self.rel_pos_k(), grid)
        scores = scores * self.head_dim**-0.5
        scores = maybe_add_mask(scores, resolve_self_attn_mask(qkv.shape[1], scores, attn_mask, is_causal))
        weights = self.attn_drop(scores.softmax(dim=-1))
        out = weights @ v
        if self.rel_pos_v is not None:
            out = out + relative_values(weights, self.rel_pos_v(), grid)
        return out.transpose(1, 2)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, hidden_dim: int, drop_path: float, attention: Attention) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = attention
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, hidden_dim)

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        grid: tuple[int, int] | None = None,
    ) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), attn_mask, is_causal, grid))
        return x + self.drop_path(self.mlp(self.norm2(x)))
