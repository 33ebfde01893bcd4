"""Compare logits and gradients with the CPU in float64, with a tolerance derived from the type.

A chain of n roundings, each off by at most u, is off by about sqrt(n) u (Higham and Mary 2019: errors add up like a
random walk). In float32 n counts the additions of all inner products from the image to the logits. In bfloat16, whose
products are summed in float32, n counts the rounded tensors. Gradients have three times as many roundings: forward, and
backward to inputs and to weights.
"""

import copy
import json
import math
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoformer.official import load_official
from autoformer.space import SearchSpace, SubnetSpec
from autoformer.supernet import Supernet
from benchmarks.engine import CPU, Case, Setting, random_batch
from benchmarks.gpu.machine import ROOT
from benchmarks.gpu.recorder import DTYPES, Recorder

GOLDEN = ROOT / "tests" / "data" / "official_small"
IMAGES = 2
ROUNDED_TENSORS = 14  # of a block, under autocast: inputs, weights and outputs of four layers, and of attention
PASSES = 3


def tolerance(space: SearchSpace, spec: SubnetSpec, dtype: torch.dtype, gradient: bool = False) -> float:
    """The tolerance sqrt(n) u of a relative error."""
    tokens, embed, dim = space.num_patches + 1, spec.embed_dim, space.head_dim
    roundings = ROUNDED_TENSORS * spec.depth
    if dtype == torch.float32:
        additions = (heads * dim + spec.hidden_dim(number) for number, heads in enumerate(spec.num_heads))
        blocks = spec.depth * (2 * embed + dim + tokens) + sum(additions)
        roundings = blocks + space.in_channels * space.patch_size**2 + tokens + embed
    return math.sqrt(roundings * (PASSES if gradient else 1)) * torch.finfo(dtype).eps / 2


def fill(supernet: Supernet) -> Supernet:
    """Set weights so that every tensor matters: signals keep their size, norms are not 1, biases and tables not 0."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in supernet.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(0.1 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
            elif name.endswith("weight"):
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            else:  # tokens, positions, tables
                parameter.copy_(0.5 * noise)
    return supernet


class Answer:
    """Logits, and gradients of the loss by name, on the CPU in float64."""

    def __init__(self, model: nn.Module, spec: SubnetSpec | None, images: Tensor, labels: Tensor, setting: Setting):
        model.zero_grad()
        with setting.autocast():
            logits = model(images) if spec is None else model(images, spec)
            loss = F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), labels)
        loss.backward()
        self.logits = logits.detach().cpu().double()
        self.gradients = {n: p.grad.cpu().double() for n, p in model.named_parameters() if p.grad is not None}


def relative_error(measured: Tensor, expected: Tensor) -> float:
    """||measured - expected|| / ||expected||."""
    return float((measured - expected).norm() / expected.norm())


def worst_gradient(measured: Answer, expected: Answer) -> tuple[float, str]:
    """The largest error of a parameter's gradient, and its name; of a supernet's, in the slice that is used."""
    errors = {
        name: relative_error(measured.gradients[name][tuple(map(slice, gradient.shape))], gradient)
        for name, gradient in expected.gradients.items()
    }
    name = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
    return errors[name], name


def parity(recorder: Recorder) -> None:
    """Each published subnet, extracted and in the supernet; the control must exceed the tolerance."""
    recorder.fact("fp32", "convolutions in fp32 as well, not in TF32, which torch allows them by default; see speed")
    with torch.backends.cudnn.flags(allow_tf32=False):
        cases = {letter: partial(_subnet, recorder, case) for letter, case in recorder.size.cases().items()}
        recorder.each({"official code": partial(_official, recorder), **cases})


def _subnet(recorder: Recorder, case: Case, letter: str) -> None:
    space, spec = case
    supernet = fill(Supernet(space))
    images, labels = random_batch(space, IMAGES, CPU.device)
    extracted = supernet.extract(spec)
    expected = Answer(copy.deepcopy(extracted).double(), None, images.double(), labels, CPU)
    images, labels = images.to(recorder.device), labels.to(recorder.device)
    for precision, dtype in DTYPES.items():
        setting, limit = Setting(recorder.device, dtype), tolerance(space, spec, dtype)
        for form, model, subnet in (("extracted", extracted, None), ("supernet", supernet, spec)):
            name = f"{letter} {form} {precision}"
            measured = Answer(model.to(recorder.device), subnet, images, labels, setting)
            error, parameter = worst_gradient(measured, expected)
            recorder.row(f"{name}: logits", relative_error(measured.logits, expected.logits), "", limit)
            recorder.row(f"{name}: worst gradient", error, "", tolerance(space, spec, dtype, gradient=True))
            recorder.fact(name, f"worst gradient: {parameter}")
        control = Answer(without_position(extracted), None, images, labels, setting)
        error = relative_error(control.logits, expected.logits)
        recorder.row(f"{letter} control {precision}: logits", error, "", limit, at_least=True)


def without_position(model: nn.Module) -> nn.Module:
    """A copy with zero relative tables, an error that the check must detect."""
    changed = copy.deepcopy(model)
    for name, parameter in changed.named_parameters():
        if "rel_pos" in name:
            nn.init.zeros_(parameter)
    return changed


def _official(recorder: Recorder, name: str) -> None:
    """Compare with logits that the official code computed, for six small subnets (tests/data/README.md)."""
    described = json.loads(GOLDEN.with_suffix(".json").read_text(encoding="utf-8"))
    supernet, keys = described["supernet"], ("embed_dim", "depth", "num_heads", "mlp_ratio")
    size = {key: supernet.pop(key) for key in keys}
    pooling = "mean" if supernet.pop("global_pool") else "class_token"
    choices = {key: [value] for key, value in size.items()}
    own = {"name": "official", "pooling": pooling, "supernet": size, "choices": choices}
    space = SearchSpace.model_validate(supernet | own)
    with np.load(GOLDEN.with_suffix(".npz")) as file:
        tensors = {key: torch.from_numpy(file[key]) for key in file.files}
    weights = {key.removeprefix("state_dict/"): tensors[key] for key in tensors if key.startswith("state_dict/")}
    model = load_official(weights, space).to(recorder.device).eval()
    for precision, dtype in DTYPES.items():
        errors, limits = [], []
        for number, row in enumerate(described["subnets"]):
            spec = SubnetSpec.from_dict({key: row[key] for key in keys})
            with torch.no_grad(), Setting(recorder.device, dtype).autocast():
                logits = model(tensors["images"].to(recorder.device), spec).cpu().double()
            errors.append(relative_error(logits, tensors[f"logits_{number}"].double()))
            limits.append(tolerance(space, spec, dtype))
        recorder.row(f"{name}, {precision}: logits", max(errors), "", max(limits))
