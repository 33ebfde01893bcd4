"""The splits of the real images, how the images get here, and what is said where they are not right."""

import http.server
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import pytest
from background_server import answering_in_background
from dvc.repo import Repo
from tiny import TinyData, make_images, read_idx, write_idx

from autoformer.errors import AutoFormerError
from autoformer.images.card import read_card
from autoformer.images.split_files import read_split
from autoformer.images.split_images import DecodedSplit, load_images
from autoformer.images.splits import hold_out
from autoformer.reading import read_json
from commands.fetch import INSTALLED, ROUTES, fetch, published_bytes
from components.prepare_data import fashion_mnist
from components.prepare_data.fashion_mnist import ARCHIVES
from components.prepare_data.step import SPLITS, main, prepare, summary
from runtime.common.config import ROOT
from runtime.common.sections import PrepareData

CONFIG = {
    "name": "test",
    "seed": 1,
    "dataset": "fashion-mnist",
    "space": "fashion-mnist",
    "prepare_data": {"search_images": 2000},
}


def _arguments(data: Path, out: Path, **changes: object) -> list[str]:
    arguments = ["--config", json.dumps(CONFIG | changes), "--data", str(data), "--card", str(out / "card.json")]
    for split in SPLITS:
        arguments += [f"--{split.replace('_', '-')}-split", str(out / f"{split}.parquet")]
    return [*arguments, "--record", str(out / "run" / "run.json")]


@pytest.fixture(scope="module", autouse=True)
def _untracked() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOFORMER_TRACKING", "off")
        yield


class Made(NamedTuple):
    folder: Path
    printed: str
    images: dict[str, DecodedSplit]


@pytest.fixture(scope="module")
def made(fashion_mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The step's outputs for the real data set, made by its command line."""
    folder = tmp_path_factory.mktemp("splits")
    command = [sys.executable, "-m", "components.prepare_data", *_arguments(fashion_mnist, folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    card = read_card(folder / "card.json")
    images = {name: load_images(folder / f"{name}.parquet", fashion_mnist, card) for name in SPLITS}
    return Made(folder, done.stdout, images)


@pytest.fixture(scope="module")
def delivered(fashion_mnist: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {prefix: read_idx(fashion_mnist, prefix) for prefix in ("train", "t10k")}


def _contents(pixels: np.ndarray) -> list[bytes]:
    return [image.tobytes() for image in pixels]


def test_splits_are_disjoint_by_content_and_lose_nothing(
    made: Made, delivered: dict[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    contents = {name: set(_contents(images.pixels)) for name, images in made.images.items()}
    assert not contents["train"] & contents["search"]
    assert not contents["train"] & contents["test"]
    assert not contents["search"] & contents["test"]
    training = [*_contents(made.images["train"].pixels), *_contents(made.images["search"].pixels)]
    assert sorted(training) == sorted(_contents(delivered["train"][0]))
    assert _contents(made.images["test"].pixels) == _contents(delivered["t10k"][0])
    assert _contents(made.images["train_full"].pixels) == _contents(delivered["train"][0])


def test_pixels_and_labels_equal_an_independent_reading(
    made: Made, delivered: dict[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    for name, prefix in (("train", "train"), ("search", "train"), ("test", "t10k"), ("train_full", "train")):
        images, labels = delivered[prefix]
        rows = (read_split(made.folder / f"{name}.parquet").offsets - 16) // 784
        np.testing.assert_array_equal(made.images[name].pixels[:, 0], images[rows])
        np.testing.assert_array_equal(made.images[name].labels, labels[rows])


def test_splits_are_stratified(made: Made) -> None:
    expected = {"train": 5800, "search": 200, "test": 1000, "train_full": 6000}
    for name, images in made.images.items():
        assert np.bincount(images.labels).tolist() == [expected[name]] * 10
    np.testing.assert_array_equal(made.images["search"].labels, np.tile(np.arange(10), 200))  # so is every prefix


def test_card_says_what_is_there(made: Made) -> None:
    card = read_card(made.folder / "card.json")
    pixels = made.images["train"].pixels / 255
    np.testing.assert_allclose(card.mean, [pixels.mean()], rtol=1e-12)
    np.testing.assert_allclose(card.std, [pixels.std()], rtol=1e-12)
    assert card.counts == {"train": 58000, "search": 2000, "test": 10000, "train_full": 60000}
    assert card.archives == ARCHIVES
    assert card.licence.startswith("MIT") and card.classes[9] == "Ankle boot"


def test_what_is_printed_and_what_is_recorded(made: Made) -> None:
    lines = made.printed.splitlines()
    assert len(lines) == 7
    assert "58,000 images, 5,800 to 5,800 of a class" in lines[1]
    assert "0 training images left out (also in test), 0 kept out of search" in lines[6]
    assert read_json(made.folder / "run" / "run.json")["step"] == "prepare_data"


def test_same_seed_same_bytes_other_seed_other_split(
    made: Made, fashion_mnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_arguments(fashion_mnist, tmp_path / "same")) == 0
    assert main(_arguments(fashion_mnist, tmp_path / "other", seed=2)) == 0
    assert capsys.readouterr().out.startswith(made.printed)
    names = ["card.json", "search.parquet", "test.parquet", "train.parquet", "train_full.parquet"]
    assert sorted(path.name for path in (tmp_path / "same").iterdir() if path.is_file()) == names
    for name in names:
        assert (tmp_path / "same" / name).read_bytes() == (made.folder / name).read_bytes()
    first, second = (set(read_split(f / "search.parquet").offsets) for f in (made.folder, tmp_path / "other"))
    assert len(first & second) < 200  # of 2000, where chance expects 67
    assert (tmp_path / "other" / "test.parquet").read_bytes() == (made.folder / "test.parquet").read_bytes()


# 12 training images of 2 classes. "a" is twice in training, "b" is also a test image.
LABELS = np.array([0, 1] * 6)
CHECKSUMS = np.array(["a", "c", "a", "d", "e", "f", "b", "g", "h", "i", "j", "k"])


@pytest.mark.parametrize("seed", range(20))
def test_repeated_images_stay_in_train_and_those_of_test_are_left_out(seed: int) -> None:
    split = hold_out(LABELS, CHECKSUMS, np.array(["b", "z"]), 2, 4, Random(seed))
    assert (split.left_out, split.repeated) == (1, 2)
    assert LABELS[split.search].tolist() == [0, 1, 0, 1]
    assert {0, 2} <= set(split.train.tolist())
    assert sorted([*split.train, *split.search]) == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    assert split.train.tolist() == sorted(split.train)


@pytest.mark.parametrize("seed", range(5))
def test_a_class_of_nothing_but_copies_is_held_out_one_of_each(seed: int) -> None:
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    checksums = np.array(["a", "a", "b", "b", "c", "c", "d", "e", "f", "x", "b"])  # "b" has both labels
    split = hold_out(labels, checksums, np.array(["z"]), 2, 2, Random(seed))
    assert labels[split.search].tolist() == [0, 1] and checksums[split.search[0]] in ("a", "c")
    assert not {*checksums[split.train]} & {*checksums[split.search]} and split.copies == 1
    assert len(split.train) + len(split.search) + split.copies == len(labels)


def test_repeated_images_in_files(tmp_path: Path) -> None:
    """The same through the IDX files: a test image among the training images, and a training image three times."""
    images, labels = make_images(100, np.random.default_rng(3))
    test_images, test_labels = make_images(20, np.random.default_rng(4))
    images[7], labels[7] = test_images[2], test_labels[2]
    images[20] = images[30] = images[40]
    write_idx(tmp_path, "train", images, labels)
    write_idx(tmp_path, "t10k", test_images, test_labels)
    prepared = prepare(tmp_path, fashion_mnist.index(tmp_path), PrepareData(search_images=40), 0)
    contents = {name: set(split.checksums.tolist()) for name, split in prepared.splits.items()}
    assert not (contents["train"] | contents["search"]) & contents["test"]
    assert not contents["train"] & contents["search"]
    assert prepared.card.counts == {"train": 59, "search": 40, "test": 20, "train_full": 99}
    assert "1 training image left out (also in test), 3 kept out of search" in summary(prepared)[-1]


@pytest.mark.parametrize("images", [1, 0, 3])
def test_search_images_must_be_a_multiple_of_the_classes(images: int) -> None:
    with pytest.raises(AutoFormerError, match=f"search_images = {images}: expected a multiple of the 2 classes"):
        hold_out(LABELS, CHECKSUMS, np.array(["z"]), 2, images, Random(0))


def test_every_class_keeps_a_training_image() -> None:
    unique = np.array([f"{row}" for row in range(12)])
    assert len(hold_out(LABELS, unique, np.array(["z"]), 2, 10, Random(0)).train) == 2
    with pytest.raises(AutoFormerError, match="6 images of each class, but at most 5 of class 0"):
        hold_out(LABELS, unique, np.array(["z"]), 2, 12, Random(0))


@pytest.fixture
def links(fashion_mnist: Path, tmp_path: Path) -> Path:
    """A data folder of one's own, to damage: replace its links, never write through them."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ARCHIVES:
        (folder / name).symlink_to(fashion_mnist / name)
    return folder


def _fails(data: Path, out: Path, capsys: pytest.CaptureFixture[str], **changes: object) -> str:
    """Run the step; it must end with 2 and one line, which is returned, and leave no result, not even a part."""
    assert main(_arguments(data, out, **changes)) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and printed.err.startswith("prepare_data: ")
    assert not out.exists() or [path.name for path in out.rglob("*") if path.is_file()] == ["run.json"]
    return printed.err


def test_missing_archive(links: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (links / "t10k-labels-idx1-ubyte.gz").unlink()
    line = _fails(links, tmp_path / "out", capsys)
    assert "t10k-labels-idx1-ubyte.gz: no such archive; `make data` fetches it" in line


def test_missing_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "made by `make data`" in _fails(tmp_path / "nothing", tmp_path / "out", capsys)


@pytest.mark.parametrize("damage", ["truncated", "changed", "another data set"])
def test_wrong_archive(
    links: Path, tiny_data: TinyData, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    name = "t10k-images-idx3-ubyte.gz"
    whole = (links / name).read_bytes()
    (links / name).unlink()
    contents = {
        "truncated": whole[:-1000],
        "changed": whole[:-1] + b"?",
        "another data set": (tiny_data.data / name).read_bytes(),
    }
    (links / name).write_bytes(contents[damage])
    line = _fails(links, tmp_path / "out", capsys)
    assert f"{name}: sha256 is" in line and "`make data` fetches it again" in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prepare_data": {"search_images": 60000}}, "6,000 images of each class, but at most 5,999"),
        ({"prepare_data": {"search_images": 2005}}, "search_images = 2005: expected a multiple of the 10 classes"),
        ({"dataset": "mnist"}, "dataset = mnist: "),
    ],
)
def test_wrong_configuration(
    fashion_mnist: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, object],
    message: str,
) -> None:
    assert message in _fails(fashion_mnist, tmp_path / "out", capsys, **changes)


@pytest.mark.parametrize("damage", ["truncated gzip", "not IDX", "too few values", "fewer labels"])
def test_damage_below_the_checksums(tiny_data: TinyData, tmp_path: Path, damage: str) -> None:
    shutil.copytree(tiny_data.data, tmp_path, dirs_exist_ok=True)
    images, labels = read_idx(tmp_path, "t10k")
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    if damage == "truncated gzip":
        path.write_bytes(path.read_bytes()[:-1000])
    elif damage == "not IDX":
        path.write_bytes((tmp_path / "t10k-labels-idx1-ubyte.gz").read_bytes())
    elif damage == "too few values":
        write_idx(tmp_path, "t10k", images[:, :27], labels)
    else:
        write_idx(tmp_path, "t10k", images, labels[:-1])
    with pytest.raises(AutoFormerError, match=r"not readable as gzip|not an IDX|expected images|do not fit") as error:
        fashion_mnist.index(tmp_path)
    assert "\n" not in str(error.value)


def _debian_copy(content: bytes) -> bytes:
    """What Debian's build makes of a published file: no name, its own time."""
    end_of_name = content.index(b"\x00", 10) + 1
    return content[:3] + b"\x00" + (0x5EDA0AED).to_bytes(4, "little") + content[8:10] + content[end_of_name:]


@pytest.mark.parametrize("name", ARCHIVES)
def test_debians_copy_becomes_the_published_file(fashion_mnist: Path, name: str) -> None:
    content = (fashion_mnist / name).read_bytes()
    assert published_bytes(name, _debian_copy(content)) == content
    assert published_bytes(name, content) == content


@pytest.fixture(scope="module")
def mirror(fashion_mnist: Path) -> Iterator[str]:
    """The real files, served by HTTP on this machine."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(fashion_mnist))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    with answering_in_background(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        yield f"http://127.0.0.1:{server.server_port}"


def use_mirrors(monkeypatch: pytest.MonkeyPatch, *mirrors: str) -> None:
    """Let these be the only route."""
    monkeypatch.setattr("commands.fetch.ROUTES", {"mirrors": ROUTES["mirrors"]})
    monkeypatch.setattr("commands.fetch.MIRRORS", mirrors)


def test_fetch_from_a_mirror_replaces_what_is_wrong(
    fashion_mnist: Path, mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_mirrors(monkeypatch, f"{mirror}/nothing", mirror)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(b"damaged")
    shutil.copy(fashion_mnist / "train-images-idx3-ubyte.gz", tmp_path)
    kept = (tmp_path / "train-images-idx3-ubyte.gz").stat().st_mtime_ns
    assert fetch(tmp_path) == "mirrors"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(ARCHIVES)
    assert all((tmp_path / name).read_bytes() == (fashion_mnist / name).read_bytes() for name in ARCHIVES)
    assert (tmp_path / "train-images-idx3-ubyte.gz").stat().st_mtime_ns == kept
    use_mirrors(monkeypatch)
    assert fetch(tmp_path) == "already there"


def test_a_mirror_with_other_files_is_refused(
    tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_mirrors(monkeypatch, tiny_data.data.as_uri())
    with pytest.raises(AutoFormerError, match="another checksum than the published file"):
        fetch(tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.skipif((Path("/") / INSTALLED).exists(), reason="Debian's package is installed: one route cannot fail")
def test_fetch_says_what_to_do_where_no_route_is_there(tmp_path: Path) -> None:
    nowhere = {"PATH": str(tmp_path), "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    environment = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()} | nowhere
    command = [sys.executable, "-m", "commands.fetch", "--data", str(tmp_path / "data")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    for part in ("installed: no train-images", "debian: no apt-get", "install Debian's package dataset-fashion-mnist"):
        assert part in done.stderr
    assert not (tmp_path / "data").exists()


def test_the_files_are_those_of_data_dvc(fashion_mnist: Path, tmp_path: Path) -> None:
    """DVC, asked in a repository of its own, finds what the committed `data.dvc` promises."""
    shutil.copy(ROOT / "data.dvc", tmp_path)
    (tmp_path / "data" / "fashion-mnist").mkdir(parents=True)
    for name in ARCHIVES:
        shutil.copy(fashion_mnist / name, tmp_path / "data" / "fashion-mnist")
    repo = Repo.init(str(tmp_path), no_scm=True)
    repo.commit(str(tmp_path / "data.dvc"))
    assert repo.status() == {}
    assert (tmp_path / "data.dvc").read_bytes() == (ROOT / "data.dvc").read_bytes()
