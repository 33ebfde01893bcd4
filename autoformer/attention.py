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

Dimensions: B images, N tokens, P = g * g patches, H heads, d head_dim, W = 2g features padded to a width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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

    def forward(self, grid: int) -> tuple[Tensor, Tensor, Tensor]:
        """Row vectors less c (g, g, d), column vectors (g, g, d), both [query, key]; and c (d,)."""
        limit = self.max_relative_position
        side = torch.arange(grid, device=self.table_v.device)
        index = (side[None, :] - side[:, None]).clamp(-limit, limit) + limit + 1
        class_token = self.table_v[0] + self.table_h[0]
        return self.table_v[index] - class_token, self.table_h[index], class_token


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


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Plain attention. q, k, v and the result: (B, N, H, d)."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


def attend_with_position(
    q: Tensor, k: Tensor, v: Tensor, on_keys: RelativePosition2D, on_values: RelativePosition2D, features: Tensor
) -> Tensor:
    """Attention with relative position on keys and values (paper section 3.3; Shaw et al., 1803.02155).

    Args:
        q, k, v: (B, N, H, d), token 0 the class token, then the patches row by row.
        on_keys, on_values: the tables of this block.
        features: `position_features` (N, W).

    Returns:
        (B, N, H, d).
    """
    batch, tokens, heads, dim = q.shape
    grid = round((tokens - 1) ** 0.5)
    features = features.to(q.dtype).expand(batch, heads, -1, -1)

    rows, columns, _ = on_keys(grid)
    patches = q[:, 1:].reshape(batch, grid, grid, heads, dim)  # B y x H d
    row_scores = torch.einsum("byxhd,ywd->bhyxw", patches, rows)
    column_scores = torch.einsum("byxhd,xwd->bhyxw", patches, columns)
    scores = torch.cat([row_scores, column_scores], dim=-1).reshape(batch, heads, grid * grid, 2 * grid)
    scores = F.pad(scores, (0, features.shape[-1] - 2 * grid, 1, 0))  # the class query's are zero: B H N W

    out = F.scaled_dot_product_attention(
        torch.cat([q.transpose(1, 2), scores.to(q.dtype)], dim=-1),
        torch.cat([k.transpose(1, 2), features], dim=-1),
        torch.cat([v.transpose(1, 2), features], dim=-1),
        scale=dim**-0.5,  # of the head itself, not of the extended width
    )

    rows, columns, class_token = on_values(grid)
    on_rows = out[:, :, 1:, dim : dim + grid].reshape(batch, heads, grid, grid, grid)  # B H y x row
    on_columns = out[:, :, 1:, dim + grid : dim + 2 * grid].reshape(batch, heads, grid, grid, grid)
    relative = torch.einsum("bhyxw,ywd->bhyxd", on_rows, rows) + torch.einsum("bhyxw,xwd->bhyxd", on_columns, columns)
    relative = F.pad(relative.reshape(batch, heads, grid * grid, dim), (0, 0, 1, 0))
    return (out[..., :dim] + relative + class_token).transpose(1, 2)
