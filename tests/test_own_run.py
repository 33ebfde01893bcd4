"""A folder of photographs goes in, a registered model comes out, and names the class of a photograph."""

import importlib
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest
import torch
from photographs import make_photographs
from PIL import Image
from tracking_fixtures import make_empty_store, use_store

from autoformer.cards import read_subnet_card
from autoformer.images.card import read_card
from autoformer.images.pixels import model_pixels, open_image, resized_side
from autoformer.images.split_files import read_split
from commands.own_images import propose_run
from components.prepare_data.pack_card import read_pack
from components.prepare_data.step import SPLITS
from runtime.common.config import load_config

CLASSES = ("brick", "cat", "coffee")
SMALL = """
space.choices.embed_dim=[96] space.choices.depth=[4,5] train_supernet.epochs=12 retrain_subnet.epochs=2
train_supernet.warmup_epochs=1 retrain_subnet.warmup_epochs=0.1 search_subnet.population=4 search_subnet.parents=2
search_subnet.mutations=2 search_subnet.crossovers=2 search_subnet.generations=1 threads=1
"""


class OwnRun(NamedTuple):
    source: Path
    data: Path
    root: Path
    settings: list[str]


@pytest.fixture(scope="module")
def own_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnRun]:
    """What the runner runs, step by step in this process, with photographs of every kind and two that are none."""
    root = tmp_path_factory.mktemp("own")
    source = root / "My Photos"
    make_photographs(source, 96, CLASSES)
    (source / "cat" / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    Image.new("RGB", (60_000, 1)).save(source / "coffee" / "strip.png")
    proposal = propose_run(source, None, shlex.split(SMALL), root / "datasets")
    config = load_config(proposal.preset, proposal.overrides)
    store = root / "mlflow.db"
    store.write_bytes(make_empty_store(tmp_path_factory.getbasetemp() / "mlflow-store").read_bytes())
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        use_store(f"sqlite:///{store}", root / "work", patch)
        patch.setenv("AUTOFORMER_WORKERS", "0")
        for step, given in command_lines(proposal.data, root).items():
            main = importlib.import_module(f"components.{step}.step").main
            record = ["--record", str(root / f"{step}.json")]
            assert main(["--config", config.step_json(step), *given, *record]) == 0, step
        yield OwnRun(source, proposal.data, root, proposal.overrides)
    torch.set_num_threads(threads)


def command_lines(data: Path, root: Path) -> dict[str, list[str]]:
    card = ["--card", str(root / "card.json")]
    splits = {name: [f"--{name.replace('_', '-')}-split", str(root / f"{name}.parquet")] for name in SPLITS}
    made = {name: [f"--{name}", str(root / name)] for name in ("supernet", "search", "retrain", "evaluation")}
    reads = ["--data", str(data), *card]

    def out(name: str) -> list[str]:
        return ["--out", str(root / name)]

    return {
        "prepare_data": [*reads, *(part for split in splits.values() for part in split)],
        "train_supernet": [*reads, *splits["train"], *splits["search"], *out("supernet")],
        "search_subnet": [*reads, *splits["search"], *made["supernet"], *out("search")],
        "retrain_subnet": [
            *reads, *splits["train"], *splits["train_full"], *splits["search"], *made["supernet"], *made["search"],
            *out("retrain"),
        ],
        "evaluate_subnet": [
            *reads, *splits["test"], *made["supernet"], *made["search"], *made["retrain"], *out("evaluation"),
        ],
        "register_model": [
            *card, *made["supernet"], *made["search"], *made["retrain"], *made["evaluation"],
            *out("registration.json"), "--model-card", str(root / "model_card.md"),
        ],
    }  # fmt: skip


def test_what_is_found_is_shown_on_the_card(own_run: OwnRun) -> None:
    pack, card = read_pack(own_run.data), read_card(own_run.root / "card.json")
    assert own_run.data.name.startswith("my-photos-") and pack.unreadable == 2
    assert card.classes == CLASSES and card.counts["train_full"] + card.counts["test"] == 96 == sum(
        pack.counts.values()
    )
    assert {name: card.counts[name] for name in ("search", "test")} == {"search": 15, "test": 15}  # 5 of each 32
    assert card.notes == ("2 unreadable images were left out",)
    rows = [read_split(own_run.root / f"{name}.parquet") for name in ("train", "search", "test")]
    checksums = [set(split.checksums.tolist()) for split in rows]
    assert not any(checksums[i] & checksums[j] for i, j in ((0, 1), (0, 2), (1, 2)))


def test_the_settings_come_from_the_images_and_the_users_win(own_run: OwnRun) -> None:
    config = load_config("photos", own_run.settings)
    assert (config.dataset, config.space.name, config.space.num_classes) == ("my-photos", "photos-64", 3)
    assert config.train_supernet and config.register_model
    assert config.train_supernet.epochs == 12  # the user's, not the proposed one
    assert config.train_supernet.batch_size == 16  # four steps to an epoch of 66 images
    assert config.register_model.model_name == "my-photos"


def test_it_learns_and_is_registered(own_run: OwnRun) -> None:
    metrics = json.loads((own_run.root / "evaluation" / "metrics.json").read_text())
    assert metrics["test_top1_percent"] > 60  # a third by chance
    registration = json.loads((own_run.root / "registration.json").read_text())
    assert registration["decision"] == "registered" and registration["model_name"] == "my-photos"
    report = (own_run.root / "evaluation" / "report.html").read_text()
    assert all(name in report for name in CLASSES)


def test_the_registered_model_names_a_class(
    own_run: OwnRun, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from commands.predict import main

    (tmp_path / "my-photos").mkdir()  # the photographs themselves, say: a model has their folder's name
    monkeypatch.chdir(tmp_path)
    photographs = Random(0).sample(sorted((own_run.source / "cat").glob("IMG*")), 8)
    capsys.readouterr()
    assert main([str(path) for path in photographs]) == 0  # of the model that was registered last
    by_default = capsys.readouterr().out
    assert main(["--model", "my-photos", *map(str, photographs)]) == 0
    assert capsys.readouterr().out == by_default
    named = [line.rpartition(": ")[2].split(" ")[0] for line in by_default.splitlines()]
    assert len(named) == 8 and named.count("cat") >= 5


def test_prediction_sees_a_photograph_as_training_did(own_run: OwnRun) -> None:
    """Through the pack and straight from the file: the same pixels, whatever mode, size and orientation."""
    from autoformer.images.archives import EncodedImages
    from components.prepare_data.packed import read
    from runtime.common.tables import read_table

    space = read_subnet_card(own_run.root / "retrain" / "model").space
    delivered = read(own_run.data)
    packed = EncodedImages(own_run.data, delivered.rows, 3)
    for index, row in enumerate(read_table(own_run.data / "index.csv")):
        image = open_image(own_run.source / row["source"], resized_side(space.image_size))
        straight = model_pixels(image, 3, space.image_size)
        assert (straight == model_pixels(packed.image(index), 3, space.image_size)).all(), row["source"]
