"""Speed of scoring, with the hours of a search of the paper's size, and of a supernet epoch from JPEGs."""

import tempfile
import time
from contextlib import closing
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

from autoformer.devices import find_precision
from autoformer.errors import quantity
from autoformer.images.card import DatasetCard
from autoformer.images.split_images import DecodedSplit
from autoformer.images.training_loader import Batch, TrainingLoader, training_loader
from autoformer.racing import ScoringTask
from autoformer.recipe import Recipe
from autoformer.sampling import uniform
from autoformer.scoring import SubnetScorer
from autoformer.space import SearchSpace
from autoformer.supernet import Supernet
from autoformer.training import Trainer
from benchmarks.engine import Run
from benchmarks.gpu.recorder import Recorder, synchronize
from benchmarks.loader import MEAN, STD, Shape, make_images
from runtime.common.config import load_config
from runtime.common.sections import TrainSupernet
from runtime.steps.workers import worker_count

CANDIDATES, SEARCH_IMAGES = 1050, 10_000  # of the paper's search, each candidate on every image
BATCH = 1000  # of the presets for ImageNet
OCTAVES = (8, 16, 32, 64, 128, 256, 512)
PICTURES, SCORED = 4, 3  # to cut JPEGs from; candidates


def random_images(space: SearchSpace, images: int) -> DecodedSplit:
    rng = np.random.default_rng(0)
    shape = (images, space.in_channels, space.image_size, space.image_size)
    labels = rng.integers(0, space.num_classes, images)
    return DecodedSplit(rng.integers(0, 256, shape, dtype=np.uint8), labels, [])


def card_of(space: SearchSpace) -> DatasetCard:
    """The card of random images."""
    return DatasetCard(
        name="random", classes=tuple(f"class {number}" for number in range(space.num_classes)),
        image_size=space.image_size, channels=space.in_channels, encoding="raw", mean=MEAN[: space.in_channels],
        std=STD[: space.in_channels], counts={}, licence="none", source="random", archives={}, split_hashes={},
    )  # fmt: skip


def published_recipe(**changes: object) -> Recipe:
    recipe = load_config("imagenet-tiny").section(TrainSupernet).recipe()
    return Recipe.model_validate(recipe.model_dump() | {"accumulation": 1} | changes)


def supernet_trainer(recorder: Recorder, space: SearchSpace, images: Any, recipe: Recipe, seed: int = 0) -> Trainer:
    torch.manual_seed(seed)
    model = Supernet(space, recipe.drop_path).to(recorder.device)
    return Trainer(model, uniform(space, 0), images, space.num_classes, MEAN, STD, recipe, 0)


def scoring(recorder: Recorder) -> None:
    """Random candidates, each on all images."""
    size, precision = recorder.size, find_precision("auto", recorder.device)
    batch, every = min(BATCH, size.search_images), np.arange(size.search_images)
    recorder.fact("scored", f"{size.search_images:,} images a candidate, batches of {batch}, {precision}")
    recorder.fact(
        "search", f"{CANDIDATES:,} candidates x {SEARCH_IMAGES:,} images; what a race spares is not taken off"
    )

    def score(space: SearchSpace, letter: str) -> None:
        supernet, rng = Supernet(space).to(recorder.device).eval(), Random(0)
        scorer = SubnetScorer(supernet, random_images(space, len(every)), card_of(space), batch, precision)
        list(scorer([ScoringTask(space.largest, every[:batch])]))  # warm-up
        start, scored = time.perf_counter(), 0
        for _ in scorer(ScoringTask(space.sample(rng), every) for _ in range(SCORED)):
            scored += len(every)
            if recorder.cut(f"{letter} after {scored:,} images"):
                break
        rate = scored / (time.perf_counter() - start)  # answers are on the host: the device has finished
        recorder.row(f"{letter}: images/s", rate, "")
        recorder.row(f"{letter}: hours of a search", CANDIDATES * SEARCH_IMAGES / rate / 3600, "h")

    recorder.each({letter: partial(score, case.space) for letter, case in size.cases().items()})


class SameBatch:
    """A source that repeats one batch, to measure the training step alone."""

    def __init__(self, images: TrainingLoader) -> None:
        self.order, self._batch = images.order, images.batch(0)
        images.close()  # ends its workers

    def batch(self, number: int) -> Batch:
        return self._batch

    def close(self) -> None:
        pass


def epoch(recorder: Recorder) -> None:
    """The published recipe for T: with the loader, without it, and the loader alone."""
    (letter, (space, _)), size = next(iter(recorder.size.cases().items())), recorder.size
    batch, workers = size.batches[0], worker_count(recorder.device)
    recipe, numbers = published_recipe(batch_size=batch), count()
    with tempfile.TemporaryDirectory() as folder, recorder.attempt(letter):
        width, height = size.jpeg_side, size.jpeg_side * 3 // 4
        pictures = [synthetic_picture(seed, 2 * width) for seed in range(PICTURES)]
        _, split = make_images(Path(folder), Shape(width, height, 95, batch, 0.0), pictures)
        jpegs = f"{batch} JPEGs of {width} x {height} and {len(split.pictures.read(0)) / 1000:.0f} kB"
        recorder.fact(
            letter, f"{quantity(size.epoch_batches, 'batch')} of the same {jpegs}, {quantity(workers, 'worker')}"
        )

        def source() -> TrainingLoader:
            return training_loader(split, recipe, 0, space.image_size, MEAN, 1, workers)

        read, rates = source(), {}
        for name, images in (
            ("step alone", SameBatch(source())),
            ("with the loader", source()),
            ("loader alone", read),
        ):
            if recorder.cut(f"{letter} {name} and what follows"):
                return
            with closing(images):
                work: Run = lambda: read.batch(next(numbers))  # noqa: E731
                if images is not read:
                    work = supernet_trainer(recorder, space, images, recipe).take_step
                rates[name] = batch * _calls_per_second(recorder, work, max(2, workers))
            recorder.row(f"{letter} {name}: images/s", rates[name], "")
        fed = rates["with the loader"] / rates["step alone"]
        recorder.row(f"{letter} with the loader: of the step alone", fed, "x")
        cores = rates["step alone"] / rates["loader alone"] * max(1, workers)
        recorder.row(f"{letter} loader alone: cores that would feed the step", cores, "")


def _calls_per_second(recorder: Recorder, work: Run, warmup: int) -> float:
    """Calls per second after the prefetched batches are used up; over fewer calls if the time ends."""
    for _ in range(warmup):
        work()
    synchronize(recorder.device)
    start, done = time.perf_counter(), 0
    while done < recorder.size.epoch_batches and not (done and recorder.is_over()):
        work()
        done += 1
    synchronize(recorder.device)
    return done / (time.perf_counter() - start)


def synthetic_picture(seed: int, side: int) -> Image.Image:
    """Noise with the spectrum of a photograph: half the contrast at twice the frequency."""
    rng, canvas = np.random.default_rng(seed), np.zeros((side, side, 3))
    for cells in OCTAVES:
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        canvas += (np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC)) - 127.5) * OCTAVES[0] / cells
    return Image.fromarray((127.5 + canvas).clip(0, 255).astype(np.uint8))
