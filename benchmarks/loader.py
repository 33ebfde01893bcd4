"""Training images per second: this loader against torchvision's ImageFolder with timm's training transform.

Both read the same JPEG files, made from scikit-image's photographs: one from a folder tree, as the official code does,
the other from a tar. Both have the same number of worker processes. A batch counts when it is ready for a model: float
tensors, normalised, with erased rectangles. The clock starts when the batches that workers had prefetched are used up.
"""

import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler
from torchvision.datasets import ImageFolder

from autoformer.images.archives import EncodedImages, EncodedSplit
from autoformer.images.augmentation import BatchAugmentation
from autoformer.images.batches import normalise
from autoformer.images.split_files import Split
from autoformer.images.training_loader import PREFETCH_FACTOR, TrainingLoader, training_loader
from autoformer.recipe import Augmentation, Recipe
from benchmarks.rows import Row, interleaved, measured, ratio

SIDE, CLASSES = 224, 10
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
RAND_AUGMENT, SCALE, ERASE = "rand-m9-mstd0.5-inc1", (0.08, 1.0), 0.25
CACHE_BYTES = 4 * 2**30
BASELINE, EXACT, FAST, CACHED = "ImageFolder + timm", "exact", "fast", "fast, cached"
PHOTOGRAPHS = (
    "astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "motorcycle_right.png",
    "hubble_deep_field.jpg", "retina.jpg",
)  # fmt: skip


class Shape(NamedTuple):
    """Images of one size."""

    width: int
    height: int
    quality: int  # of JPEG
    images: int
    min_ratio: float  # the goal, in images a second of the baseline

    def __str__(self) -> str:
        return f"{self.width} x {self.height}"


SHAPES = (Shape(500, 375, 95, 300, 1.3), Shape(2000, 1500, 85, 100, 2.0))


def make_images(folder: Path, shape: Shape, pictures: Sequence[Image.Image] = ()) -> tuple[Path, EncodedSplit]:
    """Write the same images as a class-folder tree and as a tar. Each is another part of a picture (by default of a
    photograph) with a camera's noise: without it an enlarged part would make too small a file."""
    if not pictures:
        from skimage import data

        pictures = [Image.open(Path(data.__file__).parent / name).convert("RGB") for name in PHOTOGRAPHS]
    rng, labels = Random(0), np.arange(shape.images) % CLASSES
    with tarfile.open(folder / "images.tar", "w") as archive:
        for number, label in enumerate(labels):
            path = folder / "tree" / f"class{label}" / f"{number:05d}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            _part(rng.choice(pictures), shape, rng).save(path, quality=shape.quality)
            archive.add(path, path.name)
    with tarfile.open(folder / "images.tar") as archive:
        places = np.array([(member.offset_data, member.size) for member in archive])
    names = np.full(shape.images, "images.tar")
    rows = Split(names, places[:, 0], places[:, 1].astype(np.int32), labels.astype(np.int32), names)
    return folder / "tree", EncodedSplit(EncodedImages(folder, rows, 3, upright=False), labels)


def _part(picture: Image.Image, shape: Shape, rng: Random) -> Image.Image:
    width = min(picture.width, picture.height * shape.width / shape.height) * rng.uniform(0.6, 1)
    height = width * shape.height / shape.width
    left, top = rng.uniform(0, picture.width - width), rng.uniform(0, picture.height - height)
    corners = (left, top, left + width, top + height)
    part = picture.resize((shape.width, shape.height), Image.Resampling.BICUBIC, corners)
    noise = np.random.default_rng(rng.randrange(2**32)).normal(0, 5, (shape.height, shape.width, 1))
    return Image.fromarray((np.asarray(part) + noise).clip(0, 255).astype(np.uint8))


# --- loaders: each an endless stream of batches, ready for a model ---

Batches = Callable[[], Iterator[Tensor]]


def baseline(tree: Path, batch_size: int, workers: int) -> Iterator[Tensor]:
    """The official code's way: workers make float tensors."""
    transform = create_transform(
        SIDE, is_training=True, color_jitter=0.4, auto_augment=RAND_AUGMENT, interpolation="bicubic", re_prob=ERASE,
        re_mode="pixel", re_count=1,
    )  # fmt: skip
    images, prefetch = ImageFolder(str(tree), transform), PREFETCH_FACTOR if workers else None
    sampler = RandomSampler(images, replacement=True, num_samples=10**9)
    for pixels, _ in DataLoader(images, batch_size, sampler=sampler, num_workers=workers, prefetch_factor=prefetch):
        yield pixels


def ours(images: TrainingLoader, augmentation: Augmentation) -> Iterator[Tensor]:
    """Batches as the training loop takes them: its own process normalises and erases."""
    finish = BatchAugmentation(augmentation, CLASSES, 0.1, torch.device("cpu"))
    try:
        for number in count():
            pixels, labels = images.batch(number)
            yield finish(normalise(pixels, MEAN, STD), labels, 0, number, 0)[0]
    finally:
        images.close()


def loaders(tree: Path, split: EncodedSplit, batch_size: int, workers: int) -> dict[str, Batches]:
    """A starter of each loader, by name."""
    starters: dict[str, Batches] = {BASELINE: partial(baseline, tree, batch_size, workers)}
    for name, fast, cache in ((EXACT, False, 0), (FAST, True, 0), (CACHED, True, CACHE_BYTES)):
        augmentation = Augmentation(
            crop_scale=SCALE, flip=True, rand_augment=RAND_AUGMENT, erase_probability=ERASE, fast=fast
        )
        recipe = Recipe(epochs=1, batch_size=batch_size, learning_rate=1, augmentation=augmentation)
        images = training_loader(split, recipe, 0, SIDE, MEAN, 1, workers, cache_bytes=cache)
        starters[name] = partial(ours, images, augmentation)
    return starters


def seconds_of(batches: int, skipped: int, clock: Callable[[], float], start: Batches) -> float:
    """Seconds of `batches` batches, after the first `skipped`."""
    stream = start()
    for _ in range(skipped):
        next(stream)
    begun = clock()
    for _ in range(batches):
        next(stream)
    seconds = clock() - begun
    stream.close()  # type: ignore[attr-defined]
    return seconds


# --- figures ---


def measure(quick: bool = False, shapes: Sequence[Shape] = SHAPES, workers: int = 2) -> dict[str, Any]:
    """The rows, and the measured seconds."""
    rounds, batches, batch_size = (1, 3, 16) if quick else (5, 10, 32)
    torch.set_num_threads(1)
    rows: list[Row] = []
    seconds = {}

    def timed(workers: int, clock: Callable[[], float]) -> dict[str, list[float]]:
        starters, skipped = loaders(tree, split, batch_size, workers), 1 + PREFETCH_FACTOR * workers
        epochs = 3 * len(split.labels) // batch_size  # until all scales of each image are in the cache
        seconds_of(epochs, skipped, clock, starters[CACHED])
        return interleaved(starters, rounds, partial(seconds_of, batches, skipped, clock), warmup=0)

    for shape in shapes:
        with tempfile.TemporaryDirectory() as folder:
            tree, split = make_images(Path(folder), shape._replace(images=40) if quick else shape)
            seconds[str(shape)] = taken = timed(workers, time.perf_counter)
            alone = timed(0, time.process_time)  # other programs disturb it less
        rate = ratio([batches * batch_size] * rounds, taken[BASELINE])
        rows.append(Row(f"{shape}, {BASELINE}", rate, "images/s"))
        for name in (EXACT, FAST, CACHED):
            limit, value = shape.min_ratio if name == FAST else None, ratio(taken[BASELINE], taken[name])
            rows.append(Row(f"{shape}, {name}: images a second / {BASELINE}", value, "x", limit, "at least"))
        value = ratio(alone[BASELINE], alone[FAST])
        rows.append(Row(f"{shape}, {FAST}: the same by processor time, in one process", value, "x"))
    return measured(rows, workers=workers, batch_size=batch_size, seconds=seconds)
