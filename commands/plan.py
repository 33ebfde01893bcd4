"""What a run will take, before it is begun: steps, images, memory and hours, from training steps that are measured.

    python -m commands.plan --config CONFIG --data FOLDER

Nothing is written, and nothing of the run depends on it.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from autoformer.images.archives import EncodedImages, EncodedSplit
from autoformer.images.card import DatasetCard
from autoformer.images.pixels import model_pixels
from autoformer.images.split_images import DecodedSplit
from components.prepare_data import imagenet
from components.prepare_data.readers import read_delivered
from components.prepare_data.splitting import Splits, describe, split
from runtime.common.config import (
    Config,
    PrepareData,
    RetrainSubnet,
    SearchSubnet,
    TrainingSection,
    TrainSupernet,
    load_config,
)
from runtime.common.console import Parser, existing, run_command
from runtime.common.processes import set_threads
from runtime.steps.inputs import DATA, check_batch, check_space
from runtime.storage.data import open_data, remote_archives

STEP_SECONDS = 20  # what a step's process takes to start and to end
_ENOUGH_SECONDS = 5.0
_MOST_STEPS = 30
_NOISE = 2048


class SplitSizes(NamedTuple):
    """How many images each split has."""

    train: int
    search: int
    test: int
    train_full: int


class Stage(NamedTuple):
    """One step of the pipeline: how many images go through it, and how fast."""

    name: str
    work: str
    images: float
    images_per_second: float

    @property
    def hours(self) -> float:
        return (STEP_SECONDS + (self.images / self.images_per_second if self.images else 0)) / 3600


class Plan(NamedTuple):
    device: str
    images: SplitSizes
    stages: list[Stage]
    memory_gb: float

    @property
    def hours(self) -> float:
        return sum(stage.hours for stage in self.stages)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m commands.plan", description="Estimate what a run will take.")
    parser.add_argument("--config", required=True, help="a preset's name, a params file, or the same as JSON text")
    parser.add_argument("--data", required=True, help=DATA)

    def work(arguments: argparse.Namespace) -> None:
        print(plan_table(make_plan(load_config(arguments.config), open_data(arguments.data).folder)), flush=True)

    return run_command("plan", parser, work, argv, after="")


def make_plan(config: Config, data: Path) -> Plan:
    """Measure some training steps and some scored images of the configured supernet, and count the rest."""
    import torch

    from autoformer.devices import find_device

    set_threads(config.threads)
    device = find_device(config.device)
    card, pictures, images = read_sample(config, data)
    training, scoring = _measure(config, card, pictures)
    search, retrained = config.section(SearchSubnet), config.section(RetrainSubnet)
    candidates = search.budget
    scored = min(search.images or images.search, images.search)
    trainings = _trainings(retrained)
    stages = [
        Stage("prepare_data", "", images.train_full + images.test, 2000.0),
        _training_stage("train_supernet", config.section(TrainSupernet), images.train, 1, training),
        Stage(
            "search_subnet",
            f"{candidates:,} candidates on {'at most ' if search.racing else ''}{scored:,} images",
            candidates * scored,
            scoring,
        ),
        _training_stage("retrain_subnet", retrained, getattr(images, retrained.split), trainings, training),
        Stage("evaluate_subnet", f"{images.test:,} images", 3 * images.test, scoring),
        Stage("register_model", "", 0, 1.0),
    ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 + _held_bytes(config, card, images) / 2**30
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 2**30
    return Plan(str(device), images, stages, peak)


def _held_bytes(config: Config, card: DatasetCard, images: SplitSizes) -> int:
    """Decoded images that the hungriest step holds in memory beside what was measured."""
    by_image = card.encoding == "image" and config.section(TrainSupernet).augmentation.by_image
    trained = 0 if by_image else max(images.train, getattr(images, config.section(RetrainSubnet).split))
    most = max(images.search + trained, images.test)
    return most * card.channels * config.space.image_size**2


def _trainings(section: RetrainSubnet) -> int:
    """Of the chosen subnet: by its mode, and from scratch for a reference, unless it is that itself."""
    return (section.mode != "inherited") + (section.scratch_reference and section.mode != "scratch")


def _training_stage(name: str, section: TrainingSection, images: int, times: int, rate: float) -> Stage:
    steps = times * max(1, round(section.epochs * (images // section.batch_size)))
    if not times:
        return Stage(name, "none: weights as inherited", 0, 1.0)
    trainings = f"{times} trainings of " if times > 1 else ""
    work = f"{trainings}{section.epochs:g} epochs, {steps:,} steps of {section.batch_size}"
    return Stage(name, work, steps * section.batch_size, rate)


def read_sample(config: Config, data: Path) -> tuple[DatasetCard, DecodedSplit | EncodedSplit, SplitSizes]:
    """A card, images that stand for the train split, and the size of each split."""
    section, training, space = config.section(PrepareData), config.section(TrainSupernet), config.space
    counts = None
    if imagenet.is_mine(existing(data, "`make data`")):  # not read for hours before a plan
        delivered = imagenet.glance(data)
        splits, counts = Splits({"train": delivered.rows}, ()), _published_counts(section)
    else:
        delivered = read_delivered(data, config.dataset)
        splits = split(delivered, section, config.seed)
    half = (0.5,) * delivered.channels
    card = describe(delivered, splits, (half, half))
    check_space(card, space)
    train = splits.rows["train"]
    counts = counts or SplitSizes(*(card.counts[name] for name in SplitSizes._fields))
    if card.encoding == "raw":
        return card, _noise(card, min(len(train.labels), _NOISE)), counts
    encoded = EncodedSplit(
        EncodedImages(data, train, card.channels, card.upright, card.files, remote_archives(data)),
        train.labels.astype(np.int64),
    )
    if training.augmentation.by_image:
        return card, encoded, counts
    few = range(min(len(train.labels), 8 * training.batch_size))
    decoded = [model_pixels(encoded.pictures.image(index), card.channels, space.image_size) for index in few]
    return card, DecodedSplit(np.stack(decoded), encoded.labels[: len(few)], []), counts


def _published_counts(section: PrepareData) -> SplitSizes:
    """Of ImageNet, but for the few images that are in two splits as they were delivered."""
    full = imagenet.PUBLISHED.train_images
    search = section.search_images or round(full * section.search_percent / 100)
    return SplitSizes(full - search, search, imagenet.PUBLISHED.val_images, full)


def _noise(card: DatasetCard, images: int) -> DecodedSplit:
    """Images of the data set's shape, which take as long as any."""
    assert card.image_size is not None
    shape = (images, card.channels, card.image_size, card.image_size)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return DecodedSplit(pixels, np.zeros(len(pixels), dtype=np.int64), [])


def _measure(config: Config, card: DatasetCard, images: DecodedSplit | EncodedSplit) -> tuple[float, float]:
    """Images a second of training, and of scoring a candidate."""
    import torch

    from autoformer.evaluation import predict_logits
    from autoformer.images.training_loader import PREFETCH_FACTOR
    from runtime.steps.training_setup import make_trainer, supernet_training
    from runtime.steps.workers import worker_count

    section, space = config.section(TrainSupernet), config.space
    check_batch(section, len(images.labels), "train_supernet")
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(supernet_training(config, images, card, Path(folder) / "found.json"))
    trainer.total_steps = sys.maxsize
    # workers decode ahead while the model warms up: a rate is that of both once as many batches are gone
    ahead = PREFETCH_FACTOR * worker_count(trainer.device) if section.augmentation.by_image else 0
    training = _rate(lambda: trainer.advance(1), section.batch_size, warm_up=2 + ahead)
    trainer.images.close()
    size = (config.section(SearchSubnet).batch_size, space.in_channels, space.image_size, space.image_size)
    batch = torch.zeros(size, dtype=torch.uint8)
    model = trainer.model.eval()

    def score() -> None:
        predict_logits(lambda part: model(part, space.middle), batch, card.mean, card.std, len(batch), trainer.device)

    return training, _rate(score, len(batch))


def _rate(work: Callable[[], object], images: int, warm_up: int = 2) -> float:
    """Images a second of a piece of work, after some to warm up."""
    for _ in range(warm_up):
        work()
    start, done = time.perf_counter(), 0
    while done < _MOST_STEPS and (done < 3 or time.perf_counter() - start < _ENOUGH_SECONDS):
        work()
        done += 1
    return done * images / (time.perf_counter() - start)


def plan_table(plan: Plan) -> str:
    """The plan as a table."""
    lines = [
        f"plan, on {plan.device}: {plan.images.train:,} images to train, {plan.images.search:,} to search, "
        f"{plan.images.test:,} to test",
        f"  {'step':<18}{'work':<48}{'images':>12}{'images/s':>10}{'time':>10}",
    ]
    for stage in plan.stages:
        rate = f"{stage.images_per_second:,.0f}" if stage.images else ""
        images = f"{stage.images:,.0f}" if stage.images else ""
        lines.append(f"  {stage.name:<18}{stage.work:<48}{images:>12}{rate:>10}{_time(stage.hours):>10}")
    memory = "GPU memory" if plan.device.startswith("cuda") else "memory"
    lines.append(f"  in all about {_time(plan.hours)}, and {plan.memory_gb:.1f} GB of {memory} in the largest step")
    return "\n".join(lines)


def _time(hours: float) -> str:
    return f"{hours * 60:.1f} min" if hours < 1 else f"{hours:.1f} h"


if __name__ == "__main__":
    raise SystemExit(main())
