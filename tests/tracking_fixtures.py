"""A real MLflow store for each test, and a small trained-looking subnet on disk."""

import shutil
import sqlite3
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from autoformer.named import load_space
from autoformer.space import SearchSpace
from runtime.tracking.store import initialise

VARIABLES = ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "AUTOFORMER_PARENT_RUN_ID", "RANK")
CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
MEAN, STD = (0.286,), (0.353,)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sqlite file with MLflow's tables, which take seconds to make. Copy it; nothing is written into it."""
    return make_empty_store(tmp_path_factory.getbasetemp() / "mlflow-store")


@cache  # a fixture that two test files import is made for each of them
def make_empty_store(folder: Path) -> Path:
    folder.mkdir()
    initialise(f"sqlite:///{folder / 'made.db'}")
    with sqlite3.connect(folder / "made.db") as made, sqlite3.connect(folder / "empty.db") as copy:
        made.backup(copy)
    return folder / "empty.db"


def use_store(uri: str, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process and its children track in `uri`."""
    for name in (*VARIABLES, "AUTOFORMER_TRACKING"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("AUTOFORMER_WORK", str(work))


@pytest.fixture
def store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a fresh sqlite store, which the environment names."""
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    use_store(uri, tmp_path / "work", monkeypatch)
    yield uri


@pytest.fixture(scope="session")
def subnet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest subnet of the space fashion-mnist, with random weights."""
    return save_random_subnet(tmp_path_factory.mktemp("subnet") / "model", seed=0)


def save_random_subnet(folder: Path, seed: int, space: SearchSpace | None = None) -> Path:
    """The smallest subnet of the space, fashion-mnist by default."""
    import torch

    from autoformer.cards import Preprocessing, SubnetCard
    from autoformer.checkpoint import save_subnet
    from autoformer.supernet import Supernet

    torch.manual_seed(seed)
    space = space or load_space("fashion-mnist")
    model = Supernet(space).extract(space.smallest).eval()
    for parameter in model.parameters():  # the first weights are so small that all answers look alike
        torch.nn.init.normal_(parameter, std=0.2)
    preprocessing = Preprocessing(mean=MEAN, std=STD, classes=CLASSES)
    save_subnet(
        folder, model, SubnetCard(space=space, preprocessing=preprocessing, provenance={}, subnet=space.smallest)
    )
    return folder
