"""From a configuration to a trainer: device, memory, workers and teacher are found here."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from autoformer.devices import autocast, fewest_parts, find_device, find_precision, memory_bytes
from autoformer.distillation import Teacher
from autoformer.errors import AutoFormerError
from autoformer.files import read_json, write_json
from autoformer.images.archives import EncodedSplit
from autoformer.images.card import DatasetCard
from autoformer.images.loader import training_images
from autoformer.images.loading import Images
from autoformer.ranks import ALONE, Ranks
from autoformer.sampling import Lessons
from autoformer.supernet import Supernet
from autoformer.training import Trainer
from autoformer.vit import AutoFormer
from runtime.common.config import Config, TrainingSection
from runtime.steps.workers import kept_bytes, worker_count


def make_trainer(
    step: str,
    model: Supernet | AutoFormer,
    lessons: Lessons,
    largest: Callable[[Tensor], Tensor],
    images: Images | EncodedSplit,
    card: DatasetCard,
    config: Config,
    section: TrainingSection,
    seed: int,
    found: Path,
    ranks: Ranks = ALONE,
) -> Trainer:
    """A trainer of `model` on the configured device.

    Args:
        step: whose section of the configuration `section` is.
        lessons: which subnets a step trains.
        largest: a forward pass of the largest subnet that a training step may take.
        images: the train split.
        seed: of order, augmentation and stochastic depth.
        found: file that remembers how many forward passes the memory asks for, so that a resumed run takes as many.
        ranks: which of the processes that train together this is; a step has `accumulation` parts for each of them.

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
    passes = recipe.accumulation
    if not isinstance(passes, int):
        trial = _trial(model, largest, teacher, config, section, device)
        passes = _agreed_passes(found, section, ranks, lambda: _find_passes(model, trial, section, device, ranks))
    source = training_images(
        images, recipe, seed, space.image_size, card.mean, passes * ranks.count, worker_count(device), ranks,
        kept_bytes(),
    )  # fmt: skip
    return Trainer(model, lessons, source, space.num_classes, card.mean, card.std, recipe, seed, teacher)


def _agreed_passes(found: Path, section: TrainingSection, ranks: Ranks, find: Callable[[], int]) -> int:
    """Forward passes of each rank to a step: what was remembered, else as many as the neediest rank finds."""
    remembered = ranks.broadcast(_remembered(found) if ranks.leads else None)
    if remembered is not None and section.batch_size % (remembered * ranks.count) == 0:
        return remembered
    passes = max(ranks.gather(find()))
    if ranks.leads:
        write_json(found, {"accumulation": passes})
    return passes


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
            with autocast(device, precision):
                if teacher is not None:
                    teacher(batch)
                loss = largest(batch).float().sum()
            loss.backward()
        finally:
            model.zero_grad(set_to_none=True)

    return run


def _find_passes(
    model: Supernet | AutoFormer,
    trial: Callable[[int], None],
    section: TrainingSection,
    device: torch.device,
    ranks: Ranks,
) -> int:
    """Into how many forward passes this rank's share of a step must be split. On a CPU one, without a trial."""
    if device.type == "cpu":
        return 1
    kept = [torch.empty_like(weights) for weights in model.parameters() for _ in range(3)]  # two moments, an average
    passes = fewest_parts(trial, section.batch_size // ranks.count, section.augmentation.mixes)
    del kept
    if passes is None:
        raise AutoFormerError(f"not even one image at a time fits {_memory(device)}; choose a smaller space")
    return passes


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
    passes = more * trainer.parts // trainer.ranks.count
    if section.accumulation == "auto":
        write_json(found, {"accumulation": passes})  # by whichever rank: the others cannot be asked any more
        answer = f"the same command goes on with accumulation {passes}"
    else:
        answer = f"set {step}.accumulation={passes}, which changes nothing else of the recipe, and start it again"
    return AutoFormerError(f"a forward pass of {images} images does not fit {memory}; {images // more} fit: {answer}")


def findings(trainer: Trainer) -> dict[str, str | int]:
    """What "auto" stood for in a training."""
    return {
        "device": str(trainer.device),
        "precision": trainer.precision,
        "accumulation": trainer.parts // trainer.ranks.count,
        "ranks": trainer.ranks.count,
        "workers": worker_count(trainer.device),
    }
