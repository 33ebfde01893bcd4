"""Attention with 2-D relative position on keys and values, without a tensor of shape (N, N, d).

The official code builds R[i, j] = T_rows[y_j - y_i] + T_columns[x_j - x_i] for every pair of tokens, and multiplies it
with queries and with attention weights. R is a sum over one row and one column, so one call of
`scaled_dot_product_attention` with wider heads computes both terms exactly:

- Score: the query is extended by its products with the g row vectors and the g column vectors, the key by the one-hot
  of its row and column. Their product is the relative term of the score.
- Output: the value is extended by the same one-hots. The extra outputs are the attention on each row and each column;
  the value tables turn them into the relative term of the output.

The class token has entry 0 of the tables, with vector c, used where query or key is the class token:

- A patch query scores the class key with q.c. Softmax ignores a constant, so q.c is subtracted from the row scores.
- The class query scores every key with q.c, a constant, so its position features are zero.
- Attention sums to 1, so the attention on the class key is 1 minus that on all rows. The output gets c once, and the
  row vectors are taken minus c.

One matrix product multiplies all queries with the vectors of all offsets. The scores of a query's g rows are a window
in its result, which moves by one entry from one row of queries to the next (the skewing of Music Transformer, arXiv
1809.04281, in two dimensions). The value side is its transpose.

That form has custom gradients and writes through strided views, which tracers and `torch.func` refuse; they take
`autoformer.plain_attention`.

Dimensions: B images, N tokens, P = g * g patches, H heads, d head_dim, W position features (2g, padded), L offsets
(rows, columns and c, padded).
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from autoformer.complexity import num_offsets, position_width
from autoformer.layers import normal_parameter
from autoformer.plain_attention import attend_extended, attend_plainly


class RelativePosition2D(nn.Module):
    """The two tables of one block's keys or values: a vector for each row offset and each column offset.

    Entry 0 is the class token's. Entries 1 to 2R + 1 are offsets -R to R; larger offsets are clipped.
    Named as in the official code: v for vertical (rows), h for horizontal (columns).
    """

    def __init__(self, max_relative_position: int, head_dim: int) -> None:
        super().__init__()
        self.max_relative_position = max_relative_position
        self.table_v = normal_parameter(2 * max_relative_position + 2, head_dim)
        self.table_h = normal_parameter(2 * max_relative_position + 2, head_dim)

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.table_v, self.table_h

    def stretch(self, reach: int, new_reach: int) -> None:
        """Interpolate the entries of offsets -reach to reach linearly to -new_reach to new_reach; entry 0 stays.

        Ends map to ends and 0 to 0. Entries beyond `reach`, which no image has trained, are dropped. timm resizes its
        relative position tables in the same way.
        """
        middle = self.max_relative_position + 1
        for name in ("table_v", "table_h"):
            table = getattr(self, name)
            used = table[middle - reach : middle + reach + 1].T[None]  # (1, d, 2 reach + 1)
            resized = F.interpolate(used.float(), size=2 * new_reach + 1, mode="linear", align_corners=True)[0].T
            entries = torch.cat([table[:1], resized.to(table.dtype)]).detach()
            setattr(self, name, nn.Parameter(entries, requires_grad=table.requires_grad))
        self.max_relative_position = new_reach


def position_features(grid: int, head_dim: int) -> Tensor:
    """One-hot row and column of each token (N, W); zeros for the class token."""
    features = torch.zeros(1 + grid * grid, position_width(grid, head_dim))
    patch = torch.arange(grid * grid)
    features[1 + patch, patch // grid] = 1
    features[1 + patch, grid + patch % grid] = 1
    return features


def attend(qkv: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """Plain attention. (B, N, H, 3, d) -> (B, N, H, d)."""
    q, k, v = qkv.transpose(1, 2).unbind(dim=3)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, is_causal=is_causal).transpose(1, 2)


def attend_with_position(
    qkv: Tensor,
    on_keys: tuple[Tensor, Tensor],
    on_values: tuple[Tensor, Tensor],
    features: Tensor,
    grid: tuple[int, int],
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    """Attention with relative position on keys and values (paper section 3.3; Shaw et al., arXiv 1803.02155).

    Args:
        qkv: (B, N, H, 3, d), token 0 the class token, then the patches row by row.
        on_keys, on_values: the tables of this block.
        features: `position_features` (N, W). Used for a grid of their size; computed for another.
        grid: rows and columns of patches.
        attn_mask, is_causal: as in `scaled_dot_product_attention`.

    Returns:
        (B, N, H, d).
    """
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        side = grid[0]
        if side == grid[1] and not _is_traced():
            if len(features) != qkv.shape[1]:
                features = position_features(side, qkv.shape[-1]).to(features)
            extended: Tensor = _Extend.apply(qkv, _of_offsets(on_keys, side).to(qkv.dtype), features)
            out = attend_extended(extended, qkv.shape[-1], attn_mask, is_causal)
            contracted: Tensor = _Contract.apply(out, _of_offsets(on_values, side).to(out.dtype))
            return contracted
    return attend_plainly(qkv, on_keys, on_values, grid, attn_mask, is_causal)


def _is_traced() -> bool:
    """Whether this call is recorded or transformed: jit.trace, torch.export, both ONNX exporters, torch.func."""
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()  # torch.compile takes the fast form
    return torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()  # type: ignore[attr-defined]


def _of_offsets(tables: tuple[Tensor, Tensor], grid: int) -> Tensor:
    """The vectors of all offsets (L, d): rows 1 - g to g - 1, minus c; columns likewise; c; zeros."""
    vertical, horizontal = tables
    class_token = vertical[:1] + horizontal[:1]
    rows, columns = _entries(vertical, grid) - class_token, _entries(horizontal, grid)
    padding = num_offsets(grid) - 2 * len(rows) - 1
    return torch.cat([rows, columns, class_token, class_token.new_zeros(padding, class_token.shape[1])])


def _entries(table: Tensor, grid: int) -> Tensor:
    """The entries of offsets 1 - g to g - 1 (2g - 1, d)."""
    limit = len(table) // 2 - 1
    reach = min(limit, grid - 1)
    entries = table[limit + 1 - reach : limit + 2 + reach]
    clipped = grid - 1 - reach
    if not clipped:
        return entries
    return torch.cat([entries[:1].expand(clipped, -1), entries, entries[-1:].expand(clipped, -1)])


class _Extend(Function):
    """(B, N, H, 3, d) -> (B, N, H, 3, d + W): queries, keys and values with their position features.

    A `Function`, since autograd would pass a zero-padded gradient of full size through every slice.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, vectors: Tensor, features: Tensor) -> Tensor:
        batch, tokens, heads, _, dim = qkv.shape
        width = features.shape[1]
        scores = _queries(qkv, dim) @ vectors.t()  # (B N H, L)
        extended = qkv.new_empty(batch, tokens, heads, 3, dim + width)
        extended[..., :dim] = qkv
        extended[..., 1:, dim:] = features[:, None, None]
        _from_offsets(scores.view(batch, tokens, heads, len(vectors)), extended[..., 0, dim:])
        ctx.save_for_backward(extended, vectors)
        return extended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        extended, vectors = ctx.saved_tensors
        offsets, dim = vectors.shape
        grad_scores = _to_offsets(gradient[..., 0, dim:], offsets).flatten(0, 2)  # (B N H, L)
        grad_qkv = gradient[..., :dim].clone(memory_format=torch.contiguous_format)
        _queries(grad_qkv, dim).addmm_(grad_scores, vectors)
        return grad_qkv, grad_scores.t() @ _queries(extended, dim), None


class _Contract(Function):
    """(B, N, H, d + W) -> (B, N, H, d): the attention on rows and columns becomes the relative term of the output."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, vectors: Tensor) -> Tensor:
        offsets, dim = vectors.shape
        weights = _attention_on_offsets(out[..., dim:], offsets)  # (B N H, L)
        ctx.save_for_backward(out, vectors)
        return torch.addmm(out.flatten(0, 2)[:, :dim], weights, vectors).view(*out.shape[:-1], dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        out, vectors = ctx.saved_tensors
        offsets, dim = vectors.shape
        weights = _attention_on_offsets(out[..., dim:], offsets)  # recomputed: cheaper than keeping them in memory
        flat = gradient.flatten(0, 2)  # (B N H, d)
        grad_out = torch.empty_like(out, memory_format=torch.contiguous_format)
        grad_out[..., :dim] = gradient
        _from_offsets((flat @ vectors.t()).view(*out.shape[:-1], offsets), grad_out[..., dim:])
        return grad_out, weights.t() @ flat


def _queries(qkv: Tensor, dim: int) -> Tensor:
    """(B, N, H, 3, d or more) -> the queries (B N H, d), a view."""
    return qkv.flatten(3).flatten(0, 2)[:, :dim]


def _attention_on_offsets(attention: Tensor, offsets: int) -> Tensor:
    """Attention on rows and columns (B, N, H, W) -> on their offsets from the query, and 1 for c (B N H, L)."""
    by_offset = _to_offsets(attention, offsets)
    grid = round((attention.shape[1] - 1) ** 0.5)
    by_offset[..., 2 * (2 * grid - 1)] = 1
    return by_offset.flatten(0, 2)


def _to_offsets(features: Tensor, offsets: int) -> Tensor:
    """(B, N, H, W), by row and column -> (B, N, H, L), by offset from the query."""
    batch, tokens, heads, _ = features.shape
    by_offset = features.new_zeros(batch, tokens, heads, offsets)
    grid = round((tokens - 1) ** 0.5)
    for window, of_patch in zip(_windows(by_offset, grid), _rows_and_columns(features, grid), strict=True):
        window.copy_(of_patch)
    return by_offset


def _from_offsets(by_offset: Tensor, features: Tensor) -> None:
    """The inverse of `_to_offsets`, into `features`; zeros for the class token and in the padding."""
    grid = round((features.shape[1] - 1) ** 0.5)
    features.zero_()
    for window, of_patch in zip(_windows(by_offset, grid), _rows_and_columns(features, grid), strict=True):
        of_patch.copy_(window)


def _rows_and_columns(features: Tensor, grid: int) -> Iterator[Tensor]:
    """Views of (B, N, H, W): all rows for each patch, then all columns (B, g, g, H, g)."""
    for first in (0, grid):
        yield features[:, 1:, :, first : first + grid].unflatten(1, (grid, grid))


def _windows(by_offset: Tensor, grid: int) -> Iterator[Tensor]:
    """Views of (B, N, H, L), contiguous: the offsets of all rows for each patch, then of all columns (B, g, g, H, g).

    Row i has offset i - y from a query in row y: with each y the window begins one entry earlier. Views are yielded one
    by one, since an exported program runs them under autograd, which refuses views older than a write to their base.
    """
    batch, tokens, heads, offsets = by_offset.shape
    token = heads * offsets
    row = grid * token
    first = token + grid - 1  # after the class token
    shape = (batch, grid, grid, heads, grid)
    yield by_offset.as_strided(shape, (tokens * token, row - 1, token, offsets, 1), first)
    yield by_offset.as_strided(shape, (tokens * token, row, token - 1, offsets, 1), first + 2 * grid - 1)
