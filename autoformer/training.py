"""Training of a supernet or a subnet, one optimiser step at a time.

AdamW and the weights that a step did not use (see `autoformer.optimizers` for Muon):

- Inside a tensor that the sampled subnet uses, weights beyond its slice get a zero gradient. AdamW still moves them, by
  momentum and weight decay, as in the official code.
- Blocks beyond the sampled depth get no gradient at all (`set_to_none`). AdamW skips them: weights, moments and step
  count stay. (Under torch 1.7 the official code moved them; under today's torch it skips them.)

Randomness is a function of (seed, step) and (seed, epoch, sample), so a checkpoint holds no generator state.

A step has W x A micro-batches on W ranks with A accumulation steps each. The draws of a micro-batch depend only on the
step and on its number in the step, so W ranks train the same as one rank with W x A accumulation steps, up to the
rounding of a sum. Another number of micro-batches changes the draws of mixup, CutMix, erasing and stochastic depth:
mixup and CutMix draw once per micro-batch and pair its images.

Dimensions: B images of a micro-batch, C channels, S pixels on a side, K classes.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from autoformer.devices import autocast, find_precision
from autoformer.distillation import Teacher
from autoformer.errors import quantity
from autoformer.images.augmentation import BatchAugmentation
from autoformer.images.batches import Normalisation
from autoformer.images.training_loader import TrainingLoader
from autoformer.optimizers import Muon, make_optimizer
from autoformer.randomness import derived_seed
from autoformer.recipe import Recipe
from autoformer.sampling import SubnetPass, SubnetSampler
from autoformer.supernet import Supernet
from autoformer.vit import AutoFormer


class Trainer:
    """The state of a training: model, optimiser, averaged weights and step.

    Args:
        model: with the weights of rank 0 on all ranks.
        sampler: the subnet passes of each step; see `autoformer.sampling`.
        images: micro-batches by number. Its order has the images per step and per micro-batch, and this rank.
        mean, std: of pixels in [0, 1], one per channel.
        seed: seed of augmentation and stochastic depth.
        teacher: distillation teacher, in addition to the labels.

    Raises:
        ValueError: fewer images than one step takes, or micro-batches that the ranks cannot share equally.
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
        self.micro_batches = self.images_per_step // images.order.batch_size  # of a step, over all ranks
        if self.micro_batches % self.world.size:
            raise ValueError(
                f"{quantity(self.micro_batches, 'micro-batch')} of a step cannot be shared by "
                f"{quantity(self.world.size, 'rank')}"
            )
        self.accumulation_steps = self.micro_batches // self.world.size
        self.steps_per_epoch = images.order.samples // self.images_per_step
        if not self.steps_per_epoch:
            raise ValueError(
                f"{quantity(images.order.samples, 'training image is', 'training images are')} fewer than the "
                f"{self.images_per_step} of one step"
            )
        self.total_steps = max(1, round(recipe.epochs * self.steps_per_epoch))
        self.step = 0
        self.learning_rate_scale = 1.0  # factor on the schedule; below 1 after a rollback
        self.device = next(model.parameters()).device
        self.precision = find_precision(recipe.precision, self.device)
        self.normalise = Normalisation(mean, std, self.device)
        self.optimizer = make_optimizer(recipe.optimizer, model, recipe.learning_rate, recipe.weight_decay)
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
            SoftTargetCrossEntropy()
            if recipe.augmentation.mixes
            else LabelSmoothingCrossEntropy(recipe.label_smoothing)
        )
        self.in_place_loss = SoftTargetCrossEntropy()
        self.ddp = _data_parallel(model) if self.world.size > 1 else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "float16")
        self.ema = ModelEmaV3(model, decay=recipe.ema_decay, use_warmup=True) if recipe.ema_decay else None

    @property
    def epoch(self) -> float:
        return self.step / self.steps_per_epoch

    @property
    def learning_rate(self) -> float:
        """Learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def averaged(self) -> nn.Module:
        """The model with averaged weights; without `ema_decay` the model itself."""
        return self.model if self.ema is None else self.ema.module

    @property
    def final_ema_decay(self) -> float | None:
        """Decay of the averaged weights in the last step; timm's warm-up keeps it below `ema_decay` in few steps."""
        return None if self.ema is None else float(self.ema.get_decay(self.total_steps - 1))

    def advance(self, steps: int) -> float:
        """Take up to `steps` optimiser steps; return their mean loss over all ranks."""
        total = torch.zeros((), device=self.device)  # stays on the device until all steps are taken
        last = min(self.step + steps, self.total_steps)
        taken = last - self.step
        while self.step < last:
            total += self.take_step()
        return self.world.all_reduce(total).item() / max(taken, 1)

    def take_step(self) -> Tensor:
        """Take one optimiser step; return this rank's addend of the mean loss, a scalar on the device.

        The sum over all ranks is the mean loss over the images of the step.
        """
        self.scheduler.step_update(self.step)  # the scheduler is a function of the step, without state
        for group in self.optimizer.param_groups:
            group["lr"] *= self.learning_rate_scale
        step_loss = torch.zeros((), device=self.device)
        passes = self.sampler(self.step)
        for accumulation_step in range(self.accumulation_steps):
            step_loss += self._micro_batch(passes, accumulation_step)
        if self.recipe.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            dispatch_clip_grad(self.model.parameters(), self.recipe.clip_grad)
        if self.recipe.optimizer == "muon" and isinstance(self.optimizer, Muon) and isinstance(self.model, Supernet):
            self.optimizer.slices = self.model.matrix_slices([one.subnet for one in passes if one.subnet is not None])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.model, self.step)
        self.step += 1
        return step_loss

    def _micro_batch(self, passes: Sequence[SubnetPass], accumulation_step: int) -> Tensor:
        """Run all subnet passes over one micro-batch; return its addend of the step's mean loss, detached.

        The loss is the mean over subnets. BigNAS uses the sum, which gives AdamW the same steps, but not clipping.
        """
        number = accumulation_step * self.world.size + self.world.rank  # of the micro-batch in the step
        images, targets = self._batch(accumulation_step, number)
        mean_loss = torch.zeros((), device=self.device)
        first_logits: Tensor | None = None  # (B, K)
        for index, subnet_pass in enumerate(passes):
            # seed after the batch is made: augmentation and loader start draw from the same generators
            key = (self.step, number, index) if index else (self.step, number)
            torch.manual_seed(derived_seed("stochastic depth", self.seed, *key))
            is_last = accumulation_step == self.accumulation_steps - 1 and index == len(passes) - 1
            with contextlib.nullcontext() if self.ddp is None or is_last else self.ddp.no_sync():
                logits, loss = self._loss(images, targets, subnet_pass, first_logits)
                # DDP takes the mean over ranks
                self.scaler.scale(loss / (self.accumulation_steps * len(passes))).backward()
            first_logits = logits.detach() if index == 0 else first_logits
            mean_loss += loss.detach() / (self.micro_batches * len(passes))
        return mean_loss

    def _loss(
        self, images: Tensor, targets: Tensor, subnet_pass: SubnetPass, first_logits: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, K) of one subnet, and its mean loss (scalar).

        With a `teacher_weight` the loss against the first subnet's probabilities has this weight, that against the
        labels the rest. Such a pass has no stochastic depth (BigNAS, section 3.1: only the largest subnet is
        regularised) and no `teacher`.
        """
        weight = subnet_pass.teacher_weight
        if self.model.training != (not weight):
            self.model.train(not weight)
        model = self.model if self.ddp is None else self.ddp
        with autocast(self.device, self.precision):
            logits = (model(images) if subnet_pass.subnet is None else model(images, subnet_pass.subnet)).float()
            if weight:
                assert first_logits is not None
                from_first: Tensor = self.in_place_loss(logits, first_logits.softmax(dim=1))
                return logits, from_first if weight == 1 else from_first.lerp(self.loss(logits, targets), 1 - weight)
            loss = self.loss(logits, targets)
            if self.teacher is not None:
                loss = self.teacher.loss(logits, loss, images, self.recipe.label_smoothing)
            return logits, loss

    def _batch(self, accumulation_step: int, number: int) -> tuple[Tensor, Tensor]:
        """Images (B, C, S, S) of a micro-batch, and labels (B,) or mixed targets (B, K)."""
        pixels, labels = self.images.batch(self.step * self.accumulation_steps + accumulation_step)
        images = self.normalise(pixels.to(self.device, non_blocking=True))
        labels = labels.to(self.device, non_blocking=True)
        return self.augmentation(images, labels, self.seed, self.step, number)

    def state_dict(self) -> dict[str, Any]:
        """The complete state: `load_state_dict` resumes to the same weights."""
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


class _WithSpareParameter(nn.Module):
    """A model with one unused parameter: DDP prints a warning if it finds none."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.spare = nn.Parameter(torch.zeros((), device=next(model.parameters()).device))

    def forward(self, *arguments: Any) -> Any:
        return self.model(*arguments)


def _data_parallel(model: Supernet | AutoFormer) -> DistributedDataParallel:
    """The model with gradients averaged over the ranks at the end of a step's last pass.

    `find_unused_parameters` finds blocks beyond the depth in the graph of that pass. A parameter that no rank used in
    any pass of the step keeps the gradient None, so AdamW skips it.
    """
    is_supernet = isinstance(model, Supernet)
    return DistributedDataParallel(
        _WithSpareParameter(model) if is_supernet else model,
        forward_sync_buffers=False,
        find_unused_parameters=is_supernet,
        gradient_as_bucket_view=True,
    )
