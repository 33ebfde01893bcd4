"""From a user's folder to what a run is given: the pack's splits and card, what is proposed, and the plan."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run_steps import contents
from user_images import class_folders, noise, write_images

from autoformer.errors import AutoFormerError
from autoformer.images.card import read_card
from autoformer.images.split_files import read_split
from autoformer.images.split_images import load_images
from commands import own_images
from commands.own_images import add_dataset, propose_recipe, propose_run, propose_space, training_images
from commands.plan import Plan, Stage, make_plan, plan_table
from components.prepare_data.pack_card import PackCard, read_pack
from components.prepare_data.step import main as prepare_data
from runtime.common.config import Config, load_config
from runtime.common.tables import read_table

SPLITS = ("train", "search", "test")  # no image is in two of them; train_full repeats two


@pytest.fixture(autouse=True)
def _untracked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("AUTOFORMER_TRACKING", "off")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # what is proposed depends on whether there is a GPU
    yield


def prepared(data: Path, overrides: list[str], out: Path) -> int:
    config = load_config("photos", overrides).step_json("prepare_data")
    splits = [
        part
        for name in (*SPLITS, "train_full")
        for part in (f"--{name.replace('_', '-')}-split", str(out / f"{name}.parquet"))
    ]
    files = ["--card", str(out / "card.json"), *splits, "--record", str(out / "run.json")]
    return prepare_data(["--config", config, "--data", str(data), *files])


def sources_of(data: Path, out: Path) -> dict[str, list[str]]:
    """The user's file behind each row of each split."""
    by_place = {(row["archive"], row["offset"]): row["source"] for row in read_table(data / "index.csv")}
    splits = {name: read_split(out / f"{name}.parquet") for name in SPLITS}
    return {
        name: [by_place[place, str(offset)] for place, offset in zip(split.archives, split.offsets, strict=True)]
        for name, split in splits.items()
    }


def test_prepare_data_of_class_folders(tmp_path: Path) -> None:
    """15 % of 20 and of 40 for each of search and test: 3 and 6. Figures against a plain reading of the files."""
    source = class_folders(tmp_path / "src", 20, 40)
    proposal = propose_run(source, None, [], tmp_path / "packs")
    assert prepared(proposal.data, proposal.overrides, tmp_path / "out") == 0
    card, files = read_card(tmp_path / "out" / "card.json"), sources_of(proposal.data, tmp_path / "out")
    assert card.counts == {"train": 42, "search": 9, "test": 9, "train_full": 51} and card.classes == ("a", "b")
    assert {name: Counter(file[0] for file in files[name]) for name in SPLITS} == {
        "train": {"a": 14, "b": 28}, "search": {"a": 3, "b": 6}, "test": {"a": 3, "b": 6},
    }  # fmt: skip
    assert sorted(file for rows in files.values() for file in rows) == sorted(
        path.relative_to(source).as_posix() for path in source.rglob("*.png")
    )
    images = load_images(tmp_path / "out" / "train.parquet", proposal.data, card, image_size=32)
    assert images.pixels.shape == (42, 3, 32, 32)
    assert [card.classes[label] for label in images.labels] == [file[0] for file in files["train"]]
    # mean and deviation over the training pixels as they are packed: 12 x 10 brought to 32 on the shorter side
    resized = [Image.open(source / file).resize((38, 32), Image.Resampling.BICUBIC) for file in files["train"]]
    pixels = np.stack([np.asarray(image) for image in resized]).reshape(-1, 3) / 255
    assert np.allclose(card.mean, pixels.mean(axis=0), atol=1e-12) and np.allclose(card.std, pixels.std(axis=0))


def test_prepare_data_keeps_the_splits_that_there_are(tmp_path: Path) -> None:
    for number, (split, images) in enumerate([("train", 9), ("val", 4), ("test", 5)]):
        class_folders(tmp_path / "src" / split, images, images, start=2 * number)
    proposal = propose_run(tmp_path / "src", None, [], tmp_path / "packs")
    assert prepared(proposal.data, proposal.overrides, tmp_path / "out") == 0
    files = sources_of(proposal.data, tmp_path / "out")
    for split, name in (("train", "train"), ("val", "search"), ("test", "test")):
        assert sorted(files[name]) == sorted(
            path.relative_to(tmp_path / "src").as_posix() for path in (tmp_path / "src" / split).rglob("*.png")
        )
    assert "train, val, test folders of class folders" in read_card(tmp_path / "out" / "card.json").source


def test_a_validation_split_alone_is_the_test(tmp_path: Path) -> None:
    """Nobody has seen it; what scores candidates is drawn from the training images: 15 % of 20."""
    class_folders(tmp_path / "src" / "train", 20, 20)
    class_folders(tmp_path / "src" / "val", 4, 4, start=2)
    proposal = propose_run(tmp_path / "src", None, [], tmp_path / "packs")
    assert prepared(proposal.data, proposal.overrides, tmp_path / "out") == 0
    files = sources_of(proposal.data, tmp_path / "out")
    assert all(file.startswith("val/") for file in files["test"]) and len(files["test"]) == 8
    assert all(file.startswith("train/") for file in files["search"] + files["train"])
    assert Counter(file.split("/")[1] for file in files["search"]) == {"a": 3, "b": 3}


def test_ten_images_of_two_classes_are_enough(tmp_path: Path) -> None:
    proposal = propose_run(class_folders(tmp_path / "src", 5, 5), None, [], tmp_path / "packs")
    config = load_config(proposal.preset, proposal.overrides)
    assert config.train_supernet and config.space.num_classes == 2
    assert prepared(proposal.data, proposal.overrides, tmp_path / "out") == 0
    counts = read_card(tmp_path / "out" / "card.json").counts
    assert counts == {"train": 6, "search": 2, "test": 2, "train_full": 8}
    assert config.train_supernet.batch_size <= counts["train"] and config.train_supernet.epochs == 300


@pytest.mark.parametrize(
    ("sides", "space"),
    [((12, 40), "photos-32"), ((47, 60), "photos-32"), ((48, 48), "photos-64"), ((300, 400), "photos-64")],
)
def test_the_space_suits_the_size_of_the_images(sides: tuple[int, int], space: str, tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / label).mkdir()
        noise(1, *sides).save(tmp_path / label / "1.png")
        (tmp_path / label / "broken.png").write_bytes(b"")
    assert propose_space(tmp_path) == space


def card_of(images: int, **splits: int) -> PackCard:
    return PackCard(
        name="x", hash="x", layout="x", classes=("a", "b"), counts={"a": images // 2, "b": images - images // 2},
        splits=splits or {"": images}, channels=3, shorter_side=73, median_size=(9, 9), unreadable=0, ignored=0,
        archives={},
    )  # fmt: skip


def proposed(images: int) -> Config:
    config = load_config("photos")
    return load_config("photos", propose_recipe(card_of(images), config))


def test_more_images_are_seen_less_often() -> None:
    """3000 / root of the training images, 70 % of all: 1000 images, 700 to train, 113 epochs."""
    configs = [proposed(images) for images in (2, 10, 50, 200, 1000, 7_000, 30_000, 10**6, 10**8)]
    epochs = [config.train_supernet.epochs for config in configs if config.train_supernet]
    assert epochs == sorted(epochs, reverse=True) and epochs[0] == 300 and epochs[-1] == 10
    assert epochs[4] == 113
    for config, images in zip(configs, (2, 10, 50, 200, 1000, 7_000, 30_000, 10**6, 10**8), strict=True):
        assert config.train_supernet and config.retrain_subnet
        batch, trained = config.train_supernet.batch_size, training_images(card_of(images), config)
        assert batch == config.retrain_subnet.batch_size and (batch == 2 or 4 * batch <= trained)
        assert config.train_supernet.warmup_epochs * 20 == pytest.approx(config.train_supernet.epochs)
        assert 3 <= config.retrain_subnet.epochs == max(3, round(config.train_supernet.epochs / 3))


@pytest.mark.parametrize(
    ("splits", "images"),
    [
        ({"": 1000}, 700),
        ({"train": 800, "val": 100, "test": 100}, 800),
        ({"train": 800, "val": 200}, 680),  # val tests, 15 % of train are held out
        ({"train": 800, "test": 200}, 680),
    ],
)
def test_training_images_by_what_the_source_has(splits: dict[str, int], images: int) -> None:
    assert training_images(card_of(1000, **splits), load_config("photos")) == images


def test_what_the_user_sets_wins_and_a_preset_is_taken_as_it_is(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src", 6, 6)
    mine = ["train_supernet.epochs=7", "space=photos-64", "register_model.model_name=mine"]
    proposal = propose_run(source, None, mine, tmp_path / "packs")
    config = load_config(proposal.preset, proposal.overrides)
    assert config.train_supernet and config.retrain_subnet and config.register_model
    assert (config.space.name, config.register_model.model_name) == ("photos-64", "mine")
    assert (config.train_supernet.epochs, config.train_supernet.warmup_epochs) == (7, 0.35)  # a twentieth, as proposed
    assert (config.dataset, config.name, config.space.num_classes) == ("src", "src", 2)
    smoke = propose_run(source, "smoke", ["space=photos-32"], tmp_path / "packs")
    plain = load_config("smoke", ["space=photos-32"])
    changed = load_config("smoke", smoke.overrides)
    assert plain.prepare_data and plain.register_model
    own = {
        "register_model": plain.register_model.model_copy(update={"model_name": "src"}),
        "dataset": "src",
        "space": plain.space.model_copy(update={"num_classes": 2}),
        "prepare_data": plain.prepare_data.model_copy(update={"search_images": None}),  # of a set with equal classes
    }
    assert changed == plain.model_copy(update=own)


def test_a_pack_is_taken_as_it_is(tmp_path: Path) -> None:
    first = propose_run(class_folders(tmp_path / "src", 6, 6), None, [], tmp_path / "packs")
    again = propose_run(first.data, None, [], tmp_path / "none")
    assert again.data == first.data and not (tmp_path / "none").exists()
    assert load_config(again.preset, again.overrides) == load_config(first.preset, first.overrides)


class Checkout:
    """A root with configurations of its own, so that nothing comes into the repository."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        for kind in ("spaces", "presets"):
            (root / "configs" / kind).mkdir(parents=True)
        (root / "data" / "fashion-mnist").mkdir(parents=True)
        (root / "data" / "fashion-mnist" / "images.gz").write_bytes(b"precious")
        (root / "configs" / "spaces" / "taken.yaml").write_text("name: taken\n")
        monkeypatch.setattr(own_images, "ROOT", root)
        monkeypatch.setattr(own_images, "CONFIGS", root / "configs")
        monkeypatch.setattr(own_images, "DATASETS", root / "datasets")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    return Checkout(tmp_path / "checkout", monkeypatch)


def test_make_data_puts_a_pack_a_space_and_a_preset_under_a_name(checkout: Checkout, tmp_path: Path) -> None:
    source, root = class_folders(tmp_path / "src", 6, 6), checkout.root
    said = add_dataset(source, "garden", None, ["seed=5"])
    assert "make run PRESET=garden" in said and "12 images, 2 classes" in said
    assert read_pack(root / "data" / "garden").name == "garden"
    space = root / "configs" / "spaces" / "garden.yaml"
    config = load_config(str(root / "configs" / "presets" / "garden.yaml"), [f"space={space}"])
    assert (config.name, config.dataset, config.seed) == ("garden", "garden", 5)
    assert (config.space.name, config.space.num_classes, config.space.image_size) == ("garden", 2, 32)
    assert config.register_model and config.register_model.model_name == "garden"
    # again: the same, and an edited preset stays as it was edited
    space.write_text(space.read_text() + "# mine\n")
    before = contents(root / "data") | contents(root / "configs")
    add_dataset(source, "garden", None, ["seed=5"])
    assert contents(root / "data") | contents(root / "configs") == before


def test_make_data_of_a_pack_that_a_run_has_made(checkout: Checkout, tmp_path: Path) -> None:
    proposal = propose_run(class_folders(tmp_path / "src", 6, 6), None, [], own_images.DATASETS)
    add_dataset(proposal.data, "garden", None, [])
    made = checkout.root / "data" / "garden"
    assert contents(made).keys() == contents(proposal.data).keys()
    assert read_pack(made).hash == read_pack(proposal.data).hash


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("My Garden", "such as my-garden"),
        ("", "lower case letters"),
        ("../garden", "lower case letters"),
        ("taken", "a configuration of this name is there already"),
        ("fashion-mnist", "a folder of this name is there already"),
        ("garden", "holds other images already"),
    ],
)
def test_a_name_that_is_taken_leaves_all_as_it_was(name: str, part: str, checkout: Checkout, tmp_path: Path) -> None:
    add_dataset(class_folders(tmp_path / "1" / "src", 3, 4), "garden", None, [])
    before = contents(checkout.root / "data") | contents(checkout.root / "configs")
    with pytest.raises(AutoFormerError, match=part):
        add_dataset(class_folders(tmp_path / "2" / "src", 4, 4), name, None, [])
    assert contents(checkout.root / "data") | contents(checkout.root / "configs") == before


def test_photographs_below_the_data_folder_are_never_replaced(checkout: Checkout) -> None:
    """`make data DATA=data/garden NAME=garden`: the user's own files lie where the pack would go."""
    source = class_folders(checkout.root / "data" / "garden", 3, 3)
    before = contents(source)
    with pytest.raises(AutoFormerError, match="a folder of this name is there already"):
        add_dataset(source, "garden", None, [])
    assert contents(source) == before


TINY = [
    "threads=1", "space.choices.embed_dim=[96]", "space.choices.depth=[4]", "space.supernet.depth=4",
    "train_supernet.epochs=2.5", "train_supernet.warmup_epochs=0", "train_supernet.batch_size=16",
    "retrain_subnet.epochs=3", "retrain_subnet.warmup_epochs=0", "retrain_subnet.batch_size=8",
    "search_subnet.population=6", "search_subnet.generations=4", "search_subnet.parents=2",
    "search_subnet.mutations=2", "search_subnet.crossovers=2", "search_subnet.limits={}", "search_subnet.batch_size=4",
]  # fmt: skip


def test_the_plan_counts_what_a_run_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """50 training images: 3 steps of 16 to an epoch, round(2.5 x 3) = 8 of them; 6 steps of 8 for each retraining."""
    monkeypatch.setattr("commands.plan._MIN_SECONDS", 0.0)
    monkeypatch.setenv("AUTOFORMER_WORKERS", "0")
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    for split, images in (("train", 25), ("val", 10), ("test", 6)):
        class_folders(tmp_path / "src" / split, images, images, start=2 * len(split))
    proposal = propose_run(tmp_path / "src", None, TINY, tmp_path / "packs")

    def stages(*settings: str) -> dict[str, float]:
        plan = make_plan(load_config(proposal.preset, [*proposal.overrides, *settings]), proposal.data)
        assert plan.counts == {"train": 50, "search": 20, "test": 12, "train_full": 70}
        assert plan.hours == pytest.approx(sum(plan.hours_of(stage) for stage in plan.stages)) and plan.memory_gb > 0
        assert all(plan.hours_of(each) * 3600 >= each.images / each.images_per_second for each in plan.stages)
        assert "50 images to train, 20 to search, 12 to test" in plan_table(plan)
        return {stage.name: stage.images for stage in plan.stages}

    assert stages("search_subnet.random_baseline=false") == {
        "prepare_data": 82, "train_supernet": 8 * 16, "search_subnet": 30 * 20, "retrain_subnet": 3 * 6 * 8,
        "evaluate_subnet": 36, "register_model": 0,
    }  # fmt: skip
    found = stages("search_subnet.images=5", "retrain_subnet.mode=scratch", "retrain_subnet.scratch_reference=true")
    assert found["search_subnet"] == 60 * 5  # with as many at random
    assert found["retrain_subnet"] == 3 * 6 * 8  # it is the reference itself
    both = round((2.5 + 3) * 3)  # epochs, with the supernet's recipe
    assert stages("retrain_subnet.scratch_reference=true")["retrain_subnet"] == 3 * 6 * 8 + both * 16
    assert stages("retrain_subnet.mode=inherited")["retrain_subnet"] == 0
    assert (
        stages("retrain_subnet.mode=finetune", "retrain_subnet.split=train_full")["retrain_subnet"] == 3 * (70 // 8) * 8
    )


def test_the_plan_counts_what_each_step_takes_to_start_and_to_end() -> None:
    """An hour of images in the only stage with work, and 180 s for each of two processes."""
    stages = [Stage("prepare_data"), Stage("train_supernet", "", 7200, 2.0)]
    plan = Plan("cpu", {"train": 1, "search": 1, "test": 1}, stages, 1.0, 180.0)
    assert [plan.hours_of(stage) for stage in stages] == [180 / 3600, 1 + 180 / 3600]
    assert plan.hours == pytest.approx(1.1) and "in all about 1.1 h" in plan_table(plan)


def test_the_report_names_what_was_left_out(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "src", 30, 30)
    (source / "a" / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    write_images(source / "c", 8, seed=9)
    proposal = propose_run(source, None, [], tmp_path / "packs")
    said = own_images.describe_pack(proposal.data)
    for part in ("68 images, 3 classes", "class folders", "c 8, a 30, b 30", "1 unreadable", "a/broken.jpg: "):
        assert part in said
    assert json.loads((proposal.data / "dataset.json").read_text())["unreadable"] == 1
