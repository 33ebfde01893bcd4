"""Data that several tests read. Nothing may be written into it."""

from pathlib import Path

import pytest
from tiny import TinyData, make_tiny_data

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
