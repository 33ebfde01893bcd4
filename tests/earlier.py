"""A finished search of a supernet with random weights, for tests of what builds on it."""

from pathlib import Path

import pytest
from official_layout import write_checkpoint
from run_steps import SPACE, arguments, config_of, run
from tiny import TinyData

from autoformer.space import SearchSpace
from runtime.common.config import load_config

FORTY = SearchSpace.model_validate(SPACE)
STEP = "search_subnet"


def untrack(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let steps work in `folder`, and log nothing."""
    patch.setenv("AUTOFORMER_WORK", str(folder / "work"))
    patch.setenv("AUTOFORMER_TRACKING", "off")


def adopt_random_weights(folder: Path, tiny_data: TinyData) -> None:
    """Make folder/supernet, of random weights."""
    checkpoint = write_checkpoint(folder / "supernet.pth", FORTY, deviation=0.3)
    text = config_of("train_supernet", adopt={"checkpoint": str(checkpoint)})
    config = load_config(text, (), ()).step_json("train_supernet")
    with pytest.MonkeyPatch.context() as patch:  # fixtures of a module come before those of a test
        untrack(patch, folder)
        assert run("train_supernet", arguments("train_supernet", tiny_data, folder, folder / "supernet", config)) == 0


@pytest.fixture(scope="module")
def made(tiny_data: TinyData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a supernet of random weights, and its search."""
    folder = tmp_path_factory.mktemp("earlier")
    adopt_random_weights(folder, tiny_data)
    with pytest.MonkeyPatch.context() as patch:
        untrack(patch, folder)
        assert run(STEP, arguments(STEP, tiny_data, folder, folder / "search", config_of(STEP, objective="loss"))) == 0
    return folder


@pytest.fixture(autouse=True)
def untracked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    untrack(monkeypatch, tmp_path)
