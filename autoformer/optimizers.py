"""The optimisers of a recipe, from torch's and timm's factories.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) takes the matrices of the blocks: it moves each
along its momentum, with all singular values of the step set to about 1. Everything else takes AdamW. timm's scale,
0.2 x sqrt(larger side), gives both the same learning rate (arXiv 2502.16982).

A subnet uses a slice of a matrix. `muon` keeps a momentum for the whole matrix, but a step averages, orthogonalises and
moves only the slice in use. `muon_whole` treats the whole matrix: its zeros then take part, and the rest moves too.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.optim.muon import Muon as TimmMuon
from timm.optim.muon import get_lr_scale, zeropower_via_newtonschulz
from torch import Tensor, nn

from autoformer.recipe import OptimizerName
from autoformer.supernet import Supernet
from autoformer.vit import AutoFormer

# X -> aX + b(XX')X + c(XX')(XX')X, five times, with coefficients from
# https://leloykun.github.io/ponder/muon-opt-coeffs/#how-do-we-optimize-the-coefficients
_NEWTON_SCHULZ = [
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
]  # fmt: skip
Slices = Mapping[str, tuple[int, int]]


class Muon(TimmMuon):
    """Muon for the matrices of blocks, Nesterov's AdamW for all other parameters.

    Attributes:
        slices: rows and columns of each matrix in use, by parameter name; a missing matrix is used as a whole.
    """

    def __init__(self, model: nn.Module, groups: list[dict[str, Any]], learning_rate: float) -> None:
        matrices = {id(weight): name for name, weight in model.named_parameters() if _is_matrix(name, weight)}
        split = []
        for group in groups:
            for is_matrix in (True, False):
                chosen = [weight for weight in group["params"] if (id(weight) in matrices) == is_matrix]
                if chosen:
                    split.append(group | {"params": chosen, "use_fallback": not is_matrix})
        super().__init__(split, lr=learning_rate, nesterov=True)
        self.slices: Slices = {}
        self._names = matrices

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        assert closure is None
        for group in self.param_groups:
            for weight in [] if group["use_fallback"] else group["params"]:
                if weight.grad is not None:
                    self._move(weight, weight.grad, group)
                    weight.grad = None  # timm's step then skips this parameter
        super().step()

    def _move(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        rows, columns = self.slices.get(self._names[id(weight)], weight.shape)
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        momentum, gradient, weight = (
            tensor[:rows, :columns] for tensor in (state["momentum_buffer"], gradient, weight)
        )
        momentum.lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(momentum, group["momentum"])
        dtype = torch.float32 if weight.device.type == "cpu" else torch.bfloat16  # many CPUs have no fast bfloat16
        update = zeropower_via_newtonschulz(update, len(_NEWTON_SCHULZ), _NEWTON_SCHULZ, dtype=dtype)
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(update, alpha=-group["lr"] * get_lr_scale(weight.shape))


def _is_matrix(name: str, weight: Tensor) -> bool:
    return weight.ndim == 2 and "blocks." in name and "rel_pos" not in name


def make_optimizer(
    name: OptimizerName, model: Supernet | AutoFormer, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimiser of a model. No weight decay for `model.no_weight_decay()` and 1-D parameters."""
    groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=model.no_weight_decay())
    match name:
        case "adamw":
            return torch.optim.AdamW(groups, lr=learning_rate, fused=True)
        case "muon" | "muon_whole":
            return Muon(model, groups, learning_rate)
    return create_optimizer_v2(groups, opt=name, lr=learning_rate)
