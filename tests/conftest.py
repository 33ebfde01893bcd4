"""Data that several tests read. Nothing may be written into it."""

from pathlib import Path

import pytest
from tiny import TinyData, make_tiny_data
from tracking_fixtures import make_empty_store
from whole_run import WholeRun, check_out, whole_run

from components.config import ROOT
from components.prepare_data.fetch import fetch


@pytest.fixture(scope="session")
def fashion_mnist() -> Path:
    """The folder of the real archives, `data/fashion-mnist`; fetched where they are missing."""
    data = ROOT / "data" / "fashion-mnist"
    fetch(data)
    return data


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    """A small data set that every step but prepare_data accepts: 500 train, 100 search and 100 test images.

    prepare_data itself checks the archives against the published checksums, which these are not; so the card
    and the splits come from `prepare` and `write_prepared`, what the step calls after that check. The images
    are synthetic, so that no test that needs only some images needs a download.
    """
    return make_tiny_data(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def kfp_run(tmp_path_factory: pytest.TempPathFactory, fashion_mnist: Path) -> WholeRun:
    """The pipeline, run through `kfp.local` on real images: killed on the way, and given the same command again."""
    store = make_empty_store(tmp_path_factory.getbasetemp() / "mlflow-store")
    return whole_run(check_out(tmp_path_factory.mktemp("kfp"), fashion_mnist, store))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests stay on one worker, for its fixtures' sake; so do the two files that share the whole run."""
    for item in items:
        file = item.path.stem
        item.add_marker(
            pytest.mark.xdist_group("whole run" if "kfp_run" in getattr(item, "fixturenames", ()) else file)
        )
