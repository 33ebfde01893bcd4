"""Do memory and open files grow while a step works? Watch 3,000 training steps and 500 scored candidates from outside.

    python -m docs.flatness --data data/fashion-mnist --out docs/flatness

The steps are the pipeline's own commands, on real images, with a worker process that augments and with MLflow. Every
second their whole process tree is read from /proc: resident memory and open file descriptors. The slope is of a
straight line through the samples between 30 % and 90 % of the time: before it imports and caches fill, after it the
step writes its result.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from autoformer.files import replacing, write_json
from components.prepare_data import fashion_mnist
from components.prepare_data.step import SPLITS, prepare, write_prepared
from runtime.common.config import ROOT, PrepareData

TRAINING_STEPS, CANDIDATES = 3000, 500
SPACE = {
    "name": "flatness", "image_size": 28, "patch_size": 7, "in_channels": 1, "num_classes": 10, "head_dim": 8,
    "max_relative_position": 2, "supernet": {"embed_dim": 64, "depth": 6, "num_heads": 4, "mlp_ratio": 4.0},
    "choices": {"embed_dim": [16, 32, 64], "depth": [4, 5, 6], "num_heads": [1, 2, 4], "mlp_ratio": [1, 2, 4]},
}  # fmt: skip
WINDOW = (0.3, 0.9)
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Sample(NamedTuple):
    seconds: float
    memory_mb: float  # of all processes of the step; pages that forked workers share count in each
    files: int  # open in all of them
    processes: int


class Watched(NamedTuple):
    """One command, and how it went."""

    name: str
    work: int  # training steps, or candidates
    unit: str
    samples: list[Sample]

    def slope(self, field: str) -> float:
        """Growth in the window, for each 1,000 of the unit, as if the whole time had gone into the work."""
        total = self.samples[-1].seconds
        steady = [sample for sample in self.samples if WINDOW[0] <= sample.seconds / total <= WINDOW[1]]
        x = np.array([sample.seconds for sample in steady]) / total * self.work
        return float(1000 * np.polyfit(x, [getattr(sample, field) for sample in steady], 1)[0])


def watch(name: str, work: int, unit: str, command: Sequence[str], environment: dict[str, str]) -> Watched:
    """Run a command to its end, and sample its process tree every second."""
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    start, samples = time.monotonic(), []
    while process.poll() is None:
        time.sleep(1.0)
        sample = sample_tree(process.pid, time.monotonic() - start)
        if sample.memory_mb:  # none of a process that has ended and is not waited for yet
            samples.append(sample)
    if process.returncode:
        raise SystemExit(f"{name} ended with code {process.returncode}")
    return Watched(name, work, unit, samples)


def sample_tree(root: int, seconds: float) -> Sample:
    """Memory and open files of a process and all below it, from /proc."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended since
            continue
    tree = {root}
    while below := {child for child, parent in parents.items() if parent in tree} - tree:
        tree |= below
    pages = files = alive = 0
    for process in tree:
        try:
            pages += int(Path(f"/proc/{process}/statm").read_text().split()[1])
            files += len(list(Path(f"/proc/{process}/fd").iterdir()))
            alive += 1
        except OSError:
            continue
    return Sample(seconds, pages * PAGE_BYTES / 2**20, files, alive)


def config() -> dict[str, Any]:
    """The two steps that are watched; the smaller the model, the more steps in the time."""
    augmentation = {"crop_scale": [0.5, 1.0], "flip": True, "rand_augment": "rand-m5-n1", "erase_probability": 0.25}
    return {
        "name": "flatness", "seed": 0, "threads": 1, "dataset": "fashion-mnist", "space": SPACE,
        "train_supernet": {
            "epochs": TRAINING_STEPS / (54_000 // 32), "batch_size": 32, "learning_rate": 0.001, "ema_decay": 0.99,
            "augmentation": augmentation | {"mixup": 0.2},
            "log_steps": 50, "score_steps": 250, "score_images": 500, "checkpoint_steps": 250,
        },
        "search_subnet": {
            "population": 50, "generations": 9, "parents": 10, "mutations": 25, "crossovers": 25, "images": 2000,
            "random_baseline": False,
        },
    }  # fmt: skip


def run(data: Path) -> list[Watched]:
    """Both steps, in a folder of their own."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        paths = {split: place / f"{split}.parquet" for split in SPLITS}
        card = place / "card.json"
        prepared = prepare(data, fashion_mnist.index(data), PrepareData(search_images=6000), 0)
        write_prepared(prepared, card, paths)
        environment = os.environ | {
            "AUTOFORMER_WORK": str(place / "work"),
            "AUTOFORMER_WORKERS": "1",
            "MLFLOW_TRACKING_URI": f"sqlite:///{place / 'mlflow.db'}",
            "OMP_NUM_THREADS": "1",
        }
        given = ["--config", json.dumps(config()), "--data", str(data), "--card", str(card)]
        train = [*given, "--train-split", str(paths["train"]), "--search-split", str(paths["search"])]
        train += ["--out", str(place / "supernet"), "--record", str(place / "train.json")]
        search = [*given, "--search-split", str(paths["search"]), "--supernet", str(place / "supernet")]
        search += ["--out", str(place / "search"), "--record", str(place / "search.json")]
        python = [sys.executable, "-m"]
        return [
            watch(
                "train_supernet", TRAINING_STEPS, "steps", [*python, "components.train_supernet", *train], environment
            ),
            watch(
                "search_subnet", CANDIDATES, "candidates", [*python, "components.search_subnet", *search], environment
            ),
        ]


def write(out: Path, watched: Sequence[Watched]) -> None:
    """Slopes and a picture, `<out>.json` and `<out>.png`; all samples in `<out>.csv`."""
    with replacing(out.with_suffix(".csv")) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["step", *Sample._fields])
        for one in watched:
            table.writerows(
                [one.name, f"{s.seconds:.1f}", f"{s.memory_mb:.1f}", s.files, s.processes] for s in one.samples
            )
    write_json(out.with_suffix(".json"), summary(watched))
    draw(out.with_suffix(".png"), watched)


def summary(watched: Sequence[Watched]) -> dict[str, Any]:
    return {
        one.name: {
            one.unit: one.work,
            "seconds": round(one.samples[-1].seconds),
            "memory_mb": round(max(sample.memory_mb for sample in one.samples)),
            "memory_mb_growth_per_1000": round(one.slope("memory_mb"), 2),
            "files": max(sample.files for sample in one.samples),
            "files_growth_per_1000": round(one.slope("files"), 3),
        }
        for one in watched
    }


def draw(path: Path, watched: Sequence[Watched]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(watched), figsize=(10, 5), sharex="col", squeeze=False)
    for column, one in enumerate(watched):
        x = [sample.seconds for sample in one.samples]
        for row, (field, label) in enumerate((("memory_mb", "resident memory, MB"), ("files", "open files"))):
            axis = axes[row][column]
            axis.plot(x, [getattr(sample, field) for sample in one.samples], color="#2a6f97")
            axis.set_ylim(bottom=0)
            axis.set_title(f"{one.name}: {one.slope(field):+.2f} for 1,000 {one.unit}", fontsize=10)
            axis.set_ylabel(label)
            axis.grid(alpha=0.3)
        axes[-1][column].set_xlabel("seconds")
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m docs.flatness", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "fashion-mnist")
    parser.add_argument("--out", type=Path, required=True, help="path without ending")
    arguments = parser.parse_args(argv)
    watched = run(arguments.data.resolve())
    write(arguments.out, watched)
    print(json.dumps(summary(watched), indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
