"""Layers whose weights are shared by entanglement (paper section 3.2): a smaller layer is a prefix of a larger one.

Each subclasses its torch layer, slices its parameters, and calls the functional form. Its input sets the input width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoformer.errors import AutoFormerError


class SlicedLinear(nn.Linear):
    """A linear layer that uses the first inputs and outputs of its weight."""

    def forward(self, x: Tensor, out_features: int) -> Tensor:  # type: ignore[override]
        """(..., in) -> (..., out_features), for in and out_features up to the layer's own."""
        bias = None if self.bias is None else self.bias[:out_features]
        return F.linear(x, self.weight[:out_features, : x.shape[-1]], bias)


class SlicedLayerNorm(nn.LayerNorm):
    """A layer norm that uses the first entries of its weight and bias."""

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[-1]
        return F.layer_norm(x, (width,), self.weight[:width], self.bias[:width], self.eps)


def embed_patches(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Patch convolution (stride = kernel = p) as one matrix product.

    Args:
        images: (B, C, S, S), S a multiple of p.
        weight: (E, C, p, p).
        bias: (E,).

    Returns:
        (B, P, E), patches row by row.
    """
    batch, channels, side, _ = images.shape
    embed_dim, patch = weight.shape[0], weight.shape[-1]
    grid = side // patch
    patches = images.reshape(batch, channels, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5)  # (B, g, g, C, p, p)
    return F.linear(patches.reshape(batch, grid * grid, channels * patch * patch), weight.reshape(embed_dim, -1), bias)


def initialise(module: nn.Module, gain: float | None = None) -> None:
    """Initialise linear layers: normal weights, zero bias. The patch convolution keeps torch's initialisation.

    Args:
        gain: standard deviation times sqrt(inputs). None for the official deviation 0.02, which suits the widths of the
            published spaces (0.02 = 0.4 / sqrt(400)) and is far too small for narrow ones.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02 if gain is None else gain * layer.in_features**-0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Stochastic depth rate of each block, linear from 0 to `rate`. Raises `AutoFormerError` if that is none."""
    if not 0 <= rate <= 1:
        raise AutoFormerError(f"drop_path = {rate}: expected a rate from 0 to 1")
    return [rate * block / max(depth - 1, 1) for block in range(depth)]


def normal_parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(*shape), std=0.02))
