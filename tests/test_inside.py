"""A refusal that knows the way names it: the folder inside, the names that exist."""

import shutil
from pathlib import Path

import pytest
from PIL import Image
from tracking_fixtures import empty_store, store  # noqa: F401 - fixtures

from autoformer.errors import AutoFormerError
from commands.deliver import fill_data_folder
from commands.own_images import propose_run
from runtime import tracking


def lay(root: Path, names: tuple[str, ...] = ("cat", "dog")) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (40, 40), (number, len(name), 9)).save(root / name / f"{number}.png")
    return root


@pytest.mark.parametrize("preset", [None, "photos"])
@pytest.mark.parametrize(
    ("folder", "inside"),
    [
        (["my-archive/cat", "my-archive/dog"], "my-archive"),
        (["images/train/cat", "images/train/dog", "images/val/cat", "images/val/dog"], "images"),
        (["my photos/data/cat", "my photos/data/dog"], "my photos/data"),  # quoted for the shell
    ],
)
def test_a_folder_around_everything_is_refused_with_the_folder_that_is_meant(
    folder: list[str], inside: str, preset: str | None, tmp_path: Path
) -> None:
    for name in folder:
        lay(tmp_path / "own" / name, (".",))
    quote = "'" if " " in inside else ""
    with pytest.raises(AutoFormerError) as refused:
        propose_run(tmp_path / "own", preset, [], tmp_path / "packs")
    assert str(refused.value).endswith(f"; did you mean DATA={quote}{tmp_path / 'own' / inside}{quote}?")
    assert not (tmp_path / "packs").exists()


@pytest.mark.parametrize(
    ("files", "inside"),
    [
        (["attributes/list.txt", "parts/list.txt"], "images"),  # as CUB-200 has it
        (["Annotations/cat/1.mat"], "101_ObjectCategories"),  # Caltech-101
        (["labels/cat/1.txt"], "images"),
    ],
)
def test_the_folder_of_images_beside_their_annotations_is_named(files: list[str], inside: str, tmp_path: Path) -> None:
    lay(tmp_path / "own" / inside)
    for name in files:
        (tmp_path / "own" / name).parent.mkdir(parents=True)
        (tmp_path / "own" / name).touch()
    with pytest.raises(AutoFormerError, match=rf"without images.*; did you mean DATA=.*/own/{inside}\?$"):
        propose_run(tmp_path / "own", None, [], tmp_path / "packs")


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("photos.zip", "unpack it, and give the folder"),
        ("photos.tar.gz", "unpack it, and give the folder"),
        ("labels.XLSX", "save the table as 'CSV UTF-8', and give that file"),
        ("labels.txt", r"or, if it holds path and label, call it \.csv"),
    ],
)
def test_a_file_that_holds_the_images_or_their_labels_in_another_form_is_refused_with_the_way(
    name: str, way: str, tmp_path: Path
) -> None:
    (tmp_path / name).touch()
    with pytest.raises(AutoFormerError, match=f"neither a folder nor a .csv file; .*{way}$"):
        propose_run(tmp_path / name, None, [], tmp_path / "packs")


def test_one_folder_of_images_beside_a_table_leads_to_the_table(tmp_path: Path) -> None:
    lay(tmp_path / "own", ("images",))
    (tmp_path / "own" / "train.csv").write_text("path,label\n")
    with pytest.raises(AutoFormerError, match=r"one class only.*name the table .*DATA=.*/own/train\.csv$"):
        propose_run(tmp_path / "own", None, [], tmp_path / "packs")


def test_nothing_is_proposed_that_would_be_refused_too(tmp_path: Path) -> None:
    lay(tmp_path / "own" / "archive", ("cat",))
    with pytest.raises(AutoFormerError, match=r"one class only, 'archive'; a classifier needs two or more$"):
        propose_run(tmp_path / "own", None, [], tmp_path / "packs")


def test_archives_one_folder_further_down_are_named(tmp_path: Path) -> None:
    (tmp_path / "downloads" / "cifar").mkdir(parents=True)
    (tmp_path / "downloads" / "cifar" / "cifar-10-python.tar.gz").write_bytes(b"x")
    with pytest.raises(AutoFormerError, match=r"did you mean ARCHIVES=.*/downloads/cifar\?$"):
        fill_data_folder("cifar-10", tmp_path / "downloads", tmp_path / "data")
    tree = lay(tmp_path / "trees" / "tree" / "train")
    shutil.copytree(tree, tree.with_name("val"))
    with pytest.raises(AutoFormerError, match=r"did you mean ARCHIVES=.*/trees/tree\?$"):
        fill_data_folder("mine", tmp_path / "trees", tmp_path / "data")


def test_an_unknown_model_is_refused_with_those_that_are_registered(store: str, tmp_path: Path) -> None:  # noqa: F811
    client = tracking.initialise(store)
    client.create_registered_model("flowers")
    client.create_model_version("flowers", source=(tmp_path / "any").as_uri(), run_id=None)
    client.set_registered_model_alias("flowers", "champion", "1")
    for name, alias in (("flower", "champion"), ("flowers", "challenger")):
        with pytest.raises(
            AutoFormerError, match=rf"'{name}' with the alias '{alias}' .* there are: flowers \(champion"
        ):
            tracking.model_folder(name, alias)
