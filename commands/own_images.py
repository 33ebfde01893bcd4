"""Take a user's own images into a run: pack them, and propose a space, epochs and batch size that suit them.

    python -m commands.own_images --source photos --name flowers

puts the pack under `data/`, which DVC versions, with a search space and a preset of that name. `make run DATA=…` packs
into `datasets/`, outside of it. What is proposed is a function of the images, and of whether there is a GPU; never of
a clock.
"""

import argparse
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from PIL import Image

from autoformer.complexity import count_params
from autoformer.errors import AutoFormerError
from autoformer.files import replacing, write_json, write_text
from autoformer.images.pixels import resized_side
from autoformer.named import CONFIGS, load_space
from autoformer.space import SearchSpace
from components.prepare_data import packed
from components.prepare_data.pack import CARD, PackCard, pack, read_pack, slug, unreadable_of
from components.prepare_data.sources import discover
from runtime.common.config import ROOT, Config, PrepareData, SearchSubnet, load_config
from runtime.common.console import Parser, Progress, run_command
from runtime.common.overrides import add_option, parse

PRESET = "photos"
SPACES = ("photos-64", "photos-32", "autoformer-tiny")  # that are proposed
DATASETS = ROOT / "datasets"
SHOWN = 5  # unreadable files and classes that are named on the screen
_SAMPLED = 200  # images whose size is looked at
_LARGE = 160  # pixels of a shorter side from which 224 are worth their cost, on a GPU
_MANY = 20_000  # images from which a space of 224 pixels has enough to learn from


class Adopted(NamedTuple):
    """What a run is given for a user's images."""

    data: Path
    preset: str
    overrides: list[str]


def adopt(source: Path, preset: str | None, overrides: Sequence[str], place: Path = DATASETS) -> Adopted:
    """Pack the images at `source`, or take the pack that it is; return what to run.

    Args:
        source: a folder of class folders, of train, val and test folders, a CSV, or a pack.
        preset: null for `photos`, adapted to the images; any other is taken as it is but for the data set's own
            keys, dataset, number of classes and the model's name.
        overrides: the user's; they win over what is proposed.
        place: where packs lie.

    Raises:
        AutoFormerError: one line, where the images or the settings are not what they should be.
    """
    if preset is None:
        overrides = [*_warmup(overrides), *overrides]
    first = load_config(preset or PRESET, overrides)
    settings: list[str] = []
    if preset is None and not _is_set("space", overrides):
        settings.append(
            f"space={_space_of(read_pack(source)) if packed.is_mine(source) else propose_space(source, first.device)}"
        )
        first = load_config(PRESET, [*settings, *overrides])
    if packed.is_mine(source):
        data = source
    else:
        most_unreadable = first.section(PrepareData).max_unreadable_percent
        side, channels = resized_side(first.space.image_size), first.space.in_channels
        with _Watch() as watch:
            data = pack(source, place, side, channels, most_unreadable, watch)
    card = read_pack(data)
    settings.append(f"dataset={card.name}")
    if first.section(PrepareData).search_images and not _is_set("prepare_data.search_images", overrides):
        settings.append("prepare_data.search_images=null")  # of a preset for images that have as many in each class
    if not _is_set("space.num_classes", overrides):  # after the user's, which may name another space
        overrides = [*overrides, f"space.num_classes={len(card.classes)}"]
    if preset is None or first.name == PRESET:
        settings += [f"name={card.name}", f"register_model.model_name={card.name}"]
    if preset is None:
        settings += propose_recipe(card, load_config(PRESET, [*settings, *overrides]))
    return Adopted(data, preset or PRESET, [*settings, *overrides])


def propose_space(source: Path, device: str = "auto") -> str:
    """The search space that suits the images and the machine; `device`: as configured."""
    images = discover(source).images
    sides = sorted(_shorter_sides([image.path for image in images[:: max(1, len(images) // _SAMPLED)]]))
    side = sides[len(sides) // 2] if sides else 64
    if side < 48:
        return "photos-32"
    return (
        "autoformer-tiny" if device != "cpu" and _has_gpu() and side >= _LARGE and len(images) >= _MANY else "photos-64"
    )


def _space_of(card: PackCard) -> str:
    """The search space that images are packed for, where it is one that is proposed."""
    fitting = [name for name in SPACES if resized_side(load_space(name).image_size) == card.shorter_side]
    return fitting[0] if fitting else SPACES[0]


def _warmup(overrides: Sequence[str]) -> list[str]:
    """Of the user's epochs, the share that is proposed: else the preset's might be longer than all of them."""
    given, settings = {override.key: override.value for override in map(parse, overrides)}, []
    for section in ("train_supernet", "retrain_subnet"):
        epochs = given.get(f"{section}.epochs")
        if isinstance(epochs, int | float) and 0 < epochs < 1e9:  # a larger one may fit no float
            settings.append(f"{section}.warmup_epochs={epochs / 20:g}")
    return settings


def _shorter_sides(paths: Sequence[Path]) -> list[int]:
    sides = []
    for path in paths:
        try:
            with Image.open(path) as image:
                sides.append(min(image.size))
        except Exception:  # Pillow raises many kinds; packing names the file and the reason
            continue
    return sides


def _has_gpu() -> bool:
    """Without the seconds that importing torch takes."""
    return any(Path("/dev").glob("nvidia[0-9]*")) and os.environ.get("CUDA_VISIBLE_DEVICES", "0") not in ("", "-1")


def propose_recipe(card: PackCard, config: Config) -> list[str]:
    """Epochs, batch size and limits for so many images: few images are seen more often, with smaller steps.

    100 epochs at 900 training images, in inverse proportion to their root: 20 at 22,500, never below 10 nor above
    300; a third of them to retrain. At least four optimiser steps to an epoch.
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
    limits = config.section(SearchSubnet).limits
    most = limits.max_params_m
    if (
        most is not None
        and not _reach(config.space, most)
        and limits == load_config(PRESET).section(SearchSubnet).limits
    ):
        middle = (
            count_params(config.space, config.space.smallest) + count_params(config.space, config.space.largest)
        ) / 2
        settings.append(f"search_subnet.limits.max_params_m={middle / 1e6:.3g}")
    return settings


def _reach(space: SearchSpace, params_m: float) -> bool:
    return count_params(space, space.smallest) < params_m * 1e6 < count_params(space, space.largest)


def training_images(card: PackCard, config: Config) -> int:
    """About how many images will train."""
    section = config.section(PrepareData)
    total = sum(card.splits.values())
    if not set(card.splits) & {"val", "test"}:
        return round(total * (1 - (section.search_percent + section.test_percent) / 100))
    train = card.splits.get("train", 0)
    both = {"val", "test"} <= set(card.splits)
    return train if both else round(train * (1 - section.search_percent / 100))


def _is_set(key: str, overrides: Sequence[str]) -> bool:
    return any(parse(override).key == key for override in overrides)


class _Watch:
    """A progress bar for each thing that packing does."""

    def __init__(self) -> None:
        self._what = ""
        self._bar: Progress | None = None

    def __enter__(self) -> "_Watch":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.__exit__()

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self._what:
            self.__exit__()
            self._what, self._bar = what, Progress(what, total, "images")
        assert self._bar is not None
        self._bar.update(done)


def relative_path(path: Path) -> Path:
    """A path as a person in the present folder would write it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def describe_pack(data: Path) -> str:
    """What a pack holds, in a few lines for people."""
    card = read_pack(data)
    width, height = card.median_size
    counts = sorted(card.counts.items(), key=lambda item: (item[1], item[0]))
    lines = [
        f"{relative_path(data)}: {sum(card.counts.values()):,} images, {len(card.classes)} classes, {card.layout}",
        f"  a middling image has {width} x {height} pixels; packed with {card.shorter_side} on the shorter side",
        "  classes: " + ", ".join(f"{name} {count:,}" for name, count in counts[:SHOWN])
        + (f", … {counts[-1][0]} {counts[-1][1]:,}" if len(counts) > SHOWN else ""),
    ]  # fmt: skip
    if set(card.splits) - {""}:
        lines.append("  splits: " + ", ".join(f"{name} {count:,}" for name, count in card.splits.items()))
    if card.ignored:
        lines.append(f"  {card.ignored:,} files are no images by their names")
    if card.unreadable:
        lines.append(
            f"  {card.unreadable:,} unreadable, left out; all are named in {relative_path(data / 'unreadable.csv')}:"
        )
        lines += [f"    {row['source']}: {row['reason']}" for row in unreadable_of(data)[:SHOWN]]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m commands.own_images", description="Put your images under data/.")
    parser.add_argument("--source", type=Path, required=True, help="class folders, train/val/test folders, or a CSV")
    parser.add_argument("--name", required=True, help="of the data set, its search space and its preset")
    parser.add_argument("--preset", help="to start from (default: photos, adapted to the images)")
    add_option(parser)

    def work(arguments: argparse.Namespace) -> None:
        print(add_dataset(arguments.source.expanduser(), arguments.name, arguments.preset, arguments.overrides))

    return run_command("own_images", parser, work, argv)


def add_dataset(source: Path, name: str, preset: str | None, overrides: Sequence[str]) -> str:
    """Make `data/<name>`, `configs/spaces/<name>.yaml` and `configs/presets/<name>.yaml`; return what to say of it.

    Configurations that are there already are kept. Raises `AutoFormerError` as `adopt` does, and where the name is
    taken.
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
    adopted = adopt(source, preset, overrides)
    _copy(adopted.data, data, name)
    config = load_config(adopted.preset, adopted.overrides)
    space = config.space.model_dump(mode="json") | {"name": name}
    whole = config.model_dump(mode="json") | {"name": name, "dataset": name, "space": name}
    whole["register_model"] |= {"model_name": name}
    source_line = f"# Made of the preset '{adopted.preset}' for the images of data/{name}. Edit it as you like.\n"
    for file, content in zip(files, (space, whole), strict=True):
        if not file.exists():
            write_text(file, source_line + yaml.safe_dump(content, sort_keys=False))
    return (
        f"{describe_pack(data)}\n  configs/spaces/{name}.yaml and configs/presets/{name}.yaml are yours to edit\n"
        f"  next: make run PRESET={name}, or make repro PRESET={name}"
    )


def _copy(pack: Path, data: Path, name: str) -> None:
    """Put a pack into `data`, under another name; whole or not at all."""
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
