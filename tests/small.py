"""Small search spaces, and weights that make a test able to fail."""

from typing import Any

from hypothesis import strategies as st

from autoformer.space import Choices, SearchSpace, SubnetSpec, SupernetSize

SPACES = ("autoformer-tiny", "autoformer-small", "autoformer-base", "autoformer-base-wide-heads", "mmrazor-base")


def small_space(**changes: Any) -> SearchSpace:
    """8 x 8 images, 4 x 4 patches, offsets clipped at 2 (of 3), and a supernet wider than its widest subnet."""
    fields: dict[str, Any] = {
        "name": "small",
        "image_size": 8,
        "patch_size": 2,
        "in_channels": 3,
        "num_classes": 5,
        "head_dim": 4,
        "max_relative_position": 2,
        "supernet": SupernetSize(embed_dim=20, depth=3, num_heads=4, mlp_ratio=3.0),
        "choices": Choices(embed_dim=(8, 12, 16), depth=(1, 2, 3), num_heads=(1, 2, 3), mlp_ratio=(1.0, 1.3, 2.0)),
    }
    return SearchSpace(**(fields | changes))


def variants() -> dict[str, SearchSpace]:
    """One space for each way in which models differ."""
    return {
        "mean": small_space(),
        "class_token": small_space(pooling="class_token"),
        "no_relative_position": small_space(relative_position=False),
        "unclipped": small_space(max_relative_position=5),
        "one_channel": small_space(in_channels=1, patch_size=4),
        "stem": small_space(stem_channels=(6, 5), image_size=28, patch_size=7, max_relative_position=3),
    }


@st.composite
def specs(draw: st.DrawFn, space: SearchSpace) -> SubnetSpec:
    """Any subnet of a space."""
    c = space.choices
    depth = draw(st.sampled_from(c.depth))
    heads = draw(st.lists(st.sampled_from(c.num_heads), min_size=depth, max_size=depth))
    ratios = draw(st.lists(st.sampled_from(c.mlp_ratio), min_size=depth, max_size=depth))
    return SubnetSpec(depth, draw(st.sampled_from(c.embed_dim)), tuple(heads), tuple(ratios))


def perturb(module: Any, seed: int = 0) -> Any:
    """Fill every parameter, so that norms are not 1 and biases not 0: the same for modules of one shape. In float64."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    module.double()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            centre = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module
