"""Train a supernet of the demo's space on Fashion-MNIST with the pipeline's steps, and score its subnets."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from autoformer.checkpoint import load_supernet
from autoformer.images.card import read_card
from autoformer.images.split_images import DecodedSplit, load_images
from autoformer.racing import ScoringResult, ScoringTask
from autoformer.scoring import SubnetScorer
from components.prepare_data.step import SPLITS
from runtime.common.config import ROOT

DATA = ROOT / "data" / "fashion-mnist"


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
