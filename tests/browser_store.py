"""A real MLflow store with two finished pipeline runs on tiny data, made by the steps themselves, and its server."""

import contextlib
import importlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import run_steps
from tiny import TinyData
from tracking_fixtures import VARIABLES

from runtime import tracking
from runtime.common.config import load_config

STEPS = ("train_supernet", "search_subnet", "retrain_subnet", "evaluate_subnet", "register_model")
SHORT = {"epochs": 1.0, "warmup_epochs": 0.1, "score_steps": 10}
LONGER = {"epochs": 3.0}
SECTIONS: dict[str, dict[str, Any]] = {
    "prepare_data": {"search_images": 100},
    "train_supernet": run_steps.TRAINING | SHORT | LONGER,
    "search_subnet": run_steps.SECTIONS["search_subnet"] | {"population": 8},
    "retrain_subnet": run_steps.SECTIONS["retrain_subnet"] | SHORT,
    "evaluate_subnet": {"batch_size": 100, "mistakes": 12},
    "register_model": {"model_name": "tiny", "min_top1_percent": 99.9},
}


class Store(NamedTuple):
    """Where the runs are kept. `first` and `second` differ in seed and in the limit on parameters."""

    folder: Path
    uri: str
    first: str  # run id of a pipeline run
    second: str


def make_store(folder: Path, empty_store: Path, data: TinyData) -> Store:
    """Two pipeline runs: as the runner makes them, but for KFP, which is slow, and for prepare_data."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(empty_store, folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with tracked_in(uri, folder / "work"):
        first = pipeline_run(data, folder / "runs" / "first", seed=0, params_m=(0.007, 0.015))
        second = pipeline_run(data, folder / "runs" / "second", seed=1, params_m=(0.002, 0.006))
    return Store(folder, uri, first, second)


@contextlib.contextmanager
def tracked_in(uri: str, work: Path) -> Iterator[None]:
    before = dict(os.environ)
    for name in (*VARIABLES, "AUTOFORMER_TRACKING"):
        os.environ.pop(name, None)
    commit = "c0" * 20  # two runs of one commit, also where somebody commits between them
    os.environ |= {"MLFLOW_TRACKING_URI": uri, "AUTOFORMER_WORK": str(work), "GIT_COMMIT": commit}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


def pipeline_run(data: TinyData, folder: Path, seed: int, params_m: tuple[float, float]) -> str:
    """Run every step but prepare_data in this process, into `folder`; returns the id of the pipeline run.

    `params_m`: least and most parameters, in millions. Runs whose ranges lie apart choose different subnets.
    """
    limits = {"min_params_m": params_m[0], "max_params_m": params_m[1]}
    sections = SECTIONS | {"search_subnet": SECTIONS["search_subnet"] | {"limits": limits}}
    shared = {"name": "tiny", "seed": seed, "threads": 1, "dataset": "tiny", "space": run_steps.SPACE}
    config = json.dumps(shared | sections)
    run_id = tracking.open_pipeline_run(load_config(config), {"data_hash": "d" * 64, "runner": "test"})
    os.environ["AUTOFORMER_PARENT_RUN_ID"] = run_id
    for step in STEPS:
        main = importlib.import_module(f"components.{step}.step").main
        assert main(run_steps.argv(arguments(step, data, folder, config))) == 0
    tracking.close_pipeline_run(run_id, "FINISHED")
    return run_id


def arguments(step: str, data: TinyData, folder: Path, config: str) -> dict[str, str]:
    """The step's command line. Folders are those of a KFP run, so that records lie where `make compare` looks."""
    place = folder / step.replace("_", "-")
    values: dict[str, Any] = {"config": config, "card": data.card_path, "record": place / "record"}
    splits = {**run_steps.SPLITS, "evaluate_subnet": ("test",)}
    if step in splits:
        values |= {"data": data.data} | {
            f"{split.replace('_', '-')}-split": getattr(data, split) for split in splits[step]
        }
    made = {"supernet": "train_supernet", "search": "search_subnet", "retrain": "retrain_subnet"}
    made |= {"evaluation": "evaluate_subnet"}
    before = {
        "search_subnet": ("supernet",),
        "retrain_subnet": ("supernet", "search"),
        "evaluate_subnet": ("supernet", "search", "retrain"),
        "register_model": ("supernet", "search", "retrain", "evaluation"),
    }
    values |= {name: folder / made[name].replace("_", "-") / name for name in before.get(step, ())}
    if step == "register_model":
        values |= {"model-card": place / "model_card"}
    out = next((name for name, by in made.items() if by == step), "registration")
    return {f"--{name}": str(value) for name, value in (values | {"out": place / out}).items()}
