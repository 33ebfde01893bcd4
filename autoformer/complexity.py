"""Parameters and multiply-adds of a subnet, by formula. Torch-free; each definition stands here alone.

Symbols: P patches, N = P + 1 tokens, E embedding width, D = head_dim x heads, F hidden width of the MLP,
g patches on a side, R largest relative position, d head_dim, K classes, C channels, p patch size.
"""

from typing import Literal, NamedTuple

from autoformer.space import SearchSpace, SubnetSpec

RelativePosition = Literal["none", "published", "ours"]


class MmrazorCounts(NamedTuple):
    params: int
    flops: int


def count_params(space: SearchSpace, spec: SubnetSpec) -> int:
    """Parameters of the extracted subnet, every one of them.

    Equal to the official `get_sampled_params_numel`, hence to the published 5.9, 22.9 and 53.7 M.
    """
    embed, tokens = spec.embed_dim, space.num_patches + 1
    position = (tokens + 1) * embed  # the class token and a learned position for every token
    tables = 4 * (2 * space.max_relative_position + 2) * space.head_dim if space.relative_position else 0
    return _matmul_layers_params(space, spec) + position + spec.depth * tables


def count_macs(space: SearchSpace, spec: SubnetSpec, relative_position: RelativePosition = "ours") -> int:
    """Multiply-adds of the matrix products for one image; norms, activations and softmax are not counted.

    Args:
        relative_position: which work the relative position costs.
            "none": leave it out, as most published figures do.
            "published": two (N, N, d) tables multiplied with queries and with attention weights, as the
                official code executes them: 2 N^2 D a block.
            "ours": what our attention executes (see `autoformer.attention`): a head that is wider by W features,
                2g one-hot rows and columns padded, hence 2 N^2 W for each head, and the products with the vectors
                of all L offsets that make the scores and the relative term of the output, 2 N L D.
    """
    patches, tokens, embed = space.num_patches, space.num_patches + 1, spec.embed_dim
    macs = patches * space.in_channels * space.patch_size**2 * embed + embed * space.num_classes
    for block, heads in enumerate(spec.num_heads):
        width = heads * space.head_dim
        macs += tokens * (4 * width * embed + 2 * embed * spec.hidden_dim(block))
        macs += 2 * tokens**2 * width
        if not space.relative_position or relative_position == "none":
            continue
        if relative_position == "published":
            macs += 2 * tokens**2 * width
        else:
            extra = attention_width(space) - space.head_dim
            macs += 2 * tokens * (tokens * heads * extra + attention_offsets(space) * width)
    return macs


def attention_width(space: SearchSpace) -> int:
    """Width of a head as our attention executes it: head_dim and 2g position features, a multiple of 8."""
    if not space.relative_position:
        return space.head_dim
    return -(-(space.head_dim + 2 * space.grid) // 8) * 8


def attention_offsets(space: SearchSpace) -> int:
    """Offsets of rows and of columns between patches, and one for the class token; a multiple of 8."""
    return -(-(2 * (2 * space.grid - 1) + 1) // 8) * 8


def official_complexity(space: SearchSpace, spec: SubnetSpec) -> float:
    """The official `get_complexity`, errors included, for comparison with what it printed.

    It counts the class token twice in the blocks (T = N + 1), multiplies the head with all N tokens, leaves
    out the last norm, and has a relative-position term that nothing executes.
    """
    patches, tokens, embed = space.num_patches, space.num_patches + 1, spec.embed_dim
    t = tokens + 1
    total = embed + patches * space.in_channels * space.patch_size**2 * embed + tokens * embed / 2
    for block, heads in enumerate(spec.num_heads):
        width = heads * space.head_dim
        total += 2 * t * embed + 3 * t * embed * width + 2 * t * t * width + t * width * embed
        total += 2 * t * embed * spec.hidden_dim(block)
        if space.relative_position:
            total += 2 * space.max_relative_position * t * t + t * t / 2 + t * width / 2
    return total + tokens * embed * space.num_classes


def mmrazor_counts(space: SearchSpace, spec: SubnetSpec) -> MmrazorCounts:
    """What mmrazor's counters report: Conv2d, Linear and LayerNorm only.

    Parameters leave out class token, positions and relative tables. Its "FLOPs" leave out the attention
    products, count a LayerNorm as two operations an element, and the bias of the patch convolution (once a
    position), but not that of linear layers.
    """
    patches, tokens, embed = space.num_patches, space.num_patches + 1, spec.embed_dim
    norm = 2 * tokens * embed
    flops = patches * embed * (space.in_channels * space.patch_size**2 + 1) + norm
    flops += embed * space.num_classes
    for block, heads in enumerate(spec.num_heads):
        width, hidden = heads * space.head_dim, spec.hidden_dim(block)
        flops += tokens * (4 * width * embed + 2 * embed * hidden) + 2 * norm
    return MmrazorCounts(_matmul_layers_params(space, spec), flops)


def _matmul_layers_params(space: SearchSpace, spec: SubnetSpec) -> int:
    """Parameters of the convolution, the linear layers and the norms."""
    embed = spec.embed_dim
    params = (space.in_channels * space.patch_size**2 + 1) * embed + 2 * embed + (embed + 1) * space.num_classes
    for block, heads in enumerate(spec.num_heads):
        width, hidden = heads * space.head_dim, spec.hidden_dim(block)
        params += 4 * embed + (embed + 1) * 3 * width + (width + 1) * embed
        params += (embed + 1) * hidden + (hidden + 1) * embed
    return params
