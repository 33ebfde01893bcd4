"""(e) Candidate scoring, and what a search of the paper's size takes; (f) a supernet epoch of JPEGs by the loader."""

import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from autoformer.devices import find_precision
from autoformer.images.card import DatasetCard
from autoformer.images.split_images import DecodedSplit
from autoformer.images.training_loader import Batch, TrainingLoader, training_loader
from autoformer.racing import ScoringTask
from autoformer.sampling import uniform
from autoformer.scoring import SubnetScorer
from autoformer.space import SearchSpace
from autoformer.supernet import Supernet
from autoformer.training import Trainer
from benchmarks.gpu.bench import Bench, wait_for
from benchmarks.loader import MEAN, STD, Shape, make_images
from runtime.common.config import TrainSupernet, load_config
from runtime.steps.workers import worker_count

CANDIDATES, SEARCH_IMAGES = 1050, 10_000  # of the paper's search, each candidate on every image
BATCH = 1000  # of the presets for ImageNet
OCTAVES = (8, 16, 32, 64, 128, 256, 512)
PICTURES = 4


def random_images(space: SearchSpace, images: int, seed: int = 0) -> DecodedSplit:
    rng = np.random.default_rng(seed)
    shape = (images, space.in_channels, space.image_size, space.image_size)
    labels = rng.integers(0, space.num_classes, images)
    return DecodedSplit(rng.integers(0, 256, shape, dtype=np.uint8), labels, [])


def card_of(space: SearchSpace, **changes: object) -> DatasetCard:
    """Of images that were drawn at random."""
    given = {
        "name": "random", "classes": [f"class {number}" for number in range(space.num_classes)],
        "image_size": space.image_size, "channels": space.in_channels, "encoding": "raw",
        "mean": MEAN[: space.in_channels], "std": STD[: space.in_channels], "counts": {}, "licence": "none",
        "source": "random numbers", "archives": {}, "split_hashes": {},
    }  # fmt: skip
    return DatasetCard.model_validate(given | changes)


def scoring(bench: Bench) -> None:
    """Random candidates, each on all images; the search's time is that of its 1,050 candidates without a race."""
    precision = find_precision("auto", bench.device)
    batch = min(BATCH, bench.size.search_images)
    bench.fact("scored", f"{bench.size.search_images:,} images a candidate, batches of {batch}, {precision}")
    bench.fact("search", f"{CANDIDATES:,} candidates x {SEARCH_IMAGES:,} images; what a race spares is not taken off")
    images = None
    for letter, (space, _) in bench.size.cases().items():
        if bench.cut(f"{letter} and what follows"):
            return
        with bench.attempt(letter):
            images = images or random_images(space, bench.size.search_images)
            supernet, rng = Supernet(space).to(bench.device).eval(), Random(0)
            scorer = SubnetScorer(supernet, images, card_of(space), batch, precision)
            every = np.arange(len(images.labels))
            list(scorer([ScoringTask(space.largest, every[:batch])]))  # warm-up
            start, scored = time.perf_counter(), 0
            for _ in scorer(ScoringTask(space.sample(rng), every) for _ in range(bench.size.candidates)):
                scored += len(every)
                if bench.cut(f"{letter} after {scored:,} images"):
                    break
            rate = scored / (time.perf_counter() - start)  # answers are on the host: the device has finished
            bench.row(f"{letter}: images/s", rate, "")
            bench.row(f"{letter}: hours of a search", CANDIDATES * SEARCH_IMAGES / rate / 3600, "h")


# --- (f) ---


class Same:
    """The same batch each time, ready: what is left is the training step."""

    def __init__(self, images: TrainingLoader) -> None:
        self.order, self._batch = images.order, images.batch(0)
        images.close()  # or its workers would work on

    def batch(self, number: int) -> Batch:
        return self._batch

    def close(self) -> None:
        pass


def epoch(bench: Bench) -> None:
    """Is the GPU fed? The published recipe for T, with the loader, without it, and the loader alone."""
    (letter, (space, _)), size = next(iter(bench.size.cases().items())), bench.size
    batch, workers = size.batches[0], worker_count(bench.device)
    published = load_config("imagenet-tiny").section(TrainSupernet).recipe()
    recipe = published.model_copy(update={"batch_size": batch, "accumulation": 1})
    with tempfile.TemporaryDirectory() as folder, bench.attempt(letter):
        width, height = size.jpeg_side, size.jpeg_side * 3 // 4
        shape = Shape(width, height, 95, batch, 0.0)
        made = make_images(Path(folder), shape, pictures=[picture(seed, 2 * width) for seed in range(PICTURES)])
        bench.fact(
            letter,
            f"{size.epoch_batches} batches of {batch}, of as many JPEGs of {width} x {height} and "
            f"{made.bytes_each / 1000:.0f} kB again and again, {workers} workers",
        )

        def source() -> TrainingLoader:
            return training_loader(made.split, recipe, 0, space.image_size, MEAN, 1, workers)

        def trainer(images: Any) -> Trainer:
            model = Supernet(space, recipe.drop_path).to(bench.device)
            return Trainer(model, uniform(space, 0), images, space.num_classes, MEAN, STD, recipe, 0)

        read, rates = source(), {}
        number = count()
        for name, images, work in (
            ("step alone", Same(source()), None),
            ("with the loader", source(), None),
            ("loader alone", read, lambda: read.batch(next(number))),
        ):
            if bench.cut(f"{letter} {name} and what follows"):
                return
            with closing(images):
                rates[name] = batch * _per_second(bench, work or trainer(images).take_step, max(2, workers))
            bench.row(f"{letter} {name}: images/s", rates[name], "")
        fed = rates["with the loader"] / rates["step alone"]
        bench.row(f"{letter} with the loader: of the step alone", fed, "x")
        needed = rates["step alone"] / rates["loader alone"] * max(1, workers)
        bench.row(f"{letter} loader alone: cores that would feed the step", needed, "")


def _per_second(bench: Bench, work: Callable[[], object], warmup: int) -> float:
    """How often a second, once what the workers had made ahead is gone; fewer times where the part's time is up."""
    for _ in range(warmup):
        work()
    wait_for(bench.device)
    start, done = time.perf_counter(), 0
    while done < bench.size.epoch_batches and not (done and bench.is_over()):
        work()
        done += 1
    wait_for(bench.device)
    return done / (time.perf_counter() - start)


def picture(seed: int, side: int) -> Image.Image:
    """Noise with the spectrum of a photograph: half the contrast at twice the frequency."""
    rng, canvas = np.random.default_rng(seed), np.zeros((side, side, 3))
    for cells in OCTAVES:
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        canvas += (np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC)) - 127.5) * OCTAVES[0] / cells
    return Image.fromarray((127.5 + canvas).clip(0, 255).astype(np.uint8))
