"""(a) Logits and gradients against the CPU in float64, with the tolerance that follows from the type.

A chain of n roundings, each off by at most u, is off by about sqrt(n) u (Higham and Mary 2019: errors add up like a
random walk). In float32 n counts the additions of all inner products from the image to the logits; in bfloat16, whose
products add up in float32, the tensors that are rounded on the way. A gradient takes that way three times: forward, and
backward to inputs and to weights.
"""

import copy
import json
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoformer.official import load_official
from autoformer.space import SearchSpace, SubnetSpec
from autoformer.supernet import Supernet
from benchmarks.engine import Setting, random_batch
from benchmarks.gpu.bench import DTYPES, FP32, Bench, Case
from benchmarks.gpu.machine import ROOT

GOLDEN = ROOT / "tests" / "data" / "official_small"
ROUNDED_TENSORS = 14  # of a block, under autocast: inputs, weights and outputs of four layers, and of attention
PASSES = 3


def tolerance(space: SearchSpace, spec: SubnetSpec, dtype: torch.dtype, gradient: bool = False) -> float:
    """sqrt(n) u."""
    tokens, embed, dim = space.num_patches + 1, spec.embed_dim, space.head_dim
    if dtype == FP32:
        blocks = sum(
            2 * embed + dim + tokens + heads * dim + spec.hidden_dim(number)
            for number, heads in enumerate(spec.num_heads)
        )
        roundings = blocks + space.in_channels * space.patch_size**2 + tokens + embed
    else:
        roundings = ROUNDED_TENSORS * spec.depth
    return math.sqrt(roundings * (PASSES if gradient else 1)) * torch.finfo(dtype).eps / 2


def fill(supernet: Supernet) -> Supernet:
    """Weights under which every tensor matters: signals keep their size, norms are not 1, biases and tables not 0."""
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


def off(found: Tensor, expected: Tensor) -> float:
    """||found - expected|| / ||expected||."""
    return float((found - expected).norm() / expected.norm())


def worst_gradient(found: Answer, expected: Answer) -> tuple[float, str]:
    """The largest error of a parameter's gradient, and whose it is; of a supernet's, in the slice that is used."""
    errors = {}
    for name, gradient in expected.gradients.items():
        errors[name] = off(found.gradients[name][tuple(map(slice, gradient.shape))], gradient)
    name = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
    return errors[name], name


def parity(bench: Bench) -> None:
    """Of each published subnet, extracted and in the supernet; the control must miss what the others keep."""
    bench.fact("fp32", "convolutions in fp32 as well, not in TF32, which torch allows them by default; see speed")
    allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        with bench.attempt("official"):
            _official(bench)
        for letter, case in bench.size.cases().items():
            if bench.cut(f"{letter} and what follows"):
                break
            with bench.attempt(letter):
                _subnet(bench, letter, case)
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def _subnet(bench: Bench, letter: str, case: Case) -> None:
    space, spec = case
    supernet = fill(Supernet(space))
    images, labels = random_batch(space, bench.size.parity_images, torch.device("cpu"))
    extracted = supernet.extract(spec)
    expected = Answer(copy.deepcopy(extracted).double(), None, images.double(), labels, Setting())
    images, labels = images.to(bench.device), labels.to(bench.device)
    for precision, dtype in DTYPES.items():
        setting = Setting(bench.device, dtype)
        most, most_gradient = (tolerance(space, spec, dtype, gradient) for gradient in (False, True))
        for form, model, subnet in (("extracted", extracted, None), ("supernet", supernet, spec)):
            found = Answer(model.to(bench.device), subnet, images, labels, setting)
            error, name = worst_gradient(found, expected)
            bench.row(f"{letter} {form} {precision}: logits", off(found.logits, expected.logits), "", most)
            bench.row(f"{letter} {form} {precision}: worst gradient", error, "", most_gradient)
            bench.fact(f"{letter} {form} {precision}", f"worst gradient: {name}")
        found = Answer(without_position(extracted), None, images, labels, setting)
        error = off(found.logits, expected.logits)
        bench.row(f"{letter} control {precision}: logits", error, "", most, least=True)


def without_position(model: nn.Module) -> nn.Module:
    """A copy whose relative tables are zero: what a check that can fail must notice."""
    changed = copy.deepcopy(model)
    for name, parameter in changed.named_parameters():
        if "rel_pos" in name:
            nn.init.zeros_(parameter)
    return changed


def _official(bench: Bench) -> None:
    """Logits that the official code has computed, of six small subnets (tests/data/README.md)."""
    described = json.loads(GOLDEN.with_suffix(".json").read_text(encoding="utf-8"))
    supernet, keys = described["supernet"], ("embed_dim", "depth", "num_heads", "mlp_ratio")
    size = {key: supernet.pop(key) for key in keys}
    pooling = "mean" if supernet.pop("global_pool") else "class_token"
    choices = {key: [value] for key, value in size.items()}
    given = {"name": "official", "pooling": pooling, "supernet": size, "choices": choices}
    space = SearchSpace.model_validate(supernet | given)
    with np.load(GOLDEN.with_suffix(".npz")) as file:
        tensors = {key: torch.from_numpy(file[key]) for key in file.files}
    weights = {
        key.removeprefix("state_dict/"): value for key, value in tensors.items() if key.startswith("state_dict/")
    }
    model = load_official(weights, space).to(bench.device).eval()
    for precision, dtype in DTYPES.items():
        errors, most = [], 0.0
        for number, row in enumerate(described["subnets"]):
            spec = SubnetSpec.from_dict({key: row[key] for key in keys})
            with torch.no_grad(), Setting(bench.device, dtype).autocast():
                found = model(tensors["images"].to(bench.device), spec).cpu().double()
            errors.append(off(found, tensors[f"logits_{number}"].double()))
            most = max(most, tolerance(space, spec, dtype))
        bench.row(f"official code, {precision}: logits", max(errors), "", most)
