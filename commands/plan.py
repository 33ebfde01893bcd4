"""Estimate the steps, images, memory and hours of a run by measuring a few training steps.

    python -m commands.plan --config CONFIG --data FOLDER

It writes nothing.
"""

import argparse
import importlib
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from autoformer.errors import quantity
from autoformer.images.archives import EncodedImages, EncodedSplit
from autoformer.images.card import DatasetCard
from autoformer.images.pixels import model_pixels
from autoformer.images.split_images import DecodedSplit
from autoformer.limits import Limits
from components.prepare_data import imagenet
from components.prepare_data.readers import read_delivered
from components.prepare_data.splitting import Splits, describe, split
from runtime.common.config import Config, load_config
from runtime.common.console import Parser, existing, run_command
from runtime.common.processes import set_threads
from runtime.common.sections import PrepareData, RetrainSubnet, SearchSubnet, TrainingSection, TrainSupernet
from runtime.steps.inputs import DATA, check_batch, check_space
from runtime.storage.data import open_data, remote_archives

STARTS = 2.0  # start and end of a step (with MLflow), as a multiple of this process's start
STEP_SECONDS = 12.0  # start and end of a step, if not measured
PREPARED_PER_SECOND = 2000.0  # images
_MIN_SECONDS = 5.0  # of a measurement, or until _MAX_STEPS
_MAX_STEPS = 30
_WORK_CHARACTERS = 48  # of the table, at least
_NOISE_IMAGES = 2048


class Stage(NamedTuple):
    """One step of the pipeline."""

    name: str
    work: str = ""  # in words
    images: int = 0  # forward passes
    images_per_second: float = 1.0


class Plan(NamedTuple):
    device: str
    counts: Mapping[str, int]  # split -> images, as on the card of a data set
    stages: list[Stage]
    memory_gb: float
    step_seconds: float  # start and end of a step's process

    def hours_of(self, stage: Stage) -> float:
        return (self.step_seconds + stage.images / stage.images_per_second) / 3600

    @property
    def hours(self) -> float:
        return sum(map(self.hours_of, self.stages))


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m commands.plan", description="Estimate what a run will take.")
    parser.add_argument("--config", required=True, help="a preset's name, a params file, or the same as JSON text")
    parser.add_argument("--data", required=True, help=DATA)

    def work(arguments: argparse.Namespace) -> None:
        config, data = load_config(arguments.config), open_data(arguments.data).folder
        print(plan_table(make_plan(config, data, STARTS * _start_seconds())), flush=True)

    return run_command("plan", parser, work, argv, after="")


def _start_seconds() -> float:
    """Seconds since this process started, after importing what a training step imports."""
    import psutil

    importlib.import_module("runtime.steps.training_setup")
    return time.time() - float(psutil.Process().create_time())


def make_plan(config: Config, data: Path, step_seconds: float = STEP_SECONDS) -> Plan:
    """Measure training and scoring of the configured supernet for some seconds, and count the work of each step.

    Args:
        step_seconds: start and end of a step's process.
    """
    import torch

    from autoformer.devices import find_device

    set_threads(config.threads)
    device = find_device(config.device)
    card, sample, counts = read_sample(config, data)
    training, scoring = _measure(config, card, sample)
    search, retrain = config.section(SearchSubnet), config.section(RetrainSubnet)
    scored = min(search.images or counts["search"], counts["search"])
    budgets = len(search.budgets or [None])
    most = search.most_candidates * budgets
    candidates = f"{quantity(most, 'candidate')} on {'at most ' if search.racing else ''}{quantity(scored, 'image')}"
    candidates += "" if search.limits == Limits() else f", {search.limits}"
    candidates += f", {quantity(budgets, 'budget')}" if search.budgets else ""
    stages = [
        Stage("prepare_data", images=counts["train_full"] + counts["test"], images_per_second=PREPARED_PER_SECOND),
        _training_stage("train_supernet", [config.section(TrainSupernet)], counts["train"], training),
        Stage("search_subnet", candidates, most * scored, scoring),
        _repeated(budgets, _training_stage("retrain_subnet", _trainings(config), counts[retrain.split], training)),
        Stage("evaluate_subnet", quantity(counts["test"], "image"), 3 * budgets * counts["test"], scoring),
        Stage("register_model"),
    ]
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 2**30
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 + _decoded_bytes(config, card, counts) / 2**30
    return Plan(str(device), counts, stages, peak, step_seconds)


def _decoded_bytes(config: Config, card: DatasetCard, counts: Mapping[str, int]) -> int:
    """Bytes of decoded images in the largest step, besides those of the measurement."""
    by_image = card.encoding == "image" and config.section(TrainSupernet).augmentation.by_image
    trained = 0 if by_image else max(counts["train"], counts[config.section(RetrainSubnet).split])
    return max(counts["search"] + trained, counts["test"]) * card.channels * config.space.image_size**2


def _trainings(config: Config) -> list[TrainingSection]:
    """The trainings of `retrain_subnet`."""
    retrain, supernet = config.section(RetrainSubnet), config.section(TrainSupernet)
    trainings: list[TrainingSection] = [] if retrain.mode == "inherited" else [retrain]
    if retrain.scratch_reference and retrain.mode != "scratch":
        epochs = supernet.epochs + sum(training.epochs for training in trainings)
        trainings.append(supernet.model_copy(update={"epochs": epochs}))
    return trainings


def _training_stage(name: str, trainings: Sequence[TrainingSection], images: int, rate: float) -> Stage:
    if not trainings:
        return Stage(name, "none: weights as inherited")
    steps = [max(1, round(section.epochs * (images // section.batch_size))) for section in trainings]
    first = "".join(f"{section.epochs:g} and " for section in trainings[:-1])
    batches = " and ".join(dict.fromkeys(str(section.batch_size) for section in trainings))
    seen = sum(count * section.batch_size for count, section in zip(steps, trainings, strict=True))
    return Stage(
        name,
        f"{first}{quantity(trainings[-1].epochs, 'epoch')}, {quantity(sum(steps), 'step')} of {batches}",
        seen,
        rate,
    )


def _repeated(budgets: int, stage: Stage) -> Stage:
    if budgets == 1:
        return stage
    return stage._replace(
        work=f"for each of {quantity(budgets, 'budget')}: {stage.work}", images=stage.images * budgets
    )


def read_sample(config: Config, data: Path) -> tuple[DatasetCard, DecodedSplit | EncodedSplit, Mapping[str, int]]:
    """The data set's card, training images to measure with, and the number of images of each split."""
    section, training, space = config.section(PrepareData), config.section(TrainSupernet), config.space
    is_imagenet = imagenet.is_mine(existing(data, "`make data`"))
    if is_imagenet:  # reading all of it takes hours
        delivered = imagenet.glance(data)
        splits = Splits({"train": delivered.rows}, ())
    else:
        delivered = read_delivered(data, config.dataset)
        delivered = delivered._replace(pixels=delivered.pixels or section.pixel_rule)
        splits = split(delivered, section, config.seed)
    half = (0.5,) * delivered.channels
    card = describe(delivered, splits, (half, half))
    check_space(card, space)
    train = splits.rows["train"]
    counts = _imagenet_counts(section) if is_imagenet else card.counts
    if card.encoding == "raw":
        return card, _noise(card, min(len(train.labels), _NOISE_IMAGES)), counts
    encoded = EncodedSplit(
        EncodedImages(data, train, card.channels, card.upright, card.files, remote_archives(data), card.pixels),
        train.labels.astype(np.int64),
    )
    if training.augmentation.by_image:
        return card, encoded, counts
    few = range(min(len(train.labels), 8 * training.batch_size))
    decoded = [model_pixels(encoded.pictures.image(index), card.channels, space.image_size) for index in few]
    return card, DecodedSplit(np.stack(decoded), encoded.labels[: len(few)], []), counts


def _imagenet_counts(section: PrepareData) -> dict[str, int]:
    """From the published numbers; the few images that are in two splits are ignored."""
    full = imagenet.PUBLISHED.train_images
    search = section.search_images or round(full * section.search_percent / 100)
    return {"train": full - search, "search": search, "test": imagenet.PUBLISHED.val_images, "train_full": full}


def _noise(card: DatasetCard, images: int) -> DecodedSplit:
    """Random images of the data set's shape, which train as fast as real ones."""
    assert card.image_size is not None
    shape = (images, card.channels, card.image_size, card.image_size)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return DecodedSplit(pixels, np.zeros(len(pixels), dtype=np.int64), [])


def _measure(config: Config, card: DatasetCard, images: DecodedSplit | EncodedSplit) -> tuple[float, float]:
    """Images per second of training, and of scoring a candidate."""
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
    # the rate includes decoding after the batches prefetched during the warm-up are used up
    prefetched = PREFETCH_FACTOR * worker_count(trainer.device) if section.augmentation.by_image else 0
    training = _rate(lambda: trainer.advance(1), section.batch_size, warm_up=2 + prefetched)
    trainer.images.close()
    size = (config.section(SearchSubnet).batch_size, space.in_channels, space.image_size, space.image_size)
    batch = torch.zeros(size, dtype=torch.uint8)
    model = trainer.model.eval()

    def score() -> None:
        predict_logits(lambda part: model(part, space.middle), batch, card.mean, card.std, len(batch), trainer.device)

    return training, _rate(score, len(batch))


def _rate(work: Callable[[], object], images: int, warm_up: int = 2) -> float:
    """Images per second of repeated `work`, each time on so many images."""
    for _ in range(warm_up):
        work()
    start, done = time.perf_counter(), 0
    while done < _MAX_STEPS and (done < 3 or time.perf_counter() - start < _MIN_SECONDS):
        work()
        done += 1
    return done * images / (time.perf_counter() - start)


def plan_table(plan: Plan) -> str:
    """The plan as a table."""
    width = max(_WORK_CHARACTERS, *(len(stage.work) + 2 for stage in plan.stages))
    lines = [
        f"plan, on {plan.device}: {quantity(plan.counts['train'], 'image')} to train, {plan.counts['search']:,} to "
        f"search, {plan.counts['test']:,} to test",
        f"  {'step':<18}{'work':<{width}}{'images':>12}{'images/s':>10}{'time':>10}",
    ]
    for stage in plan.stages:
        rate = f"{stage.images_per_second:,.0f}" if stage.images else ""
        images = f"{stage.images:,.0f}" if stage.images else ""
        lines.append(f"  {stage.name:<18}{stage.work:<{width}}{images:>12}{rate:>10}{_time(plan.hours_of(stage)):>10}")
    memory = "GPU memory" if plan.device.startswith("cuda") else "memory"
    lines.append(f"  in all about {_time(plan.hours)}, and {plan.memory_gb:.1f} GB of {memory} in the largest step")
    return "\n".join(lines)


def _time(hours: float) -> str:
    return f"{hours * 60:.1f} min" if hours < 1 else f"{hours:.1f} h"


if __name__ == "__main__":
    raise SystemExit(main())
