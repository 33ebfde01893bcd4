"""The training loop of the supernet and of a subnet: one loop, one optimiser step at a time.

What AdamW does to weights that a step did not use (decided here, held by tests):

- Inside a tensor that the sampled subnet uses, weights beyond its slice get a zero gradient. AdamW moves them
  all the same, by momentum and weight decay, as the official code does.
- Blocks beyond the sampled depth get no gradient at all (`set_to_none`). AdamW skips them: weights, moments and
  step count stay as they are. (Under torch 1.7 the official code moved them; under today's torch it skips them.)

Randomness is a function of (seed, step) and (seed, epoch, sample), so a checkpoint holds no generator state.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor, nn

from autoformer.batches import augment, normalise
from autoformer.randomness import derived_rng, derived_seed, epoch_order
from autoformer.recipe import Recipe
from autoformer.space import SearchSpace, SubnetSpec
from autoformer.supernet import Supernet
from autoformer.vit import AutoFormer

Forward = Callable[[nn.Module, Tensor, int], Tensor]


def sampled_subnet(space: SearchSpace, seed: int, step: int) -> SubnetSpec:
    """The subnet that optimiser step `step` trains: uniform single-path sampling (paper section 3.3).

    A function of its arguments alone, so every rank of a job draws the same one.
    """
    return space.sample(derived_rng("subnet", seed, step))


def supernet_forward(space: SearchSpace, seed: int) -> Forward:
    """Forward passes that train one sampled subnet a step."""
    return lambda model, images, step: model(images, sampled_subnet(space, seed, step))


def subnet_forward(model: nn.Module, images: Tensor, step: int) -> Tensor:
    """Forward passes that train the whole model."""
    return model(images)


class Trainer:
    """Weights, optimiser, average and position: what a checkpoint holds, and what one step changes.

    Args:
        model: a `Supernet` or an `AutoFormer`; its `no_weight_decay()` names parameters that are not decayed.
        forward: (model, images, step) -> logits; see `supernet_forward` and `subnet_forward`.
        pixels: training images, uint8 (n, C, S, S). labels: int64 (n,).
        mean, std: of pixels in [0, 1], one a channel.
        recipe: the training recipe.
        seed: of order, augmentation and stochastic depth.

    Raises:
        ValueError: if there are fewer images than one optimiser step takes.
    """

    def __init__(
        self,
        model: Supernet | AutoFormer,
        forward: Forward,
        pixels: Tensor,
        labels: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        recipe: Recipe,
        seed: int,
    ) -> None:
        self.model, self.forward, self.recipe, self.seed = model, forward, recipe, seed
        self.pixels, self.labels, self.mean, self.std = pixels, labels, mean, std
        self.images_per_step = recipe.batch_size * recipe.accumulation
        self.steps_per_epoch = len(pixels) // self.images_per_step
        if not self.steps_per_epoch:
            raise ValueError(f"{len(pixels)} training images are fewer than the {self.images_per_step} of one step")
        self.total_steps = max(1, round(recipe.epochs * self.steps_per_epoch))
        self.step = 0
        self.device = next(model.parameters()).device
        groups = param_groups_weight_decay(model, recipe.weight_decay, no_weight_decay_list=model.no_weight_decay())
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
        self.scheduler = CosineLRScheduler(
            self.optimizer,
            t_initial=self.total_steps,
            lr_min=recipe.min_learning_rate,
            warmup_t=round(recipe.warmup_epochs * self.steps_per_epoch),
            warmup_lr_init=recipe.warmup_learning_rate,
            t_in_epochs=False,
        )
        self.loss = LabelSmoothingCrossEntropy(recipe.label_smoothing)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "float16")
        self.ema = ModelEmaV3(model, decay=recipe.ema_decay, use_warmup=True) if recipe.ema_decay else None

    @property
    def epoch(self) -> float:
        return self.step / self.steps_per_epoch

    @property
    def learning_rate(self) -> float:
        """Of the step that was taken last."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def averaged(self) -> nn.Module:
        """The model with averaged weights, or the model itself where none are kept."""
        return self.model if self.ema is None else self.ema.module

    def advance(self, steps: int) -> float:
        """Take `steps` optimiser steps, at most to the end of training; return their mean loss.

        The loss stays on the device until the end of the call.
        """
        self.model.train()
        total = torch.zeros((), device=self.device)
        last = min(self.step + steps, self.total_steps)
        taken = last - self.step
        while self.step < last:
            total += self._one_step()
            self.step += 1
        return total.item() / max(taken, 1)

    def _one_step(self) -> Tensor:
        """One optimiser step on one subnet; returns the mean loss of its images, detached."""
        torch.manual_seed(derived_seed("stochastic depth", self.seed, self.step))
        self.scheduler.step_update(self.step)
        loss_of_step = torch.zeros((), device=self.device)
        for part in range(self.recipe.accumulation):
            images, labels = self._batch(part)
            with torch.autocast(
                self.device.type, getattr(torch, self.recipe.precision), enabled=self.recipe.precision != "float32"
            ):
                loss = self.loss(self.forward(self.model, images, self.step), labels) / self.recipe.accumulation
            self.scaler.scale(loss).backward()
            loss_of_step += loss.detach()
        if self.recipe.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            dispatch_clip_grad(self.model.parameters(), self.recipe.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.model, self.step)
        return loss_of_step

    def _batch(self, part: int) -> tuple[Tensor, Tensor]:
        """Images (B, C, S, S) and labels (B,) of one forward pass of the present step."""
        epoch, step_of_epoch = divmod(self.step, self.steps_per_epoch)
        first = step_of_epoch * self.images_per_step + part * self.recipe.batch_size
        if getattr(self, "_order_of", None) != epoch:
            self._order, self._order_of = epoch_order(self.seed, epoch, len(self.pixels)), epoch
        samples = self._order[first : first + self.recipe.batch_size]
        index = torch.from_numpy(samples)
        pixels = augment(self.pixels[index], samples, self.recipe.augmentation, self.seed, epoch)
        images = normalise(pixels.to(self.device, non_blocking=True), self.mean, self.std)
        return images, self.labels[index].to(self.device, non_blocking=True)

    def state_dict(self) -> dict[str, Any]:
        """All that a later `load_state_dict` needs to go on to the same weights."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
