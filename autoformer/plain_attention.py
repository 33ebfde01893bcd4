"""Attention with 2-D relative position in ordinary operators, for tracers, transforms and oblong grids.

Terms and extended heads are those of `autoformer.attention`. Instead of a window in the products with all offsets, a
query is multiplied with the vectors of its own row and column.

Dimensions: B images, N tokens, H heads, d head_dim, r rows and c columns of patches, W = r + c position features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend_extended(extended: Tensor, head_dim: int, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
    """(B, N, H, 3, d + W) -> (B, N, H, d + W), scaled for heads of width d."""
    q, k, v = extended.transpose(1, 2).unbind(dim=3)  # (B, H, N, d + W)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, is_causal=is_causal, scale=head_dim**-0.5)
    return out.transpose(1, 2)


def attend_plainly(
    qkv: Tensor,
    on_keys: tuple[Tensor, Tensor],
    on_values: tuple[Tensor, Tensor],
    grid: tuple[int, int],
    attn_mask: Tensor | None,
    is_causal: bool,
) -> Tensor:
    """`autoformer.attention.attend_with_position` for any grid, in ordinary operators."""
    rows, columns = grid
    dtype, device = qkv.dtype, qkv.device
    place = torch.arange(rows * columns, device=device)
    row_of = (place // columns)[:, None] == torch.arange(rows, device=device)
    column_of = (place % columns)[:, None] == torch.arange(columns, device=device)
    features = F.pad(torch.cat([row_of, column_of], dim=1).to(dtype), [0, 0, 1, 0])  # (N, W)

    by_row, by_column, class_token = _by_query(on_keys, rows, columns, dtype)
    queries = qkv[:, 1:, :, 0].unflatten(1, [rows, columns])  # (B, r, c, H, d)
    on_rows = torch.einsum("byxhd,yrd->byxhr", queries, by_row - class_token)
    on_columns = torch.einsum("byxhd,xcd->byxhc", queries, by_column)
    scores = F.pad(torch.cat([on_rows, on_columns], dim=4).flatten(1, 2), [0, 0, 0, 0, 1, 0])  # (B, N, H, W)
    of_keys = features[:, None].expand_as(scores)
    extended = torch.cat([qkv, torch.stack([scores, of_keys, of_keys], dim=3).to(dtype)], dim=4)

    out = attend_extended(extended, qkv.shape[4], attn_mask, is_causal)
    out, weights = out[..., : qkv.shape[4]], out[:, 1:, :, qkv.shape[4] :].unflatten(1, [rows, columns])
    by_row, by_column, class_token = _by_query(on_values, rows, columns, out.dtype)
    relative = torch.einsum("byxhr,yrd->byxhd", weights[..., :rows], by_row - class_token)
    relative = relative + torch.einsum("byxhc,xcd->byxhd", weights[..., rows:], by_column)
    return out + class_token + F.pad(relative.flatten(1, 2), [0, 0, 0, 0, 1, 0])


def _by_query(
    tables: tuple[Tensor, Tensor], rows: int, columns: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The vectors of all rows for a query in each row (r, r, d), of columns likewise (c, c, d), and c (d,)."""
    vertical, horizontal = tables
    limit = vertical.shape[0] // 2 - 1
    places = torch.arange(rows, device=vertical.device)
    by_row = vertical[(places - places[:, None]).clamp(-limit, limit) + limit + 1]
    places = torch.arange(columns, device=vertical.device)
    by_column = horizontal[(places - places[:, None]).clamp(-limit, limit) + limit + 1]
    return by_row.to(dtype), by_column.to(dtype), (vertical[0] + horizontal[0]).to(dtype)
