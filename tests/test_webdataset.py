"""WebDataset shards, indexed without unpacking: against tarfile, and shards that are not as they should be."""

import io
import json
import tarfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from transfer_archives import Files, jpeg, write_tar

from autoformer.errors import AutoFormerError
from components.prepare_data import webdataset


@pytest.fixture(autouse=True)
def _work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOFORMER_WORK", str(tmp_path / "work"))


def sample(key: str, seed: int, **labels: object) -> Files:
    """An image, and a file for each of `labels`."""
    texts = {kind: json.dumps(value) if kind == "json" else str(value) for kind, value in labels.items()}
    return {f"{key}.jpg": jpeg(seed)} | {f"{key}.{kind}": text.encode() for kind, text in texts.items()}


def shards(root: Path) -> Path:
    """As Hugging Face's timm/imagenet-1k-wds names and fills them, and one with folders in its keys."""
    first = sample("n01_10", 0, cls=1, json={"label": 1, "width": 40}) | sample("n01_11", 1, cls=0, json={"label": 0})
    write_tar(root / "imagenet1k-train-0000.tar", first)
    write_tar(root / "imagenet1k-train-0001.tar", sample("a/0", 2, json={"cls": 2}))
    write_tar(root / "imagenet1k-validation-00.tar", sample("a/0", 3, cls=" 2\n") | {"a/0.txt": b"a caption"})
    return root


def independent(root: Path) -> list[tuple[str, bytes, int]]:
    """Archive, image and label of every sample, through tarfile."""
    found = []
    for path in sorted(root.glob("*.tar")):
        samples: dict[str, dict[str, bytes]] = defaultdict(dict)
        with tarfile.open(path) as tar:
            for info in tar:
                key, _, kind = info.name.partition(".")
                samples[key][kind] = tar.extractfile(info).read()  # type: ignore[union-attr]
        for files in samples.values():
            label = int(files["cls"]) if "cls" in files else json.loads(files["json"])["cls"]
            found.append((path.name, files["jpg"], label))
    return found


def test_every_row_is_what_tarfile_reads(tmp_path: Path) -> None:
    root = shards(tmp_path / "shards")
    assert webdataset.is_mine(root)
    found = webdataset.read(root)
    rows = found.rows
    bytes_of = {name: (root / name).read_bytes() for name in found.archives}
    ours = [
        (str(archive), bytes_of[str(archive)][offset : offset + size], int(label))
        for archive, offset, size, label in zip(rows.archives, rows.offsets, rows.sizes, rows.labels, strict=True)
    ]
    assert ours == independent(root)
    assert found.splits.tolist() == ["train", "train", "train", "val"]
    assert found.classes == ("0", "1", "2")
    assert (found.title, found.upright) == ("shards", True)


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names_in_every_kind_of_tar(kind: int, tmp_path: Path) -> None:
    """Names beyond the 100 bytes of a header, folders, links and an empty file among them."""
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "train-0.tar", "w", format=kind) as tar:
        for number in range(4):
            folder = f"{'d' * 90}/{'e' * 40}" if number % 2 else "short"
            for name, content in sample(f"{folder}/{number}", number, cls=number % 2, txt="").items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            link = tarfile.TarInfo(f"link{number}.jpg")
            link.type, link.linkname = tarfile.SYMTYPE, "short/0.jpg"
            tar.addfile(link)
    rows = webdataset.read(tmp_path / "shards").rows
    content = (tmp_path / "shards" / "train-0.tar").read_bytes()
    ours = [content[offset : offset + size] for offset, size in zip(rows.offsets, rows.sizes, strict=True)]
    assert ours == [jpeg(number) for number in range(4)] and rows.labels.tolist() == [0, 1, 0, 1]


def test_images_named_as_imagenets_are_not_turned(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", sample("n01440764_10026", 0, cls=0) | sample("n01440764_1", 1, cls=1))
    write_tar(tmp_path / "val-0.tar", sample("ILSVRC2012_val_00000001", 2, cls=1))
    found = webdataset.read(tmp_path)
    assert (found.title, found.upright) == ("ImageNet", False)


def test_one_set_with_names_for_labels(tmp_path: Path) -> None:
    root = tmp_path / "shards"
    write_tar(root / "000.tar", sample("a", 0, cls="dog") | sample("b", 1, cls="cat"))
    found = webdataset.read(root)
    assert (found.classes, found.rows.labels.tolist(), found.splits.tolist()) == (("cat", "dog"), [1, 0], ["", ""])


def test_numbers_are_named_by_a_file(tmp_path: Path) -> None:
    root = shards(tmp_path / "shards")
    (root / "classes.txt").write_text("tench\ngoldfish\nshark\nray\n")
    assert webdataset.read(root).classes == ("tench", "goldfish", "shark", "ray")
    (root / "classes.txt").write_text("tench\ngoldfish\n")
    with pytest.raises(AutoFormerError, match=r"2 classes, but a label is 2; correct classes\.txt"):
        webdataset.read(root)


def test_a_shard_is_read_again_only_where_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = shards(tmp_path / "shards")
    first = webdataset.read(root)
    read: list[str] = []
    whole = webdataset.read_tar
    monkeypatch.setattr(webdataset, "read_tar", lambda path, keep: read.append(path.name) or whole(path, keep))
    again = webdataset.read(root)
    assert read == [] and all(np.array_equal(a, b) for a, b in zip(first.rows, again.rows, strict=True))
    write_tar(root / "imagenet1k-validation-00.tar", sample("b", 9, cls=0))
    assert webdataset.read(root).rows.labels.tolist() == [1, 0, 2, 0]
    assert read == ["imagenet1k-validation-00.tar"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (sample("a", 0), "a has no label; a sample is an image and a .cls, or a .json with 'label' or 'cls'"),
        (sample("a", 0, json={"width": 3}), "a has no label"),
        ({"a.cls": b"0"}, "holds no images"),
        (sample("a", 0, cls=1, json={"label": 0}), "a has two labels, '1' and '0'"),
        (sample("a", 0, cls=0) | {"a.png": b"x"}, r"a has two images, a\.jpg and a\.png"),
        (sample("a", 0, cls=""), r"a\.cls holds no class: a number from 0, or a name"),
        (sample("a", 0, json={"label": -1}), "holds no class"),
        (sample("a", 0) | {"a.json": b"{"}, r"a\.json is not readable"),
        (sample("a", 0, cls=0) | sample("b", 0, cls="cat"), "some labels are numbers and some are names"),
        (sample("a", 0, cls=0), "1 class, but a label is 0"),
    ],
)
def test_samples_that_are_none_are_refused_in_one_line(files: Files, message: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", files)
    with pytest.raises(AutoFormerError, match=message):
        webdataset.read(tmp_path)


def test_damaged_and_foreign_shards(tmp_path: Path) -> None:
    root = shards(tmp_path / "shards")
    whole = (root / "imagenet1k-train-0000.tar").read_bytes()
    (root / "imagenet1k-train-0000.tar").write_bytes(whole[:2000])
    with pytest.raises(AutoFormerError, match=r"train-0000\.tar: not readable as a plain tar"):
        webdataset.read(root)
    second = whole.index(b"n01_11.jpg")
    (root / "imagenet1k-train-0000.tar").write_bytes(whole[:second] + b"?" + whole[second + 1 :])
    with pytest.raises(AutoFormerError, match=rf"train-0000\.tar: .*a damaged one, at byte {second}\)"):
        webdataset.read(root)  # and does not end there
    (root / "imagenet1k-train-0000.tar").write_bytes(whole)
    write_tar(root / "more.tar", sample("z", 1, cls=1))
    with pytest.raises(AutoFormerError, match=r"more\.tar: names no split, but other shards do"):
        webdataset.read(root)
    other = tmp_path / "other"
    write_tar(other / "images.tar", {"jpg/image_00001.jpg": jpeg(0)})
    assert not webdataset.is_mine(other) and not webdataset.is_mine(tmp_path / "nowhere")
