"""prepare_data: index the delivered images, split them into train, search and test, and describe them.

What is delivered is Fashion-MNIST, or a pack of a user's own images. The splits are disjoint by content, not just by
number: see `autoformer.splits`. (Fashion-MNIST holds no two images with the same bytes, so there the rule removes
nothing.)
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from autoformer.dataset import DatasetCard, Split, hash_split, pixel_statistics, write_split
from autoformer.errors import AutoFormerError
from autoformer.files import hash_file, hash_path, write_json
from autoformer.randomness import derived_rng
from autoformer.splits import Shares, hold_out
from components import tracking
from components.cli import existing, run_step, step_parser
from components.config import Config, PrepareData
from components.locks import alone
from components.prepare_data import fashion_mnist, packed
from components.workspace import Record, code_version

STEP = "prepare_data"


class Prepared(NamedTuple):
    card: DatasetCard
    splits: dict[str, Split]
    notes: tuple[str, ...]  # what was left out, a sentence each


def main(argv: Sequence[str] | None = None) -> int:
    return run_step(STEP, parser(), run, argv)


def parser() -> argparse.ArgumentParser:
    """The step's command line."""
    step = step_parser(STEP, "Index the delivered images, split them into train, search and test, describe them.")
    step.add_argument("--data", type=Path, required=True, help="folder of the delivered archives")
    step.add_argument("--card", type=Path, required=True, help="to write: the data set's card (JSON)")
    for split, images in (("train", "training"), ("search", "scoring candidates"), ("test", "the final evaluation")):
        step.add_argument(
            f"--{split}-split", type=Path, required=True, help=f"to write: index of the images for {images}"
        )
    step.add_argument("--record", type=Path, required=True, help="to write: clock and paths of this run (JSON)")
    return step


def prepare(data: Path, search_images: int, seed: int) -> Prepared:
    """Index and split the IDX files in `data`, which need not be the published ones."""
    train = fashion_mnist.read_pair(data, "train")
    test = fashion_mnist.read_pair(data, "t10k")
    held_out = hold_out(
        train.rows.labels,
        train.rows.checksums,
        test.rows.checksums,
        num_classes=len(fashion_mnist.CLASSES),
        search_images=search_images,
        rng=derived_rng(STEP, seed),
    )
    splits = {
        "train": train.rows.take(held_out.train),
        "search": train.rows.take(held_out.search),
        "test": test.rows,
    }
    mean, std = pixel_statistics(train.pixels[held_out.train])
    card = DatasetCard(
        name=fashion_mnist.TITLE,
        classes=fashion_mnist.CLASSES,
        image_size=fashion_mnist.IMAGE_SIZE,
        channels=1,
        encoding="raw",
        mean=mean,
        std=std,
        counts={name: len(split.labels) for name, split in splits.items()},
        licence=fashion_mnist.LICENCE,
        source=fashion_mnist.SOURCE,
        archives={name: hash_file(data / name) for name in fashion_mnist.ARCHIVES},
        split_hashes={name: hash_split(split.checksums, split.labels) for name, split in splits.items()},
    )
    note = (
        f"same pixels twice: {held_out.left_out} training images left out (also in test), "
        f"{held_out.repeated} kept out of search (repeated in train)"
    )
    return Prepared(card, splits, (note,))


def prepare_pack(data: Path, section: PrepareData, seed: int) -> Prepared:
    """Split and describe a pack of a user's images."""
    if section.search_images is not None:
        raise AutoFormerError("prepare_data.search_images: for your own images set prepare_data.search_percent instead")
    delivered = packed.read_delivered(data)
    shares = Shares(section.search_percent, section.test_percent)
    splits, notes = packed.split_pack(delivered, shares, seed)
    card = packed.describe(delivered, splits, notes, data)
    return Prepared(card, splits, card.notes)


def write_prepared(prepared: Prepared, card: Path, splits: Mapping[str, Path]) -> None:
    """Write each split to its path in `splits`, then the card that names them."""
    for name, path in splits.items():
        write_split(path, prepared.splits[name])
    write_json(card, prepared.card.model_dump(mode="json"))


def run(arguments: argparse.Namespace, config: Config) -> None:
    """Check the delivered files, prepare, write, and print a summary."""
    section = config.prepare_data
    assert section is not None  # load_config has checked it
    existing(arguments.data, "`make data`")
    own = packed.is_pack(arguments.data)
    if not own:
        _check_fashion_mnist(arguments.data, config, section)
    record = Record(arguments.record, STEP)  # its clock begins here
    prepared = (
        prepare_pack(arguments.data, section, config.seed)
        if own
        else prepare(arguments.data, section.search_images or 0, config.seed)
    )
    with alone(arguments.card, "output"), record:
        provenance = {"code": code_version(), "inputs": {"data": hash_path(arguments.data)}}
        with tracking.step_run(STEP, config, record.values, provenance) as tracked:
            splits = {"train": arguments.train_split, "search": arguments.search_split, "test": arguments.test_split}
            write_prepared(prepared, arguments.card, splits)
            tracked.metrics({f"{name}_images": count for name, count in prepared.card.counts.items()})
            tracked.artifact(arguments.card)
    print("\n".join(summary(prepared)), flush=True)


def _check_fashion_mnist(data: Path, config: Config, section: PrepareData) -> None:
    if config.dataset != fashion_mnist.NAME:
        raise AutoFormerError(
            f"dataset = {config.dataset}: {data} is no pack of images; `make data DATA=… NAME={config.dataset}` makes "
            f"one of yours, and '{fashion_mnist.NAME}' is the data set that comes with the project"
        )
    if section.search_images is None:
        raise AutoFormerError(f"prepare_data.search_images: '{fashion_mnist.NAME}' needs it, a multiple of its classes")
    fashion_mnist.check_files(data)


def summary(prepared: Prepared) -> list[str]:
    """What was made, in a few lines for people."""
    card = prepared.card
    shape = f"{card.channels} x {card.image_size} x {card.image_size} values"
    if card.encoding == "image":
        shape = f"{card.image_size} pixels on the shorter side, {card.channels} channels"
    lines = [f"{card.name}: {len(card.classes)} classes, images of {shape}"]
    for name, split in prepared.splits.items():
        by_class = np.bincount(split.labels, minlength=len(card.classes))
        lines.append(f"  {name:<7}{len(split.labels):>7} images, {by_class.min()} to {by_class.max()} of a class")
    means, deviations = (", ".join(f"{value:.4f}" for value in values) for values in (card.mean, card.std))
    lines.append(f"  train pixels: mean {means}, standard deviation {deviations}")
    return lines + [f"  {note}" for note in prepared.notes]
