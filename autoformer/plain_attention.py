"""Attention with 2-D relative position in ordinary operators, for tracers, transforms and oblong grids.

Terms and extended heads are those of `autoformer.attention`. Instead of a window in the products with all offsets, a
query is multiplied with the vectors of its own row and column.

Dimensions: B images, N tokens, P = r * c patches in r rows and c columns, H heads, d head_dim, W = r + c position
features.
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


def relative_scores(q: Tensor, on_keys: tuple[Tensor, Tensor], grid: tuple[int, int]) -> Tensor:
    """The relative term of the scores before scaling. (B, H, N, d) -> (B, H, N, N)."""
    by_row, by_column, class_token = _by_query(on_keys, grid[0], grid[1], q.dtype)
    queries = q[:, :, 1:].unflatten(2, [grid[0], grid[1]])  # (B, H, r, c, d)
    on_rows = torch.einsum("bhyxd,yrd->bhyxr", queries, by_row)
    on_columns = torch.einsum("bhyxd,xcd->bhyxc", queries, by_column)
    on_patches = (on_rows.unsqueeze(5) + on_columns.unsqueeze(4)).flatten(4, 5).flatten(2, 3)  # (B, H, P, P)
    on_class = torch.matmul(q, class_token).unsqueeze(3)  # (B, H, N, 1)
    of_class = on_class[:, :, :1].expand(-1, -1, -1, on_patches.shape[3])
    return torch.cat([on_class, torch.cat([of_class, on_patches], dim=2)], dim=3)


def relative_values(weights: Tensor, on_values: tuple[Tensor, Tensor], grid: tuple[int, int]) -> Tensor:
    """The relative term of the output. Attention weights (B, H, N, N) -> (B, H, N, d)."""
    by_row, by_column, class_token = _by_query(on_values, grid[0], grid[1], weights.dtype)
    on_patches = weights[:, :, 1:, 1:].unflatten(3, [grid[0], grid[1]]).unflatten(2, [grid[0], grid[1]])
    relative = torch.einsum("bhyxr,yrd->bhyxd", on_patches.sum(5), by_row)
    relative = relative + torch.einsum("bhyxc,xcd->bhyxd", on_patches.sum(4), by_column)
    of_patches = relative.flatten(2, 3) + weights[:, :, 1:, :1] * class_token
    return torch.cat([weights[:, :, :1].sum(3, keepdim=True) * class_token, of_patches], dim=2)


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
