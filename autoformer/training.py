"""The training loop of the supernet and of a subnet: one loop, one optimiser step at a time.

What AdamW does to weights that a step did not use (decided here, held by tests):

- Inside a tensor that the sampled subnet uses, weights beyond its slice get a zero gradient. AdamW moves them
  all the same, by momentum and weight decay, as the official code does.
- Blocks beyond the sampled depth get no gradient at all (`set_to_none`). AdamW skips them: weights, moments and
  step count stay as they are. (Under torch 1.7 the official code moved them; under today's torch it skips them.)

Randomness is a function of (seed, step) and (seed, epoch, sample), so a checkpoint holds no generator state.

A step is split into parts, the same ones however many ranks share them: W ranks with A parts each train what one rank
with A x W parts trains, up to the rounding of a sum, whatever is augmented or dropped. Gradients are summed over ranks
at the end of a step (`autoformer.gradients`); clipping, loss scale and average then are the same everywhere.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor, nn

from autoformer.devices import autocast, find_precision
from autoformer.distillation import Teacher
from autoformer.gradients import GradientSync
from autoformer.images.augmentation import BatchAugmentation
from autoformer.images.batches import Normalisation
from autoformer.images.training_loader import TrainingLoader
from autoformer.randomness import derived_seed
from autoformer.recipe import Recipe
from autoformer.sampling import SubnetPass, SubnetSampler
from autoformer.supernet import Supernet
from autoformer.vit import AutoFormer


class Trainer:
    """Weights, optimiser, average and position: what a checkpoint holds, and what one step changes.

    Args:
        model: a `Supernet` or an `AutoFormer`; its `no_weight_decay()` names parameters that are not decayed.
        sampler: which subnets each step trains, and what each learns from; see `autoformer.sampling`.
        images: training images by batch number. Its order says how many images an optimiser step takes, how many a
            forward pass, and which of the ranks that train together this is.
        num_classes: K.
        mean, std: of pixels in [0, 1], one a channel.
        recipe: the training recipe.
        seed: of augmentation and stochastic depth.
        teacher: whose answers are learned too.

    Raises:
        ValueError: if there are fewer images than one optimiser step takes, or parts than ranks.
    """

    def __init__(
        self,
        model: Supernet | AutoFormer,
        sampler: SubnetSampler,
        images: TrainingLoader,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        recipe: Recipe,
        seed: int,
        teacher: Teacher | None = None,
    ) -> None:
        self.model, self.sampler, self.recipe, self.seed = model, sampler, recipe, seed
        self.images, self.teacher = images, teacher
        self.images_per_step = images.order.images_per_step
        self.world = images.order.world
        self.micro_batches = self.images_per_step // images.order.batch_size  # of all ranks together
        if self.micro_batches % self.world.size:
            raise ValueError(f"{self.micro_batches} parts of a step cannot be shared by {self.world.size} ranks")
        self.steps_per_epoch = images.order.samples // self.images_per_step
        if not self.steps_per_epoch:
            raise ValueError(
                f"{images.order.samples} training images are fewer than the {self.images_per_step} of one step"
            )
        self.total_steps = max(1, round(recipe.epochs * self.steps_per_epoch))
        self.step = 0
        self.learning_rate_scale = 1.0  # of all that the schedule says; below 1 after a rollback
        self.device = next(model.parameters()).device
        self.precision = find_precision(recipe.precision, self.device)
        self.normalise = Normalisation(mean, std, self.device)
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
        self.augmentation = BatchAugmentation(recipe.augmentation, num_classes, recipe.label_smoothing, self.device)
        self.loss: nn.Module = (
            SoftTargetCrossEntropy() if self.augmentation.mixes else LabelSmoothingCrossEntropy(recipe.label_smoothing)
        )
        self.from_first = SoftTargetCrossEntropy()
        self.gradients = GradientSync(model, self.world)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "float16")
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
        """Take `steps` optimiser steps, at most to the end of training; return their mean loss, over all ranks.

        The loss stays on the device until the end of the call.
        """
        total = torch.zeros((), device=self.device)
        last = min(self.step + steps, self.total_steps)
        taken = last - self.step
        while self.step < last:
            total += self.take_step()
        return self.world.all_reduce(total).item() / max(taken, 1)

    def take_step(self) -> Tensor:
        """Take one optimiser step; return this rank's share of the mean loss of its images.

        A scalar that stays on the device; the shares of all ranks add up to the mean.
        """
        loss = self._one_step()
        self.step += 1
        return loss

    def _one_step(self) -> Tensor:
        self.scheduler.step_update(self.step)  # a function of the step: the scheduler itself holds no state
        for group in self.optimizer.param_groups:
            group["lr"] *= self.learning_rate_scale
        loss_of_step = torch.zeros((), device=self.device)
        passes, turns = self.sampler(self.step), self.micro_batches // self.world.size
        for turn in range(turns):
            loss_of_step += self._one_part(passes, turn, last=turn == turns - 1)
        if self.recipe.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            dispatch_clip_grad(self.model.parameters(), self.recipe.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.model, self.step)
        return loss_of_step

    def _one_part(self, passes: Sequence[SubnetPass], turn: int, last: bool) -> Tensor:
        """Forward and backward passes of one part, one subnet after the other; its share of the loss, detached.

        Subnets count alike: the loss is the mean over them. BigNAS adds them up, which AdamW cannot tell from the
        mean; clipping can, and so it means the same whatever is sampled.
        """
        part = turn * self.world.size + self.world.rank
        images, targets = self._batch(turn, part)
        loss_of_part = torch.zeros((), device=self.device)
        answers: Tensor | None = None  # of the first subnet (B, K)
        for number, subnet_pass in enumerate(passes):
            # after the batch: augmentation and a loader's start draw from the same generators
            drawn = (self.step, part, number) if number else (self.step, part)
            torch.manual_seed(derived_seed("stochastic depth", self.seed, *drawn))
            logits, loss = self._loss(images, targets, subnet_pass, answers)
            answers = logits.detach() if number == 0 else answers
            loss = loss / (self.micro_batches * len(passes))
            with self.gradients.of_last_pass(last and number == len(passes) - 1):
                self.scaler.scale(loss).backward()
            loss_of_part += loss.detach()
        return loss_of_part

    def _loss(
        self, images: Tensor, targets: Tensor, subnet_pass: SubnetPass, answers: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, K) of one subnet, and its mean loss, a scalar.

        One that learns from the first learns its probabilities alone, without stochastic depth (BigNAS, section 3.1:
        labels and regularisation are for the largest).
        """
        learns_labels = not subnet_pass.in_place_distillation
        if self.model.training != learns_labels:
            self.model.train(learns_labels)
        with autocast(self.device, self.precision):
            logits = (
                self.model(images) if subnet_pass.subnet is None else self.model(images, subnet_pass.subnet)
            ).float()
            if subnet_pass.in_place_distillation:
                assert answers is not None
                return logits, self.from_first(logits, answers.softmax(dim=1))
            loss = self.loss(logits, targets)
            return logits, loss if self.teacher is None else self.teacher.loss(logits, loss, images)

    def _batch(self, turn: int, part: int) -> tuple[Tensor, Tensor]:
        """Images (B, C, S, S) of one part of the present step, and labels (B,) or mixed targets (B, K)."""
        pixels, labels = self.images.batch(self.step * (self.micro_batches // self.world.size) + turn)
        images = self.normalise(pixels.to(self.device, non_blocking=True))
        labels = labels.to(self.device, non_blocking=True)
        return self.augmentation(images, labels, self.seed, self.step, part)

    def state_dict(self) -> dict[str, Any]:
        """All that a later `load_state_dict` needs to go on to the same weights."""
        return {
            "step": self.step,
            "learning_rate_scale": self.learning_rate_scale,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.learning_rate_scale = state["step"], state["learning_rate_scale"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
