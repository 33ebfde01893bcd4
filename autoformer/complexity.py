"""Parameters and MACs (multiply-adds) of a subnet, by formula. Torch-free.

Symbols: P patches, N = P + 1 tokens, E embedding width, D = head_dim x heads, g patches on a side, d head_dim,
W position features of a token, L offsets (see `autoformer.attention`).
"""

import math
from itertools import pairwise
from typing import Literal

from autoformer.errors import check_choice
from autoformer.space import SearchSpace, SubnetSpec, halved

RelativePosition = Literal["none", "published", "ours"]
COUNTED_MACS: dict[RelativePosition, str] = {
    "none": "MACs without relative position",
    "published": "MACs with relative position as published",
    "ours": "MACs with relative position as executed here",
}


def count_params(space: SearchSpace, spec: SubnetSpec) -> int:
    """All parameters of the extracted subnet.

    Equal to the official `get_sampled_params_numel`, hence to the published 5.9, 22.9 and 53.7 M.
    """
    embed = spec.embed_dim
    position = (space.num_patches + 2) * embed  # class token, and a learned position for each of N tokens
    tables = 4 * (2 * space.max_relative_position + 2) * space.head_dim if space.relative_position else 0
    params = position + spec.depth * tables
    params += sum((inputs + 1) * outputs for _, inputs, outputs in embedding_products(space, embed))
    params += 2 * embed + (embed + 1) * space.num_classes
    for block, heads in enumerate(spec.num_heads):
        width, hidden = heads * space.head_dim, spec.hidden_dim(block)
        params += 4 * embed + (embed + 1) * 3 * width + (width + 1) * embed
        params += (embed + 1) * hidden + (hidden + 1) * embed
    return params


def count_macs(space: SearchSpace, spec: SubnetSpec, relative_position: RelativePosition = "none") -> int:
    """MACs of the matrix products for one image, without norms, activations and softmax.

    Args:
        relative_position: the cost of relative position in each block.
            "none": nothing, as in most published figures, and in all figures of a run.
            "published": queries and attention weights times two (N, N, d) tables, as the official code executes them:
                2 N^2 D.
            "ours": as `autoformer.attention` executes it. Heads are wider by W features, 2 N^2 W for each head, and
                queries and outputs are multiplied with the vectors of all L offsets, 2 N L D.
    """
    check_choice("relative_position", relative_position, tuple(COUNTED_MACS))
    tokens, embed = space.num_patches + 1, spec.embed_dim
    macs = sum(math.prod(product) for product in embedding_products(space, embed)) + embed * space.num_classes
    for block, heads in enumerate(spec.num_heads):
        width = heads * space.head_dim
        macs += tokens * (4 * width * embed + 2 * embed * spec.hidden_dim(block))
        macs += 2 * tokens**2 * width
        if not space.relative_position or relative_position == "none":
            continue
        if relative_position == "published":
            macs += 2 * tokens**2 * width
        else:
            features = position_width(space.grid, space.head_dim)
            macs += 2 * tokens * (tokens * heads * features + num_offsets(space.grid) * width)
    return macs


def embedding_products(space: SearchSpace, embed_dim: int) -> list[tuple[int, int, int]]:
    """Rows, inputs and outputs of the matrix product of each layer before the blocks: of the patches, or the stem."""
    if not space.stem_channels:
        return [(space.num_patches, space.in_channels * space.patch_size**2, embed_dim)]
    channels = [space.in_channels, *space.stem_channels, embed_dim]
    sides = [halved(space.image_size, times) for times in range(len(space.stem_channels))]  # pooled afterwards
    sides.append(space.grid)
    return [(side**2, 9 * inputs, outputs) for side, (inputs, outputs) in zip(sides, pairwise(channels), strict=True)]


def position_width(grid: int, head_dim: int) -> int:
    """W: 2g one-hot rows and columns, 1 for any key, at least one zero; head_dim + W is a multiple of 8."""
    return -(-(head_dim + 2 * grid + 2) // 8) * 8 - head_dim


def num_offsets(grid: int) -> int:
    """L: 2g - 1 row offsets, 2g - 1 column offsets and one for the class token, padded to a multiple of 8.

    The padding is never empty: 4g - 1 is odd.
    """
    return -(-(2 * (2 * grid - 1) + 1) // 8) * 8
