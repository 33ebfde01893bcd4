"""Train a supernet of the demo's space on Fashion-MNIST with the pipeline's steps, and score its subnets."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from autoformer.checkpoint import load_supernet
from autoformer.evaluation import Scores, predict_logits, score
from autoformer.images.card import read_card
from autoformer.images.split_images import DecodedSplit, load_images, raw_pixels
from autoformer.images.statistics import pixel_statistics
from autoformer.images.training_loader import training_loader
from autoformer.racing import ScoringResult, ScoringTask
from autoformer.recipe import Recipe
from autoformer.sampling import SubnetSampler
from autoformer.scoring import SubnetScorer
from autoformer.training import Trainer
from components.prepare_data import fashion_mnist
from components.prepare_data.splitting import split
from components.prepare_data.step import SPLITS
from runtime.common.config import ROOT, Config
from runtime.common.sections import PrepareData

DATA = ROOT / "data" / "fashion-mnist"


class DemoImages(NamedTuple):
    """The decoded splits `train`, `search` and `test`, and mean and deviation of each channel in `train`."""

    splits: dict[str, DecodedSplit]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def trainer(self, model: Any, sampler: SubnetSampler, recipe: Recipe, seed: int) -> Trainer:
        """A trainer of the train split. `model`: a supernet, a subnet, or one with a subnet's methods."""
        loader = training_loader(self.splits["train"], recipe, seed, fashion_mnist.IMAGE_SIZE, self.mean)
        return Trainer(model, sampler, loader, 10, self.mean, self.std, recipe, seed)

    def score(self, model: nn.Module, name: str) -> Scores:
        """The scores on a split of a model in evaluation mode."""
        images = self.splits[name]
        logits = predict_logits(model, images.pixels, self.mean, self.std, 500)
        return score(logits, torch.from_numpy(images.labels))


def demo_images(config: Config, data: Path) -> DemoImages:
    """The images of Fashion-MNIST in the folder `data`, split as `prepare_data` does."""
    rows = split(fashion_mnist.index(data), config.section(PrepareData), config.seed).rows
    splits = {
        name: DecodedSplit(
            raw_pixels(rows[name], data, 1, fashion_mnist.IMAGE_SIZE), rows[name].labels.astype("int64"), []
        )
        for name in ("train", "search", "test")
    }
    return DemoImages(splits, *pixel_statistics(splits["train"].pixels))


def prepare(folder: Path) -> None:
    """Write the splits and their card."""
    _step("prepare_data", folder, SPLITS, ["--record", str(folder / "prepare.json")])


def train(folder: Path, name: str, **settings: object) -> Path:
    """Train with the demo's recipe and changed `settings`; return the supernet's folder."""
    arguments = ["--out", str(folder / name), "--record", str(folder / f"{name}.json")]
    for key, value in settings.items():
        arguments += ["--set", f"train_supernet.{key}={value}"]
    _step("train_supernet", folder, ("train", "search"), arguments)
    return folder / name


def _step(step: str, folder: Path, splits: Iterable[str], arguments: Iterable[str]) -> None:
    command = [sys.executable, "-m", f"components.{step}", "--config", "demo", "--data", str(DATA)]
    command += ["--card", str(folder / "card.json"), *arguments]
    for name in splits:
        command += [f"--{name.replace('_', '-')}-split", str(folder / f"{name}.parquet")]
    environment = {"AUTOFORMER_TRACKING": "off", "AUTOFORMER_WORK": str(folder / "work"), "OMP_WAIT_POLICY": "PASSIVE"}
    subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=True)


def search_images(folder: Path, limit: int | None) -> DecodedSplit:
    """The first `limit` images of the search split, or all."""
    return load_images(folder / "search.parquet", DATA, read_card(folder / "card.json"), limit=limit)


def make_scorer(supernet: Path, images: DecodedSplit) -> Callable[[Iterable[ScoringTask]], Iterator[ScoringResult]]:
    """A scorer with averaged weights."""
    return SubnetScorer(load_supernet(supernet, "ema").model, images, read_card(supernet.parent / "card.json"), 500)
