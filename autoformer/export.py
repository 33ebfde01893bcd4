"""A subnet as one file that needs only torch: `torch.export.load(file).module()(images)`."""

from pathlib import Path

import torch
from torch.export import Dim

from autoformer.files import replacing
from autoformer.vit import AutoFormer

EXAMPLE_BATCH = (
    29  # equals no other dimension: torch.export treats a batch size of 1, or a repeated size, as a constant
)


def export_program(model: AutoFormer, file: Path) -> None:
    """Write the model, in evaluation mode, as an exported program for any batch size.

    The program maps normalised images (B, C, S, S) to logits (B, K). It runs on the model's device: position features
    are constants in it.
    """
    size = model.pretrained_cfg["input_size"]
    example = torch.zeros(EXAMPLE_BATCH, *size, device=next(model.parameters()).device)
    with torch.no_grad():  # timm's `forward` calls its parameter "x"
        program = torch.export.export(model.eval(), (example,), dynamic_shapes={"x": {0: Dim("batch")}})
    with replacing(file) as temporary, temporary.open("wb") as stream:
        torch.export.save(program, stream)
