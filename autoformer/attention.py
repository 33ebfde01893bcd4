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

    def forward(self, grid: int, width: int) -> tuple[Tensor, Tensor]:
        """The vectors of each query token: row vectors less c, then column vectors, then zeros (N, W, d); and c (d,).

        All of the class token's are zero.
        """
        limit = self.max_relative_position
        side = torch.arange(grid, device=self.table_v.device)
        index = (side[None, :] - side[:, None]).clamp(-limit, limit) + limit + 1  # query, key
        class_token = self.table_v[0] + self.table_h[0]
        rows = (self.table_v[index] - class_token)[:, None].expand(-1, grid, -1, -1)  # y x row d
        columns = self.table_h[index].expand(grid, -1, -1, -1)  # y x column d
        vectors = torch.cat([rows, columns], dim=2).flatten(0, 1)  # P 2g d
        return F.pad(vectors, (0, 0, 0, width - 2 * grid, 1, 0)), class_token

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
    grid, width = round((tokens - 1) ** 0.5), features.shape[-1]
    features = features.to(q.dtype)[:, None].expand(batch, -1, heads, -1)  # B N H W

    vectors, _ = on_keys(grid, width)
    scores = torch.einsum("bnhd,nwd->bnhw", q, vectors).to(q.dtype)
    out = F.scaled_dot_product_attention(
        torch.cat([q, scores], dim=-1).transpose(1, 2),
        torch.cat([k, features], dim=-1).transpose(1, 2),
        torch.cat([v, features], dim=-1).transpose(1, 2),
        scale=dim**-0.5,  # of the head itself, not of the extended width
    ).transpose(1, 2)

    vectors, class_token = on_values(grid, width)
    return out[..., :dim] + torch.einsum("bnhw,nwd->bnhd", out[..., dim:], vectors) + class_token
