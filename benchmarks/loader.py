"""Training images a second: this loader against torchvision's ImageFolder with timm's training transform.

    python -m benchmarks.loader --out loader.json

Both read the same JPEG files, made from scikit-image's photographs: one a folder tree, as the official code wants it,
the other a tar. Both have the same number of worker processes, and are timed until a batch is what a model takes: float
tensors, normalised, with erased rectangles, whichever process does it. One loader runs at a time, in turn, several
rounds; a rate is the median of its rounds, after the batches that workers had made ahead are gone.
"""

import argparse
import io
import os
import random
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import Normalize, RandomHorizontalFlip, ToTensor

from autoformer.files import write_json
from autoformer.images.archives import EncodedImages, EncodedSplit
from autoformer.images.augmentation import BatchAugmentation, rand_augment
from autoformer.images.batches import normalise
from autoformer.images.decoding import Decoder, least_scale
from autoformer.images.fast_augmentation import FastAugmentation, draw_crop
from autoformer.images.split_files import Split
from autoformer.images.training_loader import PREFETCH_FACTOR, TrainingLoader, training_loader
from autoformer.randomness import derived_rng
from autoformer.recipe import Augmentation, Recipe
from benchmarks.rows import Row, measured

SIDE, CLASSES = 224, 10
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
RAND_AUGMENT = "rand-m9-mstd0.5-inc1"
SCALE = (0.08, 1.0)
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
    goal: float  # times the baseline's images a second

    def __str__(self) -> str:
        return f"{self.width} x {self.height}"


SHAPES = (Shape(500, 375, 95, 300, 1.3), Shape(2000, 1500, 85, 100, 2.0))


class Made(NamedTuple):
    """The same images twice."""

    tree: Path
    split: EncodedSplit
    bytes_each: int


def photographs() -> list[Image.Image]:
    """The sample pictures of scikit-image."""
    from skimage import data

    return [Image.open(Path(data.__file__).parent / name).convert("RGB") for name in PHOTOGRAPHS]


def make_images(folder: Path, shape: Shape, seed: int = 0, pictures: Sequence[Image.Image] = ()) -> Made:
    """Write images of a shape as a class-folder tree and as a tar, each another part of a picture (of a photograph, by
    default), with the noise that a camera adds, without which a part that is enlarged would be a file too small."""
    pictures = pictures or photographs()
    rng, rows = Random(seed), []
    with tarfile.open(folder / "images.tar", "w") as archive:
        for number in range(shape.images):
            content = _jpeg(_part(rng.choice(pictures), shape, rng), shape.quality)
            label = number % CLASSES
            path = folder / "tree" / f"class{label}" / f"{number:05d}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            info = tarfile.TarInfo(path.name)
            info.size = len(content)
            offset = archive.offset + tarfile.BLOCKSIZE
            archive.addfile(info, io.BytesIO(content))
            rows.append((offset, len(content), label))
    offsets, sizes, labels = (np.array(column) for column in zip(*rows, strict=True))
    names = np.full(len(rows), "images.tar")
    split = Split(names, offsets, sizes.astype(np.int32), labels.astype(np.int32), names)
    pictures_in_tar = EncodedImages(folder, split, 3, upright=False)
    return Made(folder / "tree", EncodedSplit(pictures_in_tar, labels.astype(np.int64)), int(sizes.mean()))


def _part(picture: Image.Image, shape: Shape, rng: Random) -> Image.Image:
    width = min(picture.width, picture.height * shape.width / shape.height) * rng.uniform(0.6, 1)
    height = width * shape.height / shape.width
    left, top = rng.uniform(0, picture.width - width), rng.uniform(0, picture.height - height)
    box = (left, top, left + width, top + height)
    part = picture.resize((shape.width, shape.height), Image.Resampling.BICUBIC, box)
    noise = np.random.default_rng(rng.randrange(2**32)).normal(0, 5, (shape.height, shape.width, 1))
    return Image.fromarray((np.asarray(part) + noise).clip(0, 255).astype(np.uint8))


def _jpeg(image: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


# --- loaders: each an endless run of batches, ready for a model ---

Batches = Callable[[], Iterator[Tensor]]


def baseline(made: Made, batch_size: int, workers: int) -> Iterator[Tensor]:
    """As the official code reads images: everything, to the float tensor, in the workers."""
    transform = create_transform(
        SIDE, is_training=True, color_jitter=0.4, auto_augment=RAND_AUGMENT, interpolation="bicubic", re_prob=0.25,
        re_mode="pixel", re_count=1,
    )  # fmt: skip
    images = ImageFolder(str(made.tree), transform)
    sampler = RandomSampler(images, replacement=True, num_samples=10**9)
    for pixels, _ in DataLoader(
        images, batch_size, sampler=sampler, num_workers=workers, prefetch_factor=PREFETCH_FACTOR if workers else None
    ):
        yield pixels


def recipe_of(batch_size: int, fast: bool) -> Recipe:
    augmentation = Augmentation(
        crop_scale=SCALE, flip=True, rand_augment=RAND_AUGMENT, erase_probability=0.25, fast=fast
    )
    return Recipe(epochs=1, batch_size=batch_size, learning_rate=1, augmentation=augmentation)


def ours(images: TrainingLoader, recipe: Recipe) -> Iterator[Tensor]:
    """Batches as the training loop takes them: normalised and erased in its own process."""
    finish = BatchAugmentation(recipe.augmentation, CLASSES, 0.1, torch.device("cpu"))
    number = 0
    try:
        while True:
            pixels, labels = images.batch(number)
            yield finish(normalise(pixels, MEAN, STD), labels, 0, number, 0)[0]
            number += 1
    finally:
        images.close()


def loaders(made: Made, batch_size: int, workers: int) -> dict[str, Batches]:
    """A way to start each loader, by name."""

    def start(fast: bool, cache_bytes: int = 0) -> Batches:
        recipe = recipe_of(batch_size, fast)
        images = training_loader(made.split, recipe, 0, SIDE, MEAN, 1, workers, cache_bytes=cache_bytes)
        return partial(ours, images, recipe)

    return {
        "ImageFolder + timm": partial(baseline, made, batch_size, workers),
        "exact": start(fast=False),
        "fast": start(fast=True),
        "fast, kept": start(fast=True, cache_bytes=4 * 2**30),
    }


def rate(
    start: Batches, batches: int, batch_size: int, ahead: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Images a second of `batches` batches, after those that the workers make ahead are gone."""
    stream = start()
    for _ in range(ahead):
        next(stream)
    begun = clock()
    for _ in range(batches):
        next(stream)
    seconds = clock() - begun
    stream.close()  # type: ignore[attr-defined]
    return batches * batch_size / seconds


# --- where the time goes ---


def profile(made: Made, batch_size: int, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds an image of each stage, alone on one core: the best of some rounds."""
    return {
        "ImageFolder + timm": _baseline_stages(made, batch_size, rounds),
        "fast": _fast_stages(made, batch_size, rounds),
    }


def _baseline_stages(made: Made, batch_size: int, rounds: int) -> dict[str, float]:
    files = [Path(path) for path, _ in ImageFolder(str(made.tree)).samples][:50]
    crop = RandomResizedCropAndInterpolation(SIDE, SCALE, interpolation="bicubic")
    flip, operations = RandomHorizontalFlip(), rand_augment(RAND_AUGMENT, SIDE, MEAN)
    to_tensor, to_normal = ToTensor(), Normalize(MEAN, STD)
    erase = RandomErasing(0.25, mode="pixel", device="cpu")
    contents = [file.read_bytes() for file in files]
    decoded = [Image.open(io.BytesIO(content)).convert("RGB") for content in contents]
    cropped = [crop(image) for image in decoded]
    tensors = [to_normal(to_tensor(image)) for image in cropped]
    every = range(len(files))
    return {
        "read": _best(lambda i: files[i].read_bytes(), every, rounds),
        "decode": _best(lambda i: Image.open(io.BytesIO(contents[i])).convert("RGB"), every, rounds),
        "crop, resize": _best(lambda i: crop(decoded[i]), every, rounds),
        "RandAugment, flip": _best(lambda i: operations(flip(cropped[i])), every, rounds),
        "to tensor": _best(lambda i: to_normal(to_tensor(cropped[i])), every, rounds),
        "erase": _best(lambda i: erase(tensors[i].clone()), every, rounds),
        "collate, send": _sent_ms(torch.zeros(batch_size, 3, SIDE, SIDE), copies=True),
        "training process": 0.0,
    }


def _fast_stages(made: Made, batch_size: int, rounds: int) -> dict[str, float]:
    pictures, recipe = made.split.pictures, recipe_of(batch_size, fast=True)
    fast, decoder = FastAugmentation(recipe.augmentation, SIDE, MEAN), Decoder(made.split.pictures)
    every = range(min(50, len(pictures)))
    crops = [_crop(decoder, i) for i in every]
    small = [fast.resize(crop) for crop in crops]
    out = np.empty((3, SIDE, SIDE), dtype=np.uint8)
    batch = torch.zeros(batch_size, 3, SIDE, SIDE, dtype=torch.uint8)
    labels = torch.zeros(batch_size, dtype=torch.int64)
    finish = BatchAugmentation(recipe.augmentation, CLASSES, 0.1, torch.device("cpu"))

    def ready(step: int) -> object:
        return finish(normalise(batch, MEAN, STD), labels, step)

    read = _best(pictures.read, every, rounds)
    return {
        "read": read,
        "decode": _best(partial(_crop, decoder), every, rounds) - read,
        "crop, resize": _best(lambda i: fast.resize(crops[i]), every, rounds),
        "RandAugment, flip": _best(lambda i: fast.finish(small[i], fast.draw(derived_rng(i)), out), every, rounds),
        "to tensor": 0.0,
        "erase": 0.0,
        "collate, send": _sent_ms(batch, copies=False),
        "training process": _best(ready, range(8), rounds) / batch_size,
    }


def _crop(decoder: Decoder, index: int) -> Tensor:
    return decoder.crop(index, partial(draw_crop, derived_rng(index), scale=SCALE), SIDE)


def _best(work: Callable[[int], object], every: range, rounds: int) -> float:
    best = float("inf")
    for _ in range(rounds):
        random.seed(0), np.random.seed(0), torch.manual_seed(0)  # else the best round were the one that drew least
        begun = time.perf_counter()
        for index in every:
            work(index)
        best = min(best, (time.perf_counter() - begun) / len(every) * 1000)
    return best


class _Ready(Dataset[Tensor]):
    """Batches that cost nothing to make, so that sending them is all that takes time."""

    def __init__(self, batch: Tensor, copies: bool) -> None:
        self._batch, self._copies = batch, copies

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Tensor:
        return torch.stack(list(self._batch)) if self._copies else self._batch


def _sent_ms(batch: Tensor, copies: bool) -> float:
    stream = iter(DataLoader(_Ready(batch, copies), batch_size=None, num_workers=1, prefetch_factor=1))
    for _ in range(4):
        next(stream)
    begun, taken = time.perf_counter(), 0
    for sent in stream:
        taken += len(sent)
    return (time.perf_counter() - begun) / taken * 1000


# --- all of it ---


def measure(quick: bool = False, workers: int = 2) -> dict[str, Any]:
    """Rows, with the rates, ratios and profiles that they come from. `quick`: few images and rounds, to see it run."""
    if quick:
        found = measure_shapes([s._replace(images=40) for s in SHAPES], 1, batches=3, batch_size=16, workers=workers)
    else:
        found = measure_shapes(workers=workers)
    rows = []
    for of in found["shapes"]:
        for name in ("exact", "fast", "fast, kept"):
            limit = of["goal_ratio"] if name == "fast" else None
            what = f"{of['shape']}, {name}: images a second / ImageFolder with timm's transforms"
            rows.append(Row(what, of["ratio"][name], "x", limit, "at least", note=f"{found['workers']} workers each"))
        alone = of["processor_ms"]
        what = f"{of['shape']}, fast: the same by processor time, in one process"
        rows.append(Row(what, alone["ImageFolder + timm"] / alone["fast"], "x"))
    return measured(rows, **found)


def measure_shapes(
    shapes: Sequence[Shape] = SHAPES, rounds: int = 5, batches: int = 10, batch_size: int = 32, workers: int = 2
) -> dict[str, Any]:
    """Rates, ratios and profiles of each shape of images, as JSON takes them."""
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "workers": workers, "cores": len(os.sched_getaffinity(0)), "batch_size": batch_size, "rounds": rounds,
        "shapes": [],
    }  # fmt: skip
    for shape in shapes:
        with tempfile.TemporaryDirectory() as folder:
            made = make_images(Path(folder), shape)
            result["shapes"].append(_measure_shape(made, shape, rounds, batches, batch_size, workers))
    return result


def _measure_shape(
    made: Made, shape: Shape, rounds: int, batches: int, batch_size: int, workers: int
) -> dict[str, Any]:
    ahead, ways = 1 + PREFETCH_FACTOR * workers, loaders(made, batch_size, workers)
    passes = 3 * shape.images // batch_size  # so that all scales of an image are kept
    rate(ways["fast, kept"], passes, batch_size, ahead)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, start in ways.items():
            rates[name].append(rate(start, batches, batch_size, ahead))
    alone = _alone(made, rounds, batches, batch_size, passes)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    reference = rates["ImageFolder + timm"]
    ratios = {
        name: statistics.median(a / b for a, b in zip(found, reference, strict=True)) for name, found in rates.items()
    }
    boxes = [draw_crop(derived_rng(i), shape.width, shape.height, SCALE) for i in range(1000)]
    scales = [least_scale(box, SIDE) for box in boxes]
    return {
        "shape": str(shape), "jpeg_bytes": made.bytes_each, "images": shape.images, "goal_ratio": shape.goal,
        "images_per_second": medians, "ratio": ratios, "processor_ms": alone,
        "decoded_at_percent": {f"1/{scale}": scales.count(scale) / 10 for scale in sorted(set(scales))},
        "profile_ms": profile(made, batch_size, rounds),
    }  # fmt: skip


def _alone(made: Made, rounds: int, batches: int, batch_size: int, passes: int) -> dict[str, float]:
    """Processor time of an image in ms where one process does it all, which other programs disturb less than clocks."""
    ways = loaders(made, batch_size, 0)
    rate(ways["fast, kept"], passes, batch_size, 0)
    best = dict.fromkeys(ways, 0.0)
    for _ in range(rounds):
        for name, start in ways.items():
            best[name] = max(best[name], rate(start, batches, batch_size, 1, time.process_time))
    return {name: 1000 / found for name, found in best.items()}


def table(result: Mapping[str, Any]) -> str:
    """What was measured, for people."""
    lines = [f"{result['workers']} worker processes on {result['cores']} cores, batches of {result['batch_size']}"]
    for of in result["shapes"]:
        scales = ", ".join(f"{share:.0f} % at {scale}" for scale, share in of["decoded_at_percent"].items())
        lines += ["", f"{of['shape']}, {of['jpeg_bytes'] / 1000:.0f} kB a JPEG; the fast path decodes {scales}"]
        lines += [f"{'':24}{'images/s':>10}{'ratio':>8}{'processor ms':>14}{'ratio':>8}"]
        alone = of["processor_ms"]
        for name, value in of["images_per_second"].items():
            less = alone["ImageFolder + timm"] / alone[name]
            lines.append(f"{name:24}{value:10.0f}{of['ratio'][name]:8.2f}{alone[name]:14.2f}{less:8.2f}")
        lines += [
            f"goal of the fast path: {of['goal_ratio']}",
            "",
            f"{'ms an image':24}" + "".join(f"{n:>20}" for n in of["profile_ms"]),
        ]
        sides = list(of["profile_ms"].values())
        for stage in sides[0]:
            lines.append(f"{stage:24}" + "".join(f"{side[stage]:20.3f}" for side in sides))
        lines.append(f"{'all':24}" + "".join(f"{sum(side.values()):20.3f}" for side in sides))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few images and rounds: whether it works")
    parser.add_argument("--workers", type=int, default=2, help="of each loader (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="to write: all figures (JSON)")
    arguments = parser.parse_args(argv)
    result = measure(arguments.quick, arguments.workers)
    print(table(result))
    if arguments.out:
        write_json(arguments.out, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
