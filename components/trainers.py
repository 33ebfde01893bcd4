"""From a configuration to a trainer: device, memory, workers and teacher are found here."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from autoformer.archives import EncodedSplit
from autoformer.dataset import DatasetCard, Images
from autoformer.devices import fewest_parts, find_device, find_precision, memory_bytes
from autoformer.distillation import Teacher
from autoformer.errors import AutoFormerError
from autoformer.files import read_json, write_json
from autoformer.loader import training_images
from autoformer.supernet import Supernet
from autoformer.training import Forward, Trainer
from autoformer.vit import AutoFormer
from components.config import Config, TrainingSection

MOST_WORKERS = 16


def make_trainer(
    step: str,
    model: Supernet | AutoFormer,
    forward: Forward,
    largest: Callable[[Tensor], Tensor],
    images: Images | EncodedSplit,
    card: DatasetCard,
    config: Config,
    section: TrainingSection,
    seed: int,
    found: Path,
) -> Trainer:
    """A trainer of `model` on the configured device.

    Args:
        step: whose section of the configuration `section` is.
        largest: a forward pass of the largest subnet that a training step may take.
        images: the train split.
        seed: of order, augmentation and stochastic depth.
        found: file that remembers how many forward passes the memory asks for, so that a resumed run takes as many.

    Raises:
        AutoFormerError: one line: no such device, a teacher that does not fit, or not memory enough for one image.
    """
    device = find_device(config.device)
    model.to(device)
    space, recipe = config.space, section.recipe()
    model.set_grad_checkpointing(recipe.activation_checkpointing)
    teacher = None
    if recipe.distillation is not None:
        teacher = Teacher(recipe.distillation, card.mean, card.std, space.num_classes, device)
    parts = recipe.accumulation if isinstance(recipe.accumulation, int) else _remembered(found)
    if parts is None:
        parts = (
            1
            if device.type == "cpu"
            else _find_parts(model, _trial(model, largest, teacher, config, section, device), section, device)
        )
        write_json(found, {"accumulation": parts})
    source = training_images(images, recipe, seed, space.image_size, card.mean, parts, worker_count(device))
    return Trainer(model, forward, source, space.num_classes, card.mean, card.std, recipe, seed, teacher)


def worker_count(device: torch.device) -> int:
    """Processes that decode and augment ahead: `AUTOFORMER_WORKERS`, else what leaves the training process its cores.

    It changes no result, and so is no part of the configuration.
    """
    given = os.environ.get("AUTOFORMER_WORKERS")
    if given is not None:
        if not given.isdecimal():
            raise AutoFormerError(f"AUTOFORMER_WORKERS = {given}: expected a number of processes, 0 or more")
        return int(given)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, cores // 2 if device.type == "cpu" else max(1, cores - 1))


def _trial(
    model: Supernet | AutoFormer,
    largest: Callable[[Tensor], Tensor],
    teacher: Teacher | None,
    config: Config,
    section: TrainingSection,
    device: torch.device,
) -> Callable[[int], None]:
    """A function that uses as much memory as the largest forward and backward pass of so many images."""
    precision = find_precision(section.precision, device)
    space = config.space

    def run(images: int) -> None:
        batch = torch.zeros((images, space.in_channels, space.image_size, space.image_size), device=device)
        try:
            with torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32"):
                if teacher is not None:
                    teacher(batch)
                loss = largest(batch).float().sum()
            loss.backward()
        finally:
            model.zero_grad(set_to_none=True)

    return run


def _find_parts(
    model: Supernet | AutoFormer,
    trial: Callable[[int], None],
    section: TrainingSection,
    device: torch.device,
) -> int:
    kept = [torch.empty_like(weights) for weights in model.parameters() for _ in range(3)]  # two moments, an average
    parts = fewest_parts(trial, section.batch_size, section.augmentation.mixes)
    del kept
    if parts is None:
        raise AutoFormerError(f"not even one image at a time fits {_memory(device)}; choose a smaller space")
    return parts


def _memory(device: torch.device) -> str:
    total = memory_bytes(device)
    return f"the {total / 2**30:.0f} GiB of {device}" if total else "this machine's memory"


def _remembered(found: Path) -> int | None:
    return int(read_json(found)["accumulation"]) if found.exists() else None


def out_of_memory(
    step: str,
    trainer: Trainer,
    largest: Callable[[Tensor], Tensor],
    config: Config,
    section: TrainingSection,
    found: Path,
) -> AutoFormerError:
    """One line for an optimiser step that ran out of memory, with the accumulation that fits.

    Where accumulation is to be found, the file `found` is told, so that the same command goes on with it.
    """
    trainer.optimizer.zero_grad(set_to_none=True)
    if trainer.device.type == "cuda":
        torch.cuda.empty_cache()
    images = trainer.images_per_step // trainer.parts
    trial = _trial(trainer.model, largest, trainer.teacher, config, section, trainer.device)
    more = fewest_parts(trial, images, section.augmentation.mixes, at_least=2)
    memory = _memory(trainer.device)
    if more is None:
        return AutoFormerError(f"not even one image at a time fits {memory}; choose a smaller space")
    parts = more * trainer.parts
    if section.accumulation == "auto":
        write_json(found, {"accumulation": parts})
        answer = f"the same command goes on with accumulation {parts}"
    else:
        answer = f"set {step}.accumulation={parts}, which changes nothing else of the recipe, and start it again"
    return AutoFormerError(
        f"a forward pass of {images} images does not fit {memory}; {trainer.images_per_step // parts} fit: {answer}"
    )


def findings(trainer: Trainer) -> dict[str, str | int]:
    """What "auto" stood for in a training."""
    return {
        "device": str(trainer.device),
        "precision": trainer.precision,
        "accumulation": trainer.parts,
        "workers": worker_count(trainer.device),
    }
