"""A subnet as one file that needs torch alone: `torch.export.load(file).module()(images)`."""

from pathlib import Path

import torch
from torch.export import Dim

from autoformer.files import replacing
from autoformer.vit import AutoFormer

EXAMPLE_BATCH = (
    29  # no size that the model has: torch.export takes a batch of 1, or of as many as heads, for a constant
)


def export_program(model: AutoFormer, file: Path) -> None:
    """Write the model, in evaluation mode, as an exported program for any number of images.

    The program takes normalised images (B, C, S, S) and gives logits (B, K). It runs on the device that the model
    was on: tables of positions are constants in it.
    """
    size = model.pretrained_cfg["input_size"]
    example = torch.zeros(EXAMPLE_BATCH, *size, device=next(model.parameters()).device)
    # timm's `forward` calls its parameter x
    with torch.no_grad():
        program = torch.export.export(model.eval(), (example,), dynamic_shapes={"x": {0: Dim("batch")}})
    with replacing(file) as temporary, temporary.open("wb") as stream:
        torch.export.save(program, stream)
