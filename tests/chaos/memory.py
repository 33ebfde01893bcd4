"""Memory and open files in long runs: a part of `make chaos`."""

import json
from pathlib import Path

import numpy as np
import pytest
from faulted_steps import Row
from processes import ended, record_usage, start
from run_steps import SPACE, arguments, config_of, run
from tiny import TinyData
from tracking_fixtures import empty_store, store

__all__ = ["empty_store", "store"]
STEPS, CANDIDATES, LONG_SECONDS = 10_000, 2_000, 1500.0
BATCH = 10
SMALL_BATCHES = {"batch_size": BATCH, "score_steps": 500, "log_steps": 50, "checkpoint_steps": 500}
LONG_SEARCH = {
    "population": 200, "generations": 9, "parents": 20, "mutations": 100, "crossovers": 100, "limits": {},
    "random_baseline": False, "images": 20, "batch_size": 20, "racing": None,
}  # fmt: skip
# Thousands of subnets
LARGER = SPACE | {
    "supernet": {"embed_dim": 64, "depth": 4, "num_heads": 4, "mlp_ratio": 4.0},
    "choices": {"embed_dim": [16, 32, 64], "depth": [3, 4], "num_heads": [1, 2, 4], "mlp_ratio": [1, 2, 4]},
}
# Growth for 1,000 steps or candidates that counts as none. The table of scores takes 2.6 MB.
MEMORY_MB, FILES = 5.0, 0.5


def stays_flat(step: str, given: dict[str, str], total: int, folder: Path, row: Row) -> None:
    """Without the first 30 %, in which caches fill."""
    usage = folder / "usage"
    assert ended(start(step, given, folder / "log", (record_usage, str(usage), total // 100)), LONG_SECONDS) == 0
    done, memory, files = np.loadtxt(usage)[30:].T
    memory_mb, opened = (1000 * np.polyfit(done, each, 1)[0] for each in (memory, files))
    row(step, f"{total:,} in a row; for 1,000: {memory_mb:+.2f} MB, {opened:+.2f} open files", 1)
    assert done[-1] >= total and memory_mb < MEMORY_MB and opened < FILES


def given_of(step: str, data: TinyData, root: Path, **changes: object) -> dict[str, str]:
    config = json.loads(config_of(step, **changes)) | {"space": LARGER}
    return arguments(step, data, root, root / step.removesuffix("_subnet").removeprefix("train_"), json.dumps(config))


@pytest.mark.usefixtures("store")
def test_a_long_training_stays_flat(tiny_data: TinyData, tmp_path: Path, row: Row) -> None:
    epochs = STEPS * BATCH / tiny_data.card.counts["train"]
    given = given_of("train_supernet", tiny_data, tmp_path, epochs=epochs, **SMALL_BATCHES)
    stays_flat("train_supernet", given, STEPS, tmp_path, row)


@pytest.mark.usefixtures("store")
def test_a_long_search_stays_flat(tiny_data: TinyData, tmp_path: Path, row: Row) -> None:
    assert run("train_supernet", given_of("train_supernet", tiny_data, tmp_path, epochs=1)) == 0
    given = given_of("search_subnet", tiny_data, tmp_path, **LONG_SEARCH)
    stays_flat("search_subnet", given, CANDIDATES, tmp_path, row)
