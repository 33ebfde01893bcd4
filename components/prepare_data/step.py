"""prepare_data: index the delivered images, split them, and describe them.

Every layout of `readers` is treated alike. Each image is indexed. Train, search and test have no image content in
common (`autoformer.images.splits`). `train_full` has all images that may be trained on, for retraining.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from autoformer.errors import quantity
from autoformer.files import write_json
from autoformer.images.card import DatasetCard
from autoformer.images.split_files import Split, write_split
from components.prepare_data.delivered import IMAGENET_STATISTICS, Delivered
from components.prepare_data.readers import read_delivered
from components.prepare_data.splitting import describe, split, statistics
from runtime import tracking
from runtime.common.code import step_code
from runtime.common.config import Config
from runtime.common.console import check_apart, print_line
from runtime.common.locks import hold_lock
from runtime.common.sections import PrepareData
from runtime.common.workspace import Record
from runtime.steps.command import run_step, step_parser
from runtime.steps.inputs import DATA
from runtime.storage.data import errors_name, hash_data, open_data

STEP = "prepare_data"
SPLITS = {
    "train": "training",
    "search": "scoring candidates",
    "test": "the final evaluation",
    "train_full": "retraining on all that may be trained on: train and search",
}


class Prepared(NamedTuple):
    card: DatasetCard
    splits: dict[str, Split]
    notes: tuple[str, ...]  # sentences on images left out


def main(argv: Sequence[str] | None = None) -> int:
    return run_step(STEP, parser(), run, argv)


def parser() -> argparse.ArgumentParser:
    step = step_parser(STEP, "Index the delivered images, split them into train, search and test, describe them.")
    step.add_argument("--data", required=True, help=DATA)
    step.add_argument("--card", type=Path, required=True, help="to write: the data set's card (JSON)")
    for name, images in SPLITS.items():
        argument = f"--{name.replace('_', '-')}-split"
        step.add_argument(argument, type=Path, required=True, help=f"to write: index of the images for {images}")
    step.add_argument("--record", type=Path, required=True, help="to write: clock and paths of this run (JSON)")
    return step


def prepare(data: Path, delivered: Delivered, section: PrepareData, seed: int) -> Prepared:
    """Split and describe the images of the folder `data`."""
    delivered = delivered._replace(pixels=delivered.pixels or section.pixel_rule)
    splits = split(delivered, section, seed)
    card = describe(delivered, splits, statistics(delivered, splits.rows["train"], data))
    return Prepared(card, splits.rows, (*delivered.notes, *(splits.counted or splits.notes)))


def write_prepared(prepared: Prepared, card: Path, splits: Mapping[str, Path]) -> None:
    """Write each split to its path in `splits`, then the card that names them."""
    for name, path in splits.items():
        write_split(path, prepared.splits[name])
    write_json(card, prepared.card.model_dump(mode="json"))


def run(arguments: argparse.Namespace, config: Config) -> None:
    """Check the delivered files, prepare, write, and print a summary."""
    section = config.section(PrepareData)
    record = Record(arguments.record, STEP)  # starts its clock
    written = [arguments.card, arguments.record, *(getattr(arguments, f"{name}_split") for name in SPLITS)]
    check_apart(written, arguments.data)
    data = open_data(arguments.data).folder
    with errors_name(arguments.data, data):
        prepared = prepare(data, read_delivered(data, config.dataset), section, config.seed)
    with hold_lock(arguments.card, "output"), record:
        provenance = {"code": step_code(STEP), "inputs": {"data": hash_data(arguments.data)}}
        with tracking.step_run(STEP, config, record.values, provenance) as tracked:
            paths = {name: getattr(arguments, f"{name}_split") for name in SPLITS}
            write_prepared(prepared, arguments.card, paths)
            tracked.metrics({f"{name}_images": count for name, count in prepared.card.counts.items()})
            tracked.artifact(arguments.card)
    print_line("\n".join(summary(prepared)))


def summary(prepared: Prepared) -> list[str]:
    """The splits and their statistics as a few lines of text."""
    card = prepared.card
    shape = f"{card.channels} x {card.image_size} x {card.image_size} values"
    if card.encoding == "image":
        side = "any size" if card.image_size is None else f"{card.image_size} pixels on the shorter side"
        shape = f"{side}, {quantity(card.channels, 'channel')}"
    lines = [f"{card.name}: {quantity(len(card.classes), 'class')}, images of {shape}"]
    for name, rows in prepared.splits.items():
        by_class = np.bincount(rows.labels, minlength=len(card.classes))
        lines.append(
            f"  {name:<11}{quantity(len(rows.labels), 'image'):>16}, {by_class.min():,} to {by_class.max():,} of a "
            "class"
        )
    means, deviations = (", ".join(f"{value:.4f}" for value in values) for values in (card.mean, card.std))
    kind = "normalised as ImageNet's" if (card.mean, card.std) == IMAGENET_STATISTICS else "train"
    lines.append(f"  {kind} pixels: mean {means}, standard deviation {deviations}")
    return lines + [f"  {note}" for note in prepared.notes]
