"""Use your own images: pack them, and propose a space, epochs and batch size that suit them.

    python -m commands.own_images --source photos --name flowers

writes the pack to `data/flowers`, which DVC versions, with a search space and a preset of that name. `make run DATA=…`
packs into `datasets/` instead. Proposals depend on the images and on whether there is a GPU, never on a clock.
"""

import argparse
import contextlib
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from autoformer.complexity import count_params
from autoformer.errors import AutoFormerError, quantity
from autoformer.files import replacing, write_json, write_text
from autoformer.images.pixels import image_size, resized_side
from autoformer.named import CONFIGS, load_space
from commands.inside import pointing_inside
from components.prepare_data import packed
from components.prepare_data.pack import pack, slug
from components.prepare_data.pack_card import CARD, PackCard, read_pack, unreadable_of
from components.prepare_data.sources import discover
from runtime.common.config import ROOT, Config, load_config
from runtime.common.console import Parser, Progress, print_line, run_command
from runtime.common.overrides import add_option, parse
from runtime.common.sections import PrepareData, SearchSubnet
from runtime.common.spelling import as_spelt

PRESET = "photos"
SPACES = ("photos-64", "photos-32", "autoformer-tiny")  # the proposed spaces
DATASETS = ROOT / "datasets"
_LISTED = 5  # printed unreadable files and classes
_SAMPLED = 200  # images of which the size is read
_LARGE = 160  # minimum shorter side in pixels for a space of 224 pixels, on a GPU
_MANY = 20_000  # minimum number of images for a space of 224 pixels


class Proposal(NamedTuple):
    """A run of a user's images: the pack, the preset, and overrides that suit the images."""

    data: Path
    preset: str
    overrides: list[str]


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m commands.own_images", description="Put your images under data/.")
    parser.add_argument("--source", type=Path, required=True, help="class folders, train/val/test folders, or a CSV")
    parser.add_argument("--name", required=True, help="of the data set, its search space and its preset")
    parser.add_argument("--preset", help="to start from (default: photos, adapted to the images)")
    add_option(parser)

    def work(arguments: argparse.Namespace) -> None:
        print_line(add_dataset(arguments.source.expanduser(), arguments.name, arguments.preset, arguments.overrides))

    return run_command("own_images", parser, work, argv)


def propose_run(source: Path, preset: str | None, overrides: Sequence[str], packs: Path) -> Proposal:
    """Pack the images at `source`, unless it is a pack; return what to run.

    Args:
        source: a folder of class folders, of train, val and test folders, a CSV, or a pack.
        preset: None for `photos`, adapted to the images. Any other keeps its values but for the data set's own keys:
            dataset, number of classes, and the model's name.
        overrides: the user's; they win over proposals.
        packs: the folder to put a new pack into.

    Raises:
        AutoFormerError: the images or the settings are unusable.
    """
    source = as_spelt(source)
    given = {override.key: override.value for override in map(parse, overrides)}
    if preset is None:
        overrides = [*_warmup(given), *overrides]
    config = load_config(preset or PRESET, overrides)
    settings: list[str] = []
    if preset is None and "space" not in given:
        is_pack = packed.is_mine(source)
        with pointing_inside(source):
            space = _space_of(read_pack(source)) if is_pack else propose_space(source, config.device)
        settings.append(f"space={space}")
        config = load_config(PRESET, [*settings, *overrides])
    data = source if packed.is_mine(source) else _pack(source, packs, config)
    card = read_pack(data)
    settings.append(f"dataset={card.name}")
    if config.section(PrepareData).search_images and "prepare_data.search_images" not in given:
        settings.append("prepare_data.search_images=null")  # such presets assume classes of equal size
    if "space.num_classes" not in given:  # last, since the user's overrides may name another space
        overrides = [*overrides, f"space.num_classes={len(card.classes)}"]
    if preset is None or config.name == PRESET:
        settings.append(f"name={card.name}")
    if preset is None or config.name == PRESET or config.dataset != card.name:  # one name in the registry, one data set
        settings.append(f"register_model.model_name={card.name}")
    if preset is None:
        settings += propose_recipe(card, load_config(PRESET, [*settings, *overrides]))
    return Proposal(data, preset or PRESET, [*settings, *overrides])


def _pack(source: Path, packs: Path, config: Config) -> Path:
    side, channels = resized_side(config.space.image_size), config.space.in_channels
    section = config.section(PrepareData)
    with _packing_progress() as update, pointing_inside(source):
        return pack(source, packs, side, channels, section.max_unreadable_percent, update, section.pixel_rule)


@contextlib.contextmanager
def _packing_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for each phase of the packing."""
    bars: dict[str, Progress] = {}
    with contextlib.ExitStack() as open_bar:

        def update(phase: str, done: int, total: int) -> None:
            if phase not in bars:
                open_bar.close()
                bars[phase] = open_bar.enter_context(Progress(phase, total, "images"))
            bars[phase].update(done)

        yield update


def propose_space(source: Path, device: str = "auto") -> str:
    """The search space that suits the images and the machine; `device`: as configured."""
    images = discover(source).images
    sides = sorted(_shorter_sides([image.path for image in images[:: max(1, len(images) // _SAMPLED)]]))
    median = sides[len(sides) // 2] if sides else 64
    if median >= _LARGE and len(images) >= _MANY and device != "cpu" and _has_gpu():
        return "autoformer-tiny"
    return "photos-32" if median < 48 else "photos-64"


def _space_of(card: PackCard) -> str:
    """The first of `SPACES` with the image size of the pack."""
    return next((name for name in SPACES if resized_side(load_space(name).image_size) == card.shorter_side), SPACES[0])


def _warmup(given: Mapping[str, Any]) -> list[str]:
    """Warm-up in proportion to the user's epochs, which may be fewer than the preset's warm-up."""
    settings = []
    for section in ("train_supernet", "retrain_subnet"):
        epochs = given.get(f"{section}.epochs")
        if isinstance(epochs, int | float) and 0 < epochs < 1e9:  # larger integers may overflow a float
            settings.append(f"{section}.warmup_epochs={epochs / 20:g}")
    return settings


def _shorter_sides(paths: Sequence[Path]) -> list[int]:
    sides = []
    for path in paths:
        try:
            sides.append(min(image_size(path)))
        except AutoFormerError:  # packing reports the file and the reason
            continue
    return sides


def _has_gpu() -> bool:
    """Whether there is an NVIDIA GPU; does not import torch, which takes seconds."""
    return any(Path("/dev").glob("nvidia[0-9]*")) and os.environ.get("CUDA_VISIBLE_DEVICES", "0") not in ("", "-1")


def propose_recipe(card: PackCard, config: Config) -> list[str]:
    """Epochs, batch size and limits: few images are repeated more often, in smaller batches.

    100 epochs at 900 training images, inversely proportional to their square root: 20 at 22,500. Never below 10 nor
    above 300; a third of them for retraining. At least four optimiser steps an epoch.
    """
    images = max(1, training_images(card, config))
    epochs = min(300, max(10, round(3000 / math.sqrt(images))))
    batch_size = 64 if images < 5000 else 128
    while batch_size > 2 and batch_size * 4 > images:
        batch_size //= 2
    retrain = max(3, round(epochs / 3))
    settings = [
        f"train_supernet.epochs={epochs}",
        f"train_supernet.warmup_epochs={epochs / 20:g}",
        f"train_supernet.batch_size={batch_size}",
        f"retrain_subnet.epochs={retrain}",
        f"retrain_subnet.warmup_epochs={retrain / 20:g}",
        f"retrain_subnet.batch_size={batch_size}",
    ]
    if config.space.image_size >= 224:
        settings += ["train_supernet.init_gain=null", "retrain_subnet.init_gain=null"]
    limits, space = config.section(SearchSubnet).limits, config.space
    if limits.max_params_m is not None and limits == load_config(PRESET).section(SearchSubnet).limits:
        smallest, largest = (count_params(space, spec) / 1e6 for spec in (space.smallest, space.largest))
        if not smallest < limits.max_params_m < largest:
            settings.append(f"search_subnet.limits.max_params_m={(smallest + largest) / 2:.3g}")
    return settings


def training_images(card: PackCard, config: Config) -> int:
    """Approximate number of training images."""
    section, splits = config.section(PrepareData), set(card.splits)
    if not splits & {"val", "test"}:
        return round(sum(card.splits.values()) * (1 - (section.search_percent + section.test_percent) / 100))
    train = card.splits.get("train", 0)
    return train if {"val", "test"} <= splits else round(train * (1 - section.search_percent / 100))


def relative_path(path: Path) -> Path:
    """The path relative to the working directory, if it is inside."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def describe_pack(data: Path) -> str:
    """The content of a pack in a few lines for people."""
    card = read_pack(data)
    width, height = card.median_size
    counts = sorted(card.counts.items(), key=lambda item: (item[1], item[0]))
    lines = [
        f"{relative_path(data)}: {quantity(sum(card.counts.values()), 'image')}, "
        f"{quantity(len(card.classes), 'class')}, {card.layout}",
        f"  median image size {width} x {height} pixels; packed with {card.shorter_side} on the shorter side",
        "  classes: " + ", ".join(f"{name} {count:,}" for name, count in counts[:_LISTED])
        + (f", … {counts[-1][0]} {counts[-1][1]:,}" if len(counts) > _LISTED else ""),
    ]  # fmt: skip
    if set(card.splits) - {""}:
        lines.append("  splits: " + ", ".join(f"{name} {count:,}" for name, count in card.splits.items()))
    if card.ignored:
        lines.append(
            f"  {quantity(card.ignored, 'file is no image by its name', 'files are no images by their names')}"
        )
    lines += [f"  {note}" for note in card.notes]
    if card.unreadable:
        lines.append(
            f"  {card.unreadable:,} unreadable, left out; all are named in {relative_path(data / 'unreadable.csv')}:"
        )
        lines += [f"    {row['source']}: {row['reason']}" for row in unreadable_of(data)[:_LISTED]]
    return "\n".join(lines)


def add_dataset(source: Path, name: str, preset: str | None, overrides: Sequence[str]) -> str:
    """Write `data/<name>`, `configs/spaces/<name>.yaml` and `configs/presets/<name>.yaml`; return a summary.

    Existing configurations are kept. Raises `AutoFormerError` like `propose_run`, and if the name is taken.
    """
    if name != slug(name):
        raise AutoFormerError(f"NAME={name}: a name has lower case letters, digits and hyphens, such as {slug(name)}")
    files = [CONFIGS / kind / f"{name}.yaml" for kind in ("spaces", "presets")]
    data = ROOT / "data" / name
    for file in files:
        if file.exists() and not packed.is_mine(data):
            raise AutoFormerError(f"{file}: a configuration of this name is there already; give another NAME")
    if data.exists() and not packed.is_mine(data):
        raise AutoFormerError(f"{data}: a folder of this name is there already; give another NAME")
    proposal = propose_run(source, preset, overrides, DATASETS)
    _copy(proposal.data, data, name)
    config = load_config(proposal.preset, proposal.overrides)
    space = config.space.model_dump(mode="json") | {"name": name}
    whole = config.model_dump(mode="json") | {"name": name, "dataset": name, "space": name}
    whole["register_model"] |= {"model_name": name}
    source_line = f"# Made of the preset '{proposal.preset}' for the images of data/{name}. Edit it as you like.\n"
    for file, content in zip(files, (space, whole), strict=True):
        if not file.exists():
            write_text(file, source_line + yaml.safe_dump(content, sort_keys=False))
    return (
        f"{describe_pack(data)}\n  configs/spaces/{name}.yaml and configs/presets/{name}.yaml are yours to edit\n"
        f"  next: make run PRESET={name}, or make repro PRESET={name}"
    )


def _copy(pack: Path, data: Path, name: str) -> None:
    """Copy a pack to `data` under another name, whole or not at all."""
    card = read_pack(pack)
    if packed.is_mine(data):
        if read_pack(data).hash != card.hash:
            raise AutoFormerError(f"{data}: holds other images already; give another NAME, or remove the folder first")
        return
    with replacing(data) as temporary:
        shutil.copytree(pack, temporary)
        write_json(temporary / CARD, card.model_dump(mode="json") | {"name": name})


if __name__ == "__main__":
    raise SystemExit(main())
