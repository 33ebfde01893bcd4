"""Set up a trainer: teacher, loader, and an accumulation that fits into memory."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from autoformer.devices import autocast, fewest_micro_batches, find_device, find_precision, memory_bytes
from autoformer.distillation import Teacher
from autoformer.distributed import SINGLE_PROCESS, World
from autoformer.errors import AutoFormerError, quantity
from autoformer.files import write_json
from autoformer.images.archives import EncodedSplit
from autoformer.images.card import DatasetCard
from autoformer.images.split_images import DecodedSplit
from autoformer.images.training_loader import training_loader
from autoformer.layers import initialise
from autoformer.reading import read_json_as
from autoformer.recipe import Recipe
from autoformer.sampling import SubnetSampler
from autoformer.space import SearchSpace, SubnetSpec
from autoformer.supernet import Supernet
from autoformer.training import Trainer
from autoformer.vit import AutoFormer
from runtime.common.config import Config
from runtime.common.records import Accumulation
from runtime.common.sections import TrainingSection, TrainSupernet
from runtime.steps.workers import cache_bytes, worker_count


@dataclass(frozen=True, kw_only=True)
class Training:
    """The model, data, recipe and device of one training.

    Attributes:
        step: the step that `section` configures.
        section: the recipe, and the intervals of checkpoints, rows and scores.
        model: a supernet, or a single subnet.
        subnet: the model's spec; of a supernet its largest.
        sampler: the subnets that each step trains.
        images: the train split.
        seed: seed of order, augmentation and stochastic depth.
        accumulation_file: stores the number of micro-batches that fit, for resumed runs.
        world: this rank; each rank does `accumulation` micro-batches per step.
    """

    step: str
    section: TrainingSection
    space: SearchSpace
    model: Supernet | AutoFormer
    subnet: SubnetSpec
    sampler: SubnetSampler
    images: DecodedSplit | EncodedSplit
    card: DatasetCard
    seed: int
    device: torch.device
    accumulation_file: Path
    world: World = SINGLE_PROCESS

    def largest(self, images: Tensor) -> Tensor:
        """A forward pass of the largest subnet."""
        return self.model(images, self.subnet) if isinstance(self.model, Supernet) else self.model(images)

    def subnet_of(self, step: int) -> SubnetSpec:
        """The first subnet that a step, counted from 0, trains."""
        return self.sampler(step)[0].subnet or self.subnet


def supernet_training(
    config: Config,
    images: DecodedSplit | EncodedSplit,
    card: DatasetCard,
    accumulation_file: Path,
    world: World = SINGLE_PROCESS,
) -> Training:
    """The training of the configured supernet, with new weights. Raises `AutoFormerError` if the device is missing."""
    section, space = config.section(TrainSupernet), config.space
    torch.manual_seed(config.seed)
    supernet = Supernet(space, drop_path=section.drop_path)
    initialise(supernet, section.init_gain)
    return Training(
        step="train_supernet",
        section=section,
        space=space,
        model=supernet,
        subnet=space.largest,
        sampler=section.sampler(space, config.seed),
        images=images,
        card=card,
        seed=config.seed,
        device=find_device(config.device),
        accumulation_file=accumulation_file,
        world=world,
    )


def make_trainer(training: Training) -> Trainer:
    """Move the model to its device, resolve "auto", and make the trainer.

    Raises:
        AutoFormerError: the teacher does not match the data, or not even one image fits into memory.
    """
    model, space, card, seed = training.model, training.space, training.card, training.seed
    device, world, recipe = training.device, training.world, training.section.recipe()
    model.to(device)
    model.set_grad_checkpointing(recipe.activation_checkpointing)
    teacher = None
    if recipe.distillation is not None:
        teacher = Teacher(recipe.distillation, card.mean, card.std, space.num_classes, device)
    passes = recipe.accumulation if isinstance(recipe.accumulation, int) else _common_passes(training, teacher)
    source = training_loader(
        training.images, recipe, seed, space.image_size, card.mean, passes * world.size, worker_count(device), world,
        cache_bytes(),
    )  # fmt: skip
    return Trainer(model, training.sampler, source, space.num_classes, card.mean, card.std, recipe, seed, teacher)


def _common_passes(training: Training, teacher: Teacher | None) -> int:
    """Micro-batches per rank and step: the stored number, else the largest that any rank needs."""
    world, file = training.world, training.accumulation_file
    remembered = None
    if world.is_rank_zero and file.exists():
        remembered = read_json_as(Accumulation, file, "delete it to measure the memory again").accumulation
    remembered = world.broadcast(remembered)
    if remembered is not None and training.section.batch_size % (remembered * world.size) == 0:
        return remembered
    passes = max(world.all_gather(_passes_that_fit(training, teacher)))
    if world.is_rank_zero:
        write_json(file, {"accumulation": passes})
    return passes


def _passes_that_fit(training: Training, teacher: Teacher | None) -> int:
    """The smallest number of micro-batches for this rank's share of a step; 1 on a CPU, without a trial."""
    if training.device.type == "cpu":
        return 1
    section, weights = training.section, training.model.parameters()
    state = [torch.empty_like(tensor) for tensor in weights for _ in range(3)]  # two moments, an average
    trial = _trial(training, teacher)
    passes = fewest_micro_batches(trial, section.batch_size // training.world.size, section.augmentation.mixes)
    del state
    if passes is None:
        raise _too_large(training.device)
    return passes


def _trial(training: Training, teacher: Teacher | None) -> Callable[[int], None]:
    """A function that allocates the memory of the largest forward and backward pass of so many images."""
    device, space = training.device, training.space
    precision = find_precision(training.section.precision, device)
    weights = [weight for weight in training.model.parameters() if weight.requires_grad]

    def run(images: int) -> None:
        batch = torch.zeros((images, space.in_channels, space.image_size, space.image_size), device=device)
        with autocast(device, precision):
            if teacher is not None:
                teacher(batch)
            loss = training.largest(batch).float().sum()
        torch.autograd.grad(loss, weights, allow_unused=True)  # backward() would start DDP's all-reduce

    return run


def _too_large(device: torch.device) -> AutoFormerError:
    return AutoFormerError(f"not even one image at a time fits {_memory(device)}; choose a smaller space")


def _memory(device: torch.device) -> str:
    total = memory_bytes(device)
    return f"the {total / 2**30:.0f} GiB of {device}" if total else "this machine's memory"


def out_of_memory(training: Training, trainer: Trainer) -> AutoFormerError:
    """The error for an optimiser step that ran out of memory, with the accumulation that fits.

    With `accumulation: auto` it is also stored in `training.accumulation_file`, from which the same command resumes.
    """
    section = training.section
    trainer.optimizer.zero_grad(set_to_none=True)
    if trainer.device.type == "cuda":
        torch.cuda.empty_cache()
    images = trainer.images_per_step // trainer.micro_batches
    more = fewest_micro_batches(_trial(training, trainer.teacher), images, section.augmentation.mixes, minimum=2)
    if more is None:
        return _too_large(trainer.device)
    passes = more * trainer.micro_batches // trainer.world.size
    if section.accumulation == "auto":
        write_json(
            training.accumulation_file, {"accumulation": passes}
        )  # written by any rank, since others may have ended
        answer = f"the same command resumes with accumulation {passes}"
    else:
        answer = (
            f"set {training.step}.accumulation={passes}, which changes nothing else of the recipe, and start it again"
        )
        if draws_by_micro_batch(section):
            answer = (
                f"set {training.step}.accumulation={passes}, which makes other draws of mixing, erasing and stochastic "
                "depth, and start it again"
            )
    return AutoFormerError(
        f"a forward pass of {quantity(images, 'image')} does not fit {_memory(trainer.device)}; {images // more} would "
        f"fit: {answer}"
    )


def draws_by_micro_batch(recipe: Recipe) -> bool:
    """Whether the number of micro-batches changes the training by more than rounding."""
    return bool(recipe.drop_path or recipe.augmentation.erase_probability or recipe.augmentation.mixes)


def resolved_settings(trainer: Trainer) -> dict[str, str | int | float]:
    """The values that replaced "auto", and the final decay of the averaged weights."""
    settings: dict[str, str | int | float] = {
        "device": str(trainer.device),
        "precision": trainer.precision,
        "accumulation": trainer.accumulation_steps,
        "ranks": trainer.world.size,
        "workers": worker_count(trainer.device),
    }
    if trainer.final_ema_decay is not None:
        settings["final_ema_decay"] = round(trainer.final_ema_decay, 6)
    return settings
