"""A subnet as one file that needs only torch: `torch.export.load(file).module()(images)`."""

from pathlib import Path

import torch
from torch.export import Dim

from autoformer.files import replacing
from autoformer.vit import AutoFormer

EXAMPLE_BATCH = (
    29  # equals no other dimension: torch.export treats a batch size of 1, or a repeated size, as a constant
)


def export_program(model: AutoFormer, file: str | Path) -> None:
    """Write the model, in evaluation mode, as an exported program for any batch size.

    The program maps normalised images (B, C, S, S) to logits (B, K). It runs on the model's device: position features
    are constants in it.
    """
    channels = next(model.patch_embed.parameters()).shape[1]  # of its first convolution
    size = channels, *model.patch_embed.img_size  # of now: `set_input_size` changes no `pretrained_cfg`
    example = torch.zeros(EXAMPLE_BATCH, *size, device=next(model.parameters()).device)
    with torch.no_grad():  # timm's `forward` calls its parameter "x"
        program = torch.export.export(model.eval(), (example,), dynamic_shapes={"x": {0: Dim("batch")}})
    with replacing(Path(file)) as temporary, temporary.open("wb") as stream:
        torch.export.save(program, stream)
