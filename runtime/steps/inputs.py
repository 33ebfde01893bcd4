"""The inputs of steps: arguments, cheap checks without heavy imports, and the images of a split."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from autoformer.cards import SupernetCard, read_supernet_card
from autoformer.errors import AutoFormerError, quantity
from autoformer.images.archives import EncodedImages, EncodedSplit
from autoformer.images.card import DatasetCard, read_card
from autoformer.images.pixels import resized_side
from autoformer.images.split_images import DecodedSplit, load_images, read_rows
from autoformer.recipe import Recipe
from autoformer.space import SearchSpace
from runtime.common.config import Config
from runtime.common.console import existing
from runtime.common.workspace import known_hashes
from runtime.steps.command import step_parser
from runtime.storage.archives import start_staging
from runtime.storage.data import Data, open_data

DATA = "folder with the delivered archives, or s3://bucket/folder"
MADE_BY = {
    "supernet": "train_supernet",
    "search": "search_subnet",
    "retrain": "retrain_subnet",
    "evaluation": "evaluate_subnet",
}


def input_parser(step: str, description: str, splits: Sequence[str], *made: str) -> argparse.ArgumentParser:
    """The parser of a step that reads images.

    It has `--data`, `--card`, an argument for each split and each folder of an earlier step, `--out` and `--record`.
    """
    parser = step_parser(step, description)
    parser.add_argument("--data", required=True, help=DATA)
    parser.add_argument("--card", type=Path, required=True, help="the data set's card, made by prepare_data")
    for split in splits:
        help_text = f"manifest of the {split} split, made by prepare_data"
        parser.add_argument(f"--{split.replace('_', '-')}-split", type=Path, required=True, help=help_text)
    add_folder_arguments(parser, *made)
    parser.add_argument("--out", type=Path, required=True, help="where the result appears, whole, at the end")
    parser.add_argument("--record", type=Path, required=True, help="JSON file for clocks, rates and run ids")
    return parser


def add_folder_arguments(parser: argparse.ArgumentParser, *made: str) -> None:
    """Add an argument for each folder of an earlier step: `--supernet`, `--search`, `--retrain`, `--evaluation`."""
    for name in made:
        parser.add_argument(f"--{name}", type=Path, required=True, help=f"folder made by {MADE_BY[name]}")
    parser.set_defaults(made=made)  # `run_step` downloads their large files from the store


def read_data(arguments: argparse.Namespace, config: Config, *splits: str) -> tuple[DatasetCard, list[DecodedSplit]]:
    """The card and the images of each split. Raises `AutoFormerError` if they do not match the search space."""
    card, data = _read_card(arguments, config), open_data(arguments.data)
    return card, [_decoded(_manifest(arguments, split), data, card, config, split) for split in splits]


def _read_card(arguments: argparse.Namespace, config: Config) -> DatasetCard:
    card = read_card(existing(arguments.card, "prepare_data"))
    check_space(card, config.space)
    return card


def _manifest(arguments: argparse.Namespace, split: str) -> Path:
    return existing(getattr(arguments, f"{split}_split"), "prepare_data")


def _decoded(path: Path, data: Data, card: DatasetCard, config: Config, split: str) -> DecodedSplit:
    """The pixels of a split, in memory."""
    size = config.space.image_size
    return load_images(path, data.folder, card, None, size, split, known_hashes(), data.remote)


def _encoded(path: Path, data: Data, card: DatasetCard, split: str) -> EncodedSplit:
    """The files of a split, which the loader decodes."""
    rows = read_rows(path, data.folder, card, split, known_hashes(), data.remote)
    pictures = EncodedImages(data.folder, rows, card.channels, card.upright, card.files, data.remote, card.pixels)
    return EncodedSplit(pictures, rows.labels.astype("int64"))


def check_space(card: DatasetCard, space: SearchSpace) -> None:
    """Raise `AutoFormerError` unless the models of `space` can take the images of `card`."""
    if card.encoding == "image" and (card.image_size or math.inf) < resized_side(space.image_size):
        raise AutoFormerError(
            f"space: image_size = {space.image_size} in '{space.name}', but '{card.name}' is packed for smaller "
            f"images, {card.image_size} pixels on the shorter side; pack the images again for this space"
        )
    for key, actual, expected in (
        ("image_size", space.image_size if card.encoding == "image" else card.image_size, space.image_size),
        ("in_channels", card.channels, space.in_channels),
        ("num_classes", len(card.classes), space.num_classes),
    ):
        if actual != expected:
            raise AutoFormerError(
                f"space: {key} = {expected} in '{space.name}', but data set '{card.name}' has {actual}; "
                "choose another space"
            )


def read_train_images(
    arguments: argparse.Namespace, config: Config, card: DatasetCard, recipe: Recipe, step: str, split: str = "train"
) -> DecodedSplit | EncodedSplit:
    """The training images: pixels in memory, or encoded files if the recipe augments images one by one.

    `split`: train or train_full. Raises `AutoFormerError` if there are fewer images than one optimiser step takes.
    """
    path, data = _manifest(arguments, split), open_data(arguments.data)
    images: DecodedSplit | EncodedSplit
    if card.encoding == "image" and recipe.augmentation.by_image:
        images = _encoded(path, data, card, split)
    else:
        images = _decoded(path, data, card, config, split)
    check_batch(recipe, len(images.labels), step)
    if data.remote and isinstance(images, EncodedSplit):  # every epoch reads each image
        start_staging(data.remote, images.pictures.archives)
    return images


def read_images_to_evaluate(
    arguments: argparse.Namespace, config: Config, split: str, decoded_mb: int
) -> tuple[DatasetCard, DecodedSplit | EncodedSplit]:
    """The card and the images of a split: pixels in memory if they fit into `decoded_mb`, else encoded files."""
    card = _read_card(arguments, config)
    path, data = _manifest(arguments, split), open_data(arguments.data)
    needed = card.counts.get(split, 0) * card.channels * config.space.image_size**2
    if card.encoding == "image" and needed > decoded_mb * 10**6:
        return card, _encoded(path, data, card, split)
    return card, _decoded(path, data, card, config, split)


def check_batch(recipe: Recipe, images: int, step: str) -> None:
    """Raise `AutoFormerError` if there are fewer training images than one optimiser step takes."""
    if recipe.batch_size > images:
        raise AutoFormerError(
            f"{step}.batch_size = {recipe.batch_size}: an optimiser step takes {quantity(recipe.batch_size, 'image')}, "
            f"but the train split has {images}; choose a smaller one"
        )


def read_supernet(folder: Path, config: Config, weights: Literal["ema", "raw"]) -> SupernetCard:
    """The card of a supernet. Raises `AutoFormerError` if it has another space, or lacks those weights."""
    card = read_supernet_card(existing(folder, "train_supernet"))
    if card.space != config.space:
        raise AutoFormerError(
            f"{folder}: a supernet of space '{card.space.name}' as it was then, not of the configured "
            f"'{config.space.name}'; run train_supernet again"
        )
    if weights == "ema" and not (folder / "ema.safetensors").exists():
        raise AutoFormerError(
            f"{folder}: no averaged weights, the supernet was trained without ema_decay; "
            "set search_subnet.weights to raw"
        )
    return card
