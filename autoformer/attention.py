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

One matrix product multiplies all queries with the vectors of all offsets, and a gather picks the scores of a query's g
rows and g columns from its result (the skewing of Music Transformer, arXiv 1809.04281, in two dimensions). On the value
side a gather goes from rows and columns to offsets. On a GPU, kernel launches limit small models, so each of
these is one kernel. The sum of table entries is one too, as a product with a constant matrix.

This form has custom gradients, which tracers and `torch.func` refuse; they use `autoformer.plain_attention`.

Dimensions: B images, N tokens, P = g * g patches, H heads, d head_dim, W position features (rows, columns, "any key",
padded), L offsets (rows, columns, c, padded), T entries of both tables of a block's keys.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from autoformer.complexity import num_offsets, position_width
from autoformer.layers import normal_parameter
from autoformer.plain_attention import attend_extended, attend_plainly

Position = tuple[Tensor, Tensor, Tensor]


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


class PositionTables(NamedTuple):
    """Constants of relative position on a grid; see `position_tables`."""

    features: Tensor
    places: Tensor
    combine: Tensor


def position_tables(grid: int, head_dim: int, max_relative_position: int) -> PositionTables:
    """The constants of relative position on a square grid.

    Returns:
        features: (N, 2, W), appended to each key and each value: the one-hot row and column of a patch, zeros for the
            class token. Values also have a 1 after the columns, which sums the attention on all keys to 1.
        places: (N, W + L), gather indices for each query: of its features among the offsets, then of the offsets among
            its features. An index without a counterpart points to padding, which is zero.
        combine: (L, T), the vectors of offsets as sums of entries of the tables.
    """
    width, offsets = position_width(grid, head_dim), num_offsets(grid)
    rows, columns, any_key, no_feature = 0, grid, 2 * grid, width - 1
    row_offsets, column_offsets, class_token, no_offset = 0, 2 * grid - 1, 4 * grid - 2, offsets - 1
    line, patch = torch.arange(grid), torch.arange(grid * grid)
    row, column = patch // grid, patch % grid

    features = torch.zeros(1 + grid * grid, 2, width)
    features[1 + patch, :, rows + row] = 1
    features[1 + patch, :, columns + column] = 1
    features[:, 1, any_key] = 1

    to_features = torch.full((1 + grid * grid, width), no_offset)
    to_offsets = torch.full((1 + grid * grid, offsets), no_feature)
    to_offsets[:, class_token] = any_key
    for own, first_offset, first_feature in ((row, row_offsets, rows), (column, column_offsets, columns)):
        offset_of = first_offset + grid - 1 + line - own[:, None]  # (P, g)
        to_features[1:, first_feature : first_feature + grid] = offset_of
        to_offsets[1:].scatter_(1, offset_of, (first_feature + line).expand_as(offset_of))

    entries = 2 * max_relative_position + 2  # of one table: class token, -R ... R
    entry_of = torch.arange(1 - grid, grid).clamp(-max_relative_position, max_relative_position) + entries // 2
    combine = torch.zeros(offsets, 2 * entries)
    by_offset = torch.arange(2 * grid - 1)
    combine[row_offsets + by_offset, entry_of] = 1
    combine[row_offsets + by_offset, 0] = combine[row_offsets + by_offset, entries] = -1
    combine[column_offsets + by_offset, entries + entry_of] = 1
    combine[class_token, 0] = combine[class_token, entries] = 1
    return PositionTables(features, torch.cat([to_features, to_offsets], dim=1), combine)


class PositionBuffers(nn.Module):
    """`position_tables` as buffers, which move with the model and are in no state dict."""

    features: Tensor
    places: Tensor
    combine: Tensor

    def __init__(self, grid: int, head_dim: int, max_relative_position: int) -> None:
        super().__init__()
        for name, table in position_tables(grid, head_dim, max_relative_position)._asdict().items():
            self.register_buffer(name, table, persistent=False)

    def set(self, grid: int, head_dim: int, max_relative_position: int, device: torch.device) -> None:
        """Replace the tables by those of another grid, with the types that they have."""
        with torch.device("cpu"):  # whatever the default is
            tables = position_tables(grid, head_dim, max_relative_position)._asdict()
        for name, table in tables.items():
            setattr(self, name, table.to(device, getattr(self, name).dtype))

    def forward(self) -> Position:
        return self.features, self.places, self.combine


def attend(qkv: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """Plain attention. (B, N, H, 3, d) -> (B, N, H, d)."""
    q, k, v = qkv.transpose(1, 2).unbind(dim=3)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, is_causal=is_causal).transpose(1, 2)


def attend_with_position(
    qkv: Tensor,
    on_keys: tuple[Tensor, Tensor],
    on_values: tuple[Tensor, Tensor],
    position: Position,
    grid: tuple[int, int],
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    """Attention with relative position on keys and values (paper section 3.3; Shaw et al., arXiv 1803.02155).

    Args:
        qkv: (B, N, H, 3, d), token 0 the class token, then the patches row by row.
        on_keys, on_values: the tables of this block.
        position: `position_tables`; computed anew if `grid` has another size.
        grid: rows and columns of patches.
        attn_mask, is_causal: as in `scaled_dot_product_attention`.

    Returns:
        (B, N, H, d).
    """
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        side = grid[0]
        if side == grid[1] and not _is_traced():
            features, places, combine = position
            if len(features) != qkv.shape[1]:
                features, places, combine = (
                    new.to(old)
                    for new, old in zip(
                        position_tables(side, qkv.shape[-1], len(on_keys[0]) // 2 - 1), position, strict=True
                    )
                )
            of_keys, of_values = _Combine.apply(*on_keys, *on_values, combine, qkv.dtype)
            extended: Tensor = _Extend.apply(qkv, of_keys, features, places)
            out = attend_extended(extended, qkv.shape[-1], attn_mask, is_causal)
            contracted: Tensor = _Contract.apply(out, of_values.to(out.dtype), places)
            return contracted
    return attend_plainly(qkv, on_keys, on_values, grid, attn_mask, is_causal)


def _is_traced() -> bool:
    """Whether jit.trace, torch.export, an ONNX exporter or torch.func records or transforms this call."""
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()  # torch.compile keeps the fast form
    return torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()  # type: ignore[attr-defined]


class _Combine(Function):
    """The tables of keys and values, two each -> the vectors of all offsets, (L, d) for keys and for values."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        *tables, combine, dtype = arguments
        stacked = torch.cat(tables).view(2, combine.shape[1], -1)  # (2, T, d)
        combine = combine.to(stacked.dtype)
        ctx.save_for_backward(combine)
        vectors = stacked.new_empty(2, len(combine), stacked.shape[2])
        torch.bmm(combine.expand(2, -1, -1), stacked, out=vectors)  # `out`: autocast leaves it as it is
        of_keys, of_values = vectors.to(dtype).unbind()
        return of_keys, of_values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_keys: Tensor, of_values: Tensor) -> tuple[Tensor | None, ...]:
        (combine,) = ctx.saved_tensors
        gradient = torch.stack([of_keys, of_values]).to(combine.dtype)
        tables = torch.bmm(combine.t().expand(2, -1, -1), gradient)  # (2, T, d)
        return *tables.view(4, -1, tables.shape[2]).unbind(), None, None


class _Extend(Function):
    """(B, N, H, 3, d) -> (B, N, H, 3, d + W): queries, keys and values with their position features.

    A `Function`, since autograd would pass a zero-padded gradient of full size through every slice.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, vectors: Tensor, features: Tensor, places: Tensor) -> Tensor:
        batch, tokens, heads, _, dim = qkv.shape
        width = features.shape[2]
        scores = _queries(qkv, dim) @ vectors.t()  # (B N H, L)
        extended = qkv.new_empty(batch, tokens, heads, 3, dim + width)
        extended[..., :dim] = qkv
        extended[..., 1:, dim:] = features[:, None]
        _gather(scores.view(batch, tokens, heads, len(vectors)), places[:, :width], extended[..., 0, dim:])
        ctx.save_for_backward(extended, vectors, places)
        return extended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        extended, vectors, places = ctx.saved_tensors
        dim = vectors.shape[1]
        grad_scores = _by_offset(gradient[..., 0, dim:], places)  # (B N H, L)
        grad_qkv = gradient[..., :dim].clone(memory_format=torch.contiguous_format)
        _queries(grad_qkv, dim).addmm_(grad_scores, vectors)
        return grad_qkv, grad_scores.t() @ _queries(extended, dim), None, None


class _Contract(Function):
    """(B, N, H, d + W) -> (B, N, H, d): the attention on rows and columns becomes the relative term of the output."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, vectors: Tensor, places: Tensor) -> Tensor:
        dim = vectors.shape[1]
        weights = _by_offset(out[..., dim:], places)  # (B N H, L)
        ctx.save_for_backward(out, vectors, places)
        return torch.addmm(out.flatten(0, 2)[:, :dim], weights, vectors).view(*out.shape[:-1], dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        out, vectors, places = ctx.saved_tensors
        offsets, dim = vectors.shape
        weights = _by_offset(out[..., dim:], places)  # recomputed: cheaper than keeping them in memory
        flat = gradient.flatten(0, 2)  # (B N H, d)
        grad_out = torch.empty_like(out, memory_format=torch.contiguous_format)
        grad_out[..., :dim] = gradient
        _gather((flat @ vectors.t()).view(*out.shape[:-1], offsets), places[:, :-offsets], grad_out[..., dim:])
        return grad_out, weights.t() @ flat, None


def _queries(qkv: Tensor, dim: int) -> Tensor:
    """(B, N, H, 3, d or more) -> the queries (B N H, d), a view."""
    return qkv.flatten(3).flatten(0, 2)[:, :dim]


def _by_offset(features: Tensor, places: Tensor) -> Tensor:
    """(B, N, H, W), by row and column -> (B N H, L), by offset from the query."""
    places = places[:, None, features.shape[3] :]
    return features.gather(3, places.expand(*features.shape[:3], -1)).flatten(0, 2)


def _gather(source: Tensor, places: Tensor, target: Tensor) -> None:
    """target[b, n, h, i] = source[b, n, h, places[n, i]]."""
    expanded = places[:, None].expand_as(target)
    if torch.compiler.is_compiling():  # refuses to write into a slice
        target.copy_(source.gather(3, expanded))
    else:
        torch.gather(source, 3, expanded, out=target)
