"""Checkpoints in the layout of the official trainer, with random weights."""

import argparse
from pathlib import Path

import torch

from autoformer.space import SearchSpace
from autoformer.supernet import Supernet

_NAMES = (
    ("patch_embed.", "patch_embed_super."),
    ("norm1.", "attn_layer_norm."),
    ("norm2.", "ffn_layer_norm."),
    ("mlp.", ""),
    ("rel_pos_k.", "rel_pos_embed_k.embeddings_"),
    ("rel_pos_v.", "rel_pos_embed_v.embeddings_"),
)


def write_checkpoint(file: Path, space: SearchSpace, deviation: float = 0.05) -> Path:
    """A file such as the published supernet-tiny.pth."""
    with torch.device("meta"):
        supernet = Supernet(space)
    state = {}
    generator = torch.Generator().manual_seed(0)
    for name, tensor in supernet.state_dict().items():
        for own, official in _NAMES:
            name = name.replace(own, official)
        state[name] = deviation * torch.randn(tensor.shape, generator=generator)
    assert "blocks.0.attn.rel_pos_embed_k.embeddings_table_v" in state
    torch.save({"model": state, "args": argparse.Namespace(gp=True)}, file)
    return file
