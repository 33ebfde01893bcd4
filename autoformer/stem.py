"""A convolutional stem in place of the patch embedding, for small images (Xiao et al., arXiv 2106.14881).

3 x 3 convolutions, each followed by max pooling and GELU, halve the image; the last one has stride 2 instead and makes
the tokens, one for each patch. Only its outputs depend on the subnet's width, so it is sliced like the patch embedding.

Dimensions: B images, C channels, S pixels on a side, P patches, E embedding width.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from timm.layers import PatchEmbed
from torch import Tensor, nn

from autoformer.errors import AutoFormerError


class ChannelsLastMaxPool2d(nn.MaxPool2d):
    """Max pooling in channels-last memory format, which is faster on a CPU: the same values, without `return_indices`.

    (B, C, H, W) or (C, H, W) -> the same with H and W divided by the stride.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.max_pool2d(
            input.movedim(-3, -1).contiguous().movedim(-1, -3),  # also under torch.func.vmap
            self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode,
        )  # fmt: skip


def stem_layers(in_channels: int, channels: Sequence[int], embed_dim: int) -> nn.Sequential:
    """(B, C, S, S) -> (B, E, g, g). `channels`: outputs of each convolution but the last, at least one."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise([in_channels, *channels]):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), ChannelsLastMaxPool2d(2, ceil_mode=True), nn.GELU()]
    return nn.Sequential(*layers, nn.Conv2d(channels[-1], embed_dim, 3, stride=2, padding=1))


def embed_by_stem(images: Tensor, layers: nn.Sequential, embed_dim: int) -> Tensor:
    """The tokens (B, P, E) of a subnet with width `embed_dim`, patches row by row."""
    x, last = images, layers[-1]
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    for layer in layers[:-1]:
        x = layer(x)
    x = F.conv2d(x, last.weight[:embed_dim], last.bias[:embed_dim], stride=2, padding=1)
    return x.flatten(2).transpose(1, 2)


class ConvStem(PatchEmbed):
    """timm's patch embedding with the stem as its projection. It takes images of any size; the grid is rounded up."""

    def __init__(self, stem_channels: Sequence[int], in_chans: int = 3, embed_dim: int = 768, **arguments: Any) -> None:
        self.reduction = 2 ** (len(stem_channels) + 1)
        super().__init__(in_chans=in_chans, embed_dim=embed_dim, **arguments)
        self.proj = stem_layers(in_chans, stem_channels, embed_dim)

    def _init_img_size(self, img_size: Any) -> Any:
        size, grid, _ = super()._init_img_size(img_size)
        if size is None:
            return None, None, None
        grid = -(-size[0] // self.reduction), -(-size[1] // self.reduction)
        return size, grid, grid[0] * grid[1]

    def set_input_size(self, img_size: Any = None, patch_size: Any = None) -> None:
        if patch_size is not None:
            raise AutoFormerError("AutoFormer: a convolutional stem has no patch size to change; leave patch_size out")
        super().set_input_size(img_size=img_size)

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        rows, columns = img_size
        if self.dynamic_img_pad:
            rows += -rows % self.patch_size[0]
            columns += -columns % self.patch_size[1]
        return -(-rows // self.reduction), -(-columns // self.reduction)
