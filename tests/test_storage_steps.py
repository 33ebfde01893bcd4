"""The supernet's weights by URI: a small folder for KFP, and the same results as without a store."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from interrupted import CONFIGS, Place, place
from run_steps import arguments, contents, run
from s3_server import S3Server

from autoformer.files import hash_file, hash_path
from components.kfp_edge import log_uri
from components.storage import listing

__all__ = ["place"]  # a fixture


class Artifact:
    """As much of KFP's artifact as a component's body gives to `log_uri`."""

    def __init__(self, path: Path) -> None:
        self.path, self.metadata = str(path), dict[str, Any]()


@pytest.fixture(scope="module")
def stored(place: Place, s3_process: S3Server) -> Iterator[Path]:
    """A supernet that was trained with a store, and nothing else of its run."""
    from components.storage import client

    with pytest.MonkeyPatch.context() as patch:
        for name, value in (s3_process.environment | {"AUTOFORMER_STORE": s3_process.uri("artifacts-test")}).items():
            patch.setenv(name, value)
        client._connect.cache_clear()
        given = place.given("train_supernet", "small/supernet")
        assert run("train_supernet", given) == 0
        yield place.root / "small" / "supernet"


def test_the_weights_go_by_uri(stored: Path, place: Place, s3_process: S3Server) -> None:
    usual = place.root / "made" / "supernet"
    whole, kept = hash_path(usual), json.loads((stored / "stored.json").read_text())
    large = {"ema.safetensors", "weights.safetensors"}
    assert {file.name for file in usual.iterdir()} - large == {file.name for file in stored.iterdir()} - {"stored.json"}
    assert kept["uri"] == s3_process.uri(f"artifacts-test/artifacts/train_supernet/{whole}") and kept["hash"] == whole
    assert kept["files"] == [
        {"name": name, "bytes": (usual / name).stat().st_size, "sha256": hash_file(usual / name)}
        for name in sorted(large)
    ]
    assert {entry.name for entry in listing(kept["uri"])} == large
    shown = Artifact(stored)
    log_uri(shown)
    assert shown.metadata == {"uri": kept["uri"]}
    without = Artifact(usual)
    log_uri(without)
    assert without.metadata == {}


def test_a_step_makes_the_same_of_it(stored: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without AUTOFORMER_STORE: what is to be read, the folder itself says."""
    monkeypatch.delenv("AUTOFORMER_STORE")
    out = place.root / "search-of-stored"
    given = arguments("search_subnet", place.data, stored.parent, out, CONFIGS["search_subnet"])
    assert run("search_subnet", given) == 0
    assert contents(out) == contents(place.root / "made" / "search")
    copy = place.root / "work" / "fetched" / hash_path(place.root / "made" / "supernet")
    assert contents(copy) == contents(place.root / "made" / "supernet")
    assert [file.name for file in copy.parent.iterdir()] == [copy.name]
