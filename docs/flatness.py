"""Memory and open files of 3,000 training steps and 500 scored candidates: `python -m docs.flatness --out PATH`.

The steps are the pipeline's own commands, on real images, with a worker process that augments and with MLflow. Every
second psutil reads the resident memory and the open file descriptors of their process tree. The slope is of a straight
line through the samples between 30 % and 90 % of the time: earlier the step imports and fills caches, later it writes
its result.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from autoformer.files import replacing, write_json
from components.prepare_data.step import SPLITS
from runtime.common.config import ROOT

TRAINING_STEPS, CANDIDATES = 3000, 500
WINDOW = (0.3, 0.9)
SPACE = {
    "name": "flatness", "image_size": 28, "patch_size": 7, "in_channels": 1, "num_classes": 10, "head_dim": 8,
    "max_relative_position": 2, "supernet": {"embed_dim": 64, "depth": 6, "num_heads": 4, "mlp_ratio": 4.0},
    "choices": {"embed_dim": [16, 32, 64], "depth": [4, 5, 6], "num_heads": [1, 2, 4], "mlp_ratio": [1, 2, 4]},
}  # fmt: skip
CONFIG = {
    "name": "flatness", "seed": 0, "threads": 1, "dataset": "fashion-mnist", "space": SPACE,
    "prepare_data": {"search_images": 6000},
    "train_supernet": {
        "epochs": TRAINING_STEPS / (54_000 // 32), "batch_size": 32, "learning_rate": 0.001, "ema_decay": 0.99,
        "augmentation": {
            "crop_scale": [0.5, 1.0], "flip": True, "rand_augment": "rand-m5-n1", "erase_probability": 0.25,
            "mixup": 0.2,
        },
        "log_steps": 50, "score_steps": 250, "score_images": 500, "checkpoint_steps": 250,
    },
    "search_subnet": {
        "population": 50, "generations": 9, "parents": 10, "mutations": 25, "crossovers": 25, "images": 2000,
        "random_baseline": False,
    },
}  # fmt: skip


class Sample(NamedTuple):
    """Of all processes of a step; memory that forked workers share counts in each."""

    seconds: float
    memory_mb: float
    files: int


class Watched(NamedTuple):
    """One step and its samples. `unit`: training steps, or candidates."""

    name: str
    work: int
    unit: str
    samples: list[Sample]

    def growth(self, field: str) -> float:
        """Growth in the window, per 1,000 units, as if all the time had gone into the work."""
        total = self.samples[-1].seconds
        steady = [sample for sample in self.samples if WINDOW[0] <= sample.seconds / total <= WINDOW[1]]
        done = np.array([sample.seconds for sample in steady]) / total * self.work
        return float(1000 * np.polyfit(done, [getattr(sample, field) for sample in steady], 1)[0])


def watch(command: Sequence[str], environment: Mapping[str, str]) -> list[Sample]:
    """Run a command to its end, and sample its process tree every second."""
    process = psutil.Popen(command, cwd=ROOT, env=environment)
    start, samples = time.monotonic(), []
    while process.poll() is None:
        time.sleep(1.0)
        memory = files = 0
        with contextlib.suppress(psutil.Error):  # a process that has just ended
            for each in [process, *process.children(recursive=True)]:
                memory, files = memory + each.memory_info().rss, files + each.num_fds()
            samples.append(Sample(time.monotonic() - start, memory / 2**20, files))
    if process.returncode:
        raise SystemExit(f"{command[2]} ended with code {process.returncode}")
    return samples


def run(data: Path) -> list[Watched]:
    """Both steps, in a temporary folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = os.environ | {"AUTOFORMER_WORKERS": "1", "OMP_NUM_THREADS": "1"}
        environment |= {"AUTOFORMER_WORK": str(folder / "work"), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}

        def command(step: str, splits: Sequence[str], **arguments: Path) -> list[str]:
            parts = [sys.executable, "-m", f"components.{step}", "--config", json.dumps(CONFIG), "--data", str(data)]
            paths = {f"{split.replace('_', '-')}-split": folder / f"{split}.parquet" for split in splits}
            paths |= {"card": folder / "card.json", "record": folder / f"{step}.json", **arguments}
            return [*parts, *(part for key, path in paths.items() for part in (f"--{key}", str(path)))]

        subprocess.run(command("prepare_data", list(SPLITS)), cwd=ROOT, env=environment, check=True)
        supernet, search = folder / "supernet", folder / "search"
        train = command("train_supernet", ["train", "search"], out=supernet)
        score = command("search_subnet", ["search"], supernet=supernet, out=search)
        return [
            Watched("train_supernet", TRAINING_STEPS, "steps", watch(train, environment)),
            Watched("search_subnet", CANDIDATES, "candidates", watch(score, environment)),
        ]


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
            axis.set_title(f"{one.name}: {one.growth(field):+.2f} for 1,000 {one.unit}", fontsize=10)
            axis.set_ylabel(label)
            axis.grid(alpha=0.3)
        axes[-1][column].set_xlabel("seconds")
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m docs.flatness", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "fashion-mnist")
    parser.add_argument("--out", type=Path, required=True, help="of the figures and the picture: a path without ending")
    arguments = parser.parse_args(argv)
    watched = run(arguments.data.resolve())
    figures = {
        one.name: {
            one.unit: one.work,
            "seconds": round(one.samples[-1].seconds),
            "memory_mb": round(max(sample.memory_mb for sample in one.samples)),
            "memory_mb_growth_per_1000": round(one.growth("memory_mb"), 2),
            "files": max(sample.files for sample in one.samples),
            "files_growth_per_1000": round(one.growth("files"), 3),
        }
        for one in watched
    }
    write_json(arguments.out.with_suffix(".json"), figures)
    draw(arguments.out.with_suffix(".png"), watched)
    print(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
