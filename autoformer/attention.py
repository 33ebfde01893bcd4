"""Attention with 2-D relative position on keys and values, without a tensor of shape (N, N, d).

The official code builds R[i, j] = T_rows[y_j - y_i] + T_columns[x_j - x_i] for every pair of tokens and
multiplies it with queries and with attention weights. The term is separable: a patch key has one row and one
column. So the query is extended by its score with every row and every column, the key by the one-hot of its
own row and column, and one call of `scaled_dot_product_attention` computes both terms of the score. The value
is extended by the same one-hots: what comes back is how much attention fell on each row and each column,
which the value tables turn into the relative term of the output. All of it is exact.

The class token has an entry of its own in the tables (0), used when query or key is the class token. With c
that entry's vector: a patch query scores the class key with q.c and a patch key with q.(row + column). Softmax
does not see a constant, so q.c is taken off its row scores and the class key needs no feature. For the class
query every key scores q.c alike, so its position features are zero. On the value side attention sums to 1, so
the weight on the class key is 1 minus that on all rows, and c is added once, the row vectors less c.

A query is multiplied with the vectors of all offsets, in one product for all tokens, and the scores of the g
rows that there are lie side by side among them: a window, which moves by one from a row of queries to the next
(Music Transformer's skewing, arXiv 1809.04281, in two dimensions). The value side is its mirror image.

Dimensions: B images, N tokens, P = g * g patches, H heads, d head_dim, W = 2g features padded to a width,
L = 2(2g - 1) + 1 offsets: of rows, of columns, and one for c; padded to a multiple of 8.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from autoformer.layers import normal_parameter


class RelativePosition2D(nn.Module):
    """The two tables of one block's keys, or of its values: a vector for each row and each column offset.

    Entry 0 is for the class token; entries 1 to 2R + 1 are for offsets -R to R, beyond which they are clipped.
    The parameters are named as in the official code: v for vertical (rows), h for horizontal (columns).
    """

    def __init__(self, max_relative_position: int, head_dim: int) -> None:
        super().__init__()
        self.max_relative_position = max_relative_position
        self.table_v = normal_parameter(2 * max_relative_position + 2, head_dim)
        self.table_h = normal_parameter(2 * max_relative_position + 2, head_dim)

    def forward(self, grid: int) -> Tensor:
        """The vectors of all offsets (L, d): of rows from 1 - g to g - 1, less c; of columns likewise; c; zeros."""
        class_token = self.table_v[:1] + self.table_h[:1]
        rows, columns = self._offsets(self.table_v, grid) - class_token, self._offsets(self.table_h, grid)
        padding = offset_columns(grid) - 2 * len(rows) - 1
        return torch.cat([rows, columns, class_token, class_token.new_zeros(padding, class_token.shape[1])])

    def _offsets(self, table: Tensor, grid: int) -> Tensor:
        """The entries of offsets 1 - g to g - 1 (2g - 1, d)."""
        limit, reach = self.max_relative_position, min(self.max_relative_position, grid - 1)
        entries = table[limit + 1 - reach : limit + 2 + reach]
        beyond = grid - 1 - reach
        if not beyond:
            return entries
        return torch.cat([entries[:1].expand(beyond, -1), entries, entries[-1:].expand(beyond, -1)])

    def stretch(self, reach: int, new_reach: int) -> None:
        """Spread what is known of the offsets -reach to reach over -new_reach to new_reach; entry 0 stays.

        Linear in between, ends to ends and 0 to 0, so that an equal reach changes nothing. Entries beyond `reach`, of
        offsets that no image has had, are dropped. As timm resizes the tables of its models with relative position.
        """
        middle = self.max_relative_position + 1
        for name in ("table_v", "table_h"):
            table = getattr(self, name)
            used = table[middle - reach : middle + reach + 1].T[None]  # 1 d offsets
            spread = F.interpolate(used.float(), size=2 * new_reach + 1, mode="linear", align_corners=True)[0].T
            entries = torch.cat([table[:1], spread.to(table.dtype)]).detach()
            setattr(self, name, nn.Parameter(entries, requires_grad=table.requires_grad))
        self.max_relative_position = new_reach


def offset_columns(grid: int) -> int:
    """L: offsets of rows and of columns and one for c, padded to a multiple of 8."""
    return -(-(2 * (2 * grid - 1) + 1) // 8) * 8


def position_features(grid: int, head_dim: int) -> Tensor:
    """One-hot row and column of every token (N, W), W padded so that head_dim + W is a multiple of 8.

    The class token's are zero.
    """
    width = -(-(head_dim + 2 * grid) // 8) * 8 - head_dim
    features = torch.zeros(1 + grid * grid, width)
    patch = torch.arange(grid * grid)
    features[1 + patch, patch // grid] = 1
    features[1 + patch, grid + patch % grid] = 1
    return features


def attend(qkv: Tensor) -> Tensor:
    """Plain attention. (B, N, H, 3, d) -> (B, N, H, d)."""
    q, k, v = qkv.transpose(1, 2).unbind(dim=3)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def attend_with_position(
    qkv: Tensor, on_keys: RelativePosition2D, on_values: RelativePosition2D, features: Tensor
) -> Tensor:
    """Attention with relative position on keys and values (paper section 3.3; Shaw et al., 1803.02155).

    Args:
        qkv: (B, N, H, 3, d), token 0 the class token, then the patches row by row.
        on_keys, on_values: the tables of this block.
        features: `position_features` (N, W).

    Returns:
        (B, N, H, d).
    """
    grid = round((qkv.shape[1] - 1) ** 0.5)
    extended: Tensor = _Extend.apply(qkv, on_keys(grid).to(qkv.dtype), features)
    q, k, v = extended.transpose(1, 2).unbind(dim=3)
    scale = qkv.shape[-1] ** -0.5  # of the head itself, not of the extended width
    out = F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)
    return _Contract.apply(out, on_values(grid).to(out.dtype))


class _Extend(Function):
    """Queries, keys and values (B, N, H, 3, d) with their position features (B, N, H, 3, d + W).

    Written out rather than left to autograd, which would pass a zero-padded gradient of full size through every slice.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, vectors: Tensor, features: Tensor) -> Tensor:
        batch, tokens, heads, _, dim = qkv.shape
        width = features.shape[1]
        scores = _queries(qkv, dim) @ vectors.t()
        extended = qkv.new_empty(batch, tokens, heads, 3, dim + width)
        extended[..., :dim] = qkv
        extended[..., 1:, dim:] = features[:, None, None]
        _from_offsets(scores.view(batch, tokens, heads, -1), extended[..., 0, dim:])
        ctx.save_for_backward(extended, vectors)
        return extended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        extended, vectors = ctx.saved_tensors
        columns, dim = vectors.shape
        of_scores = _to_offsets(gradient[..., 0, dim:], columns).flatten(0, 2)
        of_qkv = gradient[..., :dim].clone(memory_format=torch.contiguous_format)
        _queries(of_qkv, dim).addmm_(of_scores, vectors)
        return of_qkv, of_scores.t() @ _queries(extended, dim), None


class _Contract(Function):
    """Values (B, N, H, d) from values and the attention on each row and column (B, N, H, d + W)."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, vectors: Tensor) -> Tensor:
        columns, dim = vectors.shape
        weights = _attention_on_offsets(out[..., dim:], columns)
        ctx.save_for_backward(out, vectors)
        return torch.addmm(out.flatten(0, 2)[:, :dim], weights, vectors).view(*out.shape[:-1], dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        out, vectors = ctx.saved_tensors
        columns, dim = vectors.shape
        weights = _attention_on_offsets(out[..., dim:], columns)  # made again: a copy is cheaper than its memory
        flat = gradient.flatten(0, 2)
        of_out = torch.empty_like(out, memory_format=torch.contiguous_format)
        of_out[..., :dim] = gradient
        _from_offsets((flat @ vectors.t()).view(*out.shape[:-1], columns), of_out[..., dim:])
        return of_out, weights.t() @ flat


def _queries(qkv: Tensor, dim: int) -> Tensor:
    """The queries of (B, N, H, 3, d or more), as a matrix (B N H, d)."""
    return qkv.flatten(3).flatten(0, 2)[:, :dim]


def _attention_on_offsets(mass: Tensor, columns: int) -> Tensor:
    """The attention on rows and columns (B, N, H, W) by their offset from the query, and 1 for c (B N H, L)."""
    by_offset = _to_offsets(mass, columns)
    grid = round((mass.shape[1] - 1) ** 0.5)
    by_offset[..., 2 * (2 * grid - 1)] = 1
    return by_offset.flatten(0, 2)


def _to_offsets(features: Tensor, columns: int) -> Tensor:
    """From (B, N, H, W), where feature i of a patch is row or column i, to (B, N, H, L), where it is an offset."""
    batch, tokens, heads, _ = features.shape
    by_offset = features.new_zeros(batch, tokens, heads, columns)
    grid = round((tokens - 1) ** 0.5)
    for window, of_patch in zip(_windows(by_offset, grid), _rows_and_columns(features, grid), strict=True):
        window.copy_(of_patch)
    return by_offset


def _from_offsets(by_offset: Tensor, features: Tensor) -> None:
    """The way back, into `features` (B, N, H, W): zeros where there is neither row nor column."""
    grid = round((features.shape[1] - 1) ** 0.5)
    features.zero_()
    for window, of_patch in zip(_windows(by_offset, grid), _rows_and_columns(features, grid), strict=True):
        of_patch.copy_(window)


def _rows_and_columns(features: Tensor, grid: int) -> Iterator[Tensor]:
    """Views of (B, N, H, W): what each patch has for all rows, then for all columns (B, g, g, H, g)."""
    for first in (0, grid):
        yield features[:, 1:, :, first : first + grid].unflatten(1, (grid, grid))


def _windows(by_offset: Tensor, grid: int) -> Iterator[Tensor]:
    """Views of (B, N, H, L), contiguous: for each patch the offsets of all rows, then of all columns (B, g, g, H, g).

    Row i lies at offset i - y from a query in row y: with each y the window begins one entry earlier. Views are made
    one by one, since an exported program runs them under autograd: there none may be older than a change of its base.
    """
    batch, tokens, heads, columns = by_offset.shape
    token = heads * columns
    row = grid * token
    first = token + grid - 1  # behind the class token
    shape = (batch, grid, grid, heads, grid)
    yield by_offset.as_strided(shape, (tokens * token, row - 1, token, columns, 1), first)
    yield by_offset.as_strided(shape, (tokens * token, row, token - 1, columns, 1), first + 2 * grid - 1)
