"""The three long steps on the tiny data: a space of 40 subnets, seconds of training, one thread."""

import importlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from tiny import TinyData

SPACE = {
    "name": "forty",
    "image_size": 28,
    "patch_size": 7,
    "in_channels": 1,
    "num_classes": 10,
    "head_dim": 8,
    "max_relative_position": 2,
    "supernet": {"embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0},
    "choices": {"embed_dim": [16, 32], "depth": [1, 2], "num_heads": [1, 2], "mlp_ratio": [1.0, 2.0]},
}
TRAINING = {
    "epochs": 6, "batch_size": 50, "learning_rate": 0.004, "warmup_epochs": 0.2, "label_smoothing": 0.1,
    "clip_grad": 1.0, "ema_decay": 0.9, "drop_path": 0.1, "augmentation": {"crop_padding": 1, "flip": True},
    "log_steps": 5, "score_steps": 20, "score_images": 50, "checkpoint_steps": 10,
}  # fmt: skip
SECTIONS: dict[str, dict[str, Any]] = {
    "train_supernet": TRAINING,
    "search_subnet": {
        "population": 6, "generations": 2, "parents": 3, "mutations": 2, "crossovers": 2, "images": 80,
        "batch_size": 40, "limits": {"max_params_m": 0.015},
    },
    "retrain_subnet": TRAINING | {"epochs": 3, "mode": "finetune", "scratch_reference": True},
}  # fmt: skip
SPLITS = {
    "train_supernet": ("train", "search"),
    "search_subnet": ("search",),
    "retrain_subnet": ("train", "train_full", "search"),
}
MADE_BEFORE = {"train_supernet": (), "search_subnet": ("supernet",), "retrain_subnet": ("supernet", "search")}


class Made(NamedTuple):
    supernet: Path
    search: Path
    retrain: Path


def config_of(step: str, seed: int = 0, **changes: Any) -> str:
    """`--config` of a step as JSON; `changes` to its section."""
    shared = {"name": "tiny", "seed": seed, "threads": 1, "dataset": "tiny", "space": SPACE}
    return json.dumps(shared | {step: SECTIONS[step] | changes})


def arguments(step: str, data: TinyData, before: Path, out: Path, config: str) -> dict[str, str]:
    """The step's command line as --name -> value; it finds the folders of earlier steps below `before`."""
    values: dict[str, Any] = {"config": config, "data": data.data, "card": data.card_path}
    values |= {f"{split.replace('_', '-')}-split": getattr(data, split) for split in SPLITS[step]}
    values |= {name: before / name for name in MADE_BEFORE[step]}
    return {f"--{name}": str(value) for name, value in values.items()} | {
        "--out": str(out),
        "--record": str(out.parent / f"{out.name}.record.json"),
    }


def argv(given: dict[str, str]) -> list[str]:
    return [part for pair in given.items() for part in pair]


def run(step: str, given: dict[str, str]) -> int:
    code: int = importlib.import_module(f"components.{step}.step").main(argv(given))
    return code


def run_all(data: TinyData, folder: Path, seed: int = 0) -> Made:
    """Train, search and retrain into `folder`."""
    made = Made(*(folder / name for name in Made._fields))
    for step, out in zip(SECTIONS, made, strict=True):
        assert run(step, arguments(step, data, folder, out, config_of(step, seed))) == 0
    return made


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
