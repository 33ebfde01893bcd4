"""Models on disk: weights as safetensors, and a card as JSON (`autoformer.cards`).

A folder is written whole or not at all. Its bytes depend only on the content: no clock, path or name.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from autoformer.cards import SubnetCard, SupernetCard, read_subnet_card, read_supernet_card
from autoformer.complexity import count_params
from autoformer.errors import AutoFormerError, check_choice
from autoformer.files import replacing, write_json
from autoformer.supernet import Supernet
from autoformer.vit import AutoFormer
from autoformer.weights import check_same_kind, read_safetensors


class LoadedSupernet(NamedTuple):
    model: Supernet
    card: SupernetCard


class LoadedSubnet(NamedTuple):
    model: AutoFormer
    card: SubnetCard


def save_supernet(
    folder: str | Path, raw: dict[str, Tensor], ema: dict[str, Tensor] | None, card: SupernetCard
) -> None:
    """Write `weights.safetensors`, `ema.safetensors` unless `ema` is None, and `supernet.json`."""
    with replacing(Path(folder)) as temporary:
        temporary.mkdir()
        _save(temporary / "weights.safetensors", raw)
        if ema is not None:
            _save(temporary / "ema.safetensors", ema)
        write_json(temporary / "supernet.json", card.model_dump(mode="json"))


def load_supernet(folder: str | Path, weights: Literal["ema", "raw"] = "raw", drop_path: float = 0.0) -> LoadedSupernet:
    """Load a supernet in evaluation mode. Raises `AutoFormerError` naming the damaged or missing file.

    `drop_path`: stochastic depth rate, for further training.
    """
    check_choice("weights", weights, ("ema", "raw"))
    folder = Path(folder)
    card = read_supernet_card(folder)
    file = folder / ("ema.safetensors" if weights == "ema" else "weights.safetensors")
    if weights == "ema" and not file.exists():
        raise AutoFormerError(f"{file}: no such file; the supernet was trained without ema_decay, use its raw weights")
    _check_size(file, count_params(card.space, card.space.whole))
    model = Supernet(card.space, drop_path, card.bias_rule)
    _load(model, file)
    return LoadedSupernet(model.eval(), card)


def save_subnet(folder: str | Path, model: AutoFormer, card: SubnetCard) -> None:
    """Write `model.safetensors` and `model.json`."""
    with replacing(Path(folder)) as temporary:
        temporary.mkdir()
        _save(temporary / "model.safetensors", model.state_dict())
        write_json(temporary / "model.json", card.model_dump(mode="json"))


def load_subnet(folder: str | Path) -> LoadedSubnet:
    """Load a subnet in evaluation mode. Raises `AutoFormerError` naming the damaged or missing file."""
    folder = Path(folder)
    card = read_subnet_card(folder)
    file = folder / "model.safetensors"
    _check_size(file, count_params(card.space, card.subnet))
    model = AutoFormer.from_spec(card.space, card.subnet)
    _load(model, file)
    return LoadedSubnet(model.eval(), card)


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with NaN or infinity, if any. Synchronises with the device once."""
    names = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
    if not names:
        return None
    finite = torch.stack([tensors[name].detach().isfinite().all() for name in names]).tolist()
    return next((name for name, is_finite in zip(names, finite, strict=True) if not is_finite), None)


def _check_finite(tensors: Mapping[str, Tensor], file: Path | str) -> None:
    name = first_not_finite(tensors)
    if name:
        raise AutoFormerError(f"{file}: '{name}' holds NaN or infinity; lower the learning_rate and train again")


def _save(file: Path, tensors: dict[str, Tensor]) -> None:
    _check_finite(tensors, file.name)
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))  # safetensors sets no errno
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from None


def _check_size(file: Path, params: int) -> None:
    """Refuse a size that the weights cannot have, before the model is allocated: a card may describe any size."""
    if file.exists() and file.stat().st_size < params:
        raise AutoFormerError(
            f"{file}: not the weights that the file beside it describes: {file.stat().st_size:,} bytes for {params:,} "
            "parameters; run the step that makes it again"
        )


def _load(model: Supernet | AutoFormer, file: Path) -> None:
    if not file.exists():
        raise AutoFormerError(f"{file}: no such file; run the step that makes it")
    tensors = read_safetensors(file, "run the step that makes it again")
    check_same_kind(tensors, model.state_dict(), file)
    try:
        model.load_state_dict(tensors)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise AutoFormerError(f"{file}: not the weights that the file beside it describes ({reason})") from None
    _check_finite(tensors, file)
