"""The published protocol, end to end, against a plain loop over torchvision's own dataset and transforms."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms as T
import yaml
from official_layout import write_checkpoint
from PIL import Image
from small import small_space
from torchvision.datasets import ImageFolder
from transfer_archives import jpeg, write_tar
from user_images import noise

from autoformer.evaluation import wilson_interval
from autoformer.images.pixels import model_pixels
from autoformer.official import load_official, read_checkpoint
from autoformer.space import Choices, SearchSpace, SubnetSpec, SupernetSize
from commands.evaluate_official import main, published_shorter_side

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 48
SPEC = SubnetSpec(2, 12, (2, 1), (2.0, 1.3))
CLASSES = [f"n0000000{number}" for number in range(7)]


def protocol(size: int) -> T.Compose:
    """As the official code's build_transform has it for evaluation."""
    return T.Compose(
        [
            T.Resize(int((256 / 224) * size), interpolation=T.InterpolationMode.BICUBIC),
            T.CenterCrop(size),
            T.ToTensor(),
            T.Normalize(MEAN, STD),
        ]
    )


@pytest.mark.parametrize("size", [224, 288, 48, 47, 31])
def test_pixels_are_those_of_torchvision(size: int) -> None:
    """Every one of them, whatever the shape: where a side or a margin is odd, where nothing is left to resize."""
    resize, rng = T.Compose(protocol(size).transforms[:2]), np.random.default_rng(size)
    shapes = [tuple(rng.integers(40, 420, 2).tolist()) for _ in range(30)]
    shorter = published_shorter_side(size)
    for width, height in [*shapes, (500, 375), (375, 500), (shorter, shorter), (shorter + 3, shorter), (shorter, 333)]:
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        ours = model_pixels(picture, 3, size, shorter)
        assert np.array_equal(ours, np.asarray(resize(picture)).transpose(2, 0, 1)), (width, height)


def odd_jpegs() -> list[bytes]:
    """What there is in ImageNet: grey, CMYK, a PNG named .JPEG, and a note to turn that nobody has followed."""
    found = []
    exif = Image.Exif()
    exif[0x0112] = 6
    for mode, kind, options in (
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("RGB", "PNG", {}),
        ("RGB", "JPEG", {"exif": exif}),
    ):
        out = io.BytesIO()
        noise(len(found), 90, 60).convert(mode).save(out, kind, **options)
        found.append(out.getvalue())
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Space, subnet, official checkpoint, and a tree of images in ImageNet's layout."""
    home = tmp_path_factory.mktemp("official")
    space = small_space(
        name="small", image_size=SIZE, patch_size=16, num_classes=len(CLASSES), max_relative_position=4,
        supernet=SupernetSize(embed_dim=20, depth=3, num_heads=3, mlp_ratio=2.0),
        choices=Choices(embed_dim=(12, 16), depth=(2, 3), num_heads=(1, 2, 3), mlp_ratio=(1.3, 2.0)),
    )  # fmt: skip
    (home / "space.yaml").write_text(yaml.safe_dump(space.model_dump(mode="json")))
    published = {"top1_percent": 99.0, "top5_percent": 99.9, "source": "nowhere"}
    subnet = {"name": "s", "space": str(home / "space.yaml"), "source": "a test", "subnet": SPEC.to_dict()}
    (home / "subnet.yaml").write_text(yaml.safe_dump(subnet | {"published": published}))
    write_checkpoint(home / "supernet.pth", space, deviation=0.4)
    rng = np.random.default_rng(0)
    contents = [jpeg(seed, *rng.integers(40, 160, 2).tolist()) for seed in range(24)] + odd_jpegs()
    for number, content in enumerate(contents):
        for split in ("train", "val"):
            folder = home / "imagenet" / split / CLASSES[number % len(CLASSES)]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:03d}.JPEG").write_bytes(content if split == "val" else b"never read")
    return home


@pytest.fixture(autouse=True)
def _work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOFORMER_WORK", str(tmp_path / "work"))


def run(home: Path, *more: str, data: str = "imagenet") -> int:
    arguments = ["--checkpoint", str(home / "supernet.pth"), "--subnet", str(home / "subnet.yaml")]
    return main([*arguments, "--data", str(home / data), "--device", "cpu", *more])


def figures(home: Path, out: Path, *more: str, data: str = "imagenet") -> dict[str, Any]:
    assert run(home, *more, "--out", str(out), data=data) == 0
    return json.loads(out.read_text())


def plain_logits(home: Path, size: int, offsets: Any = "keep") -> tuple[torch.Tensor, torch.Tensor]:
    """One image at a time."""
    space = SearchSpace.from_yaml(home / "space.yaml")
    supernet = load_official(read_checkpoint(home / "supernet.pth"), space).eval()
    model = supernet.extract(SPEC)
    if size != SIZE:
        model.set_input_size((size, size), offsets=offsets)
    images = ImageFolder(str(home / "imagenet" / "val"), protocol(size))
    with torch.no_grad():
        logits = [supernet(x[None], SPEC) if size == SIZE else model(x[None]) for x, _ in images]
    return torch.cat(logits), torch.tensor(images.targets)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_figures_equal_those_of_a_plain_loop(
    workers: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUTOFORMER_WORKERS", workers)
    found = figures(home, tmp_path / "out.json", "--batch-size", "5")
    logits, labels = plain_logits(home, SIZE)
    assert len(labels) == 28 and logits.argmax(1).unique().numel() > 2
    right = int((logits.argmax(1) == labels).sum())
    in_top5 = int((logits.topk(5).indices == labels[:, None]).any(1).sum())
    assert 0 < right < in_top5 < 28
    assert found["top1_percent"] == pytest.approx(100 * right / 28)
    assert found["top5_percent"] == pytest.approx(100 * in_top5 / 28)
    assert found["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)
    low, high = wilson_interval(right, 28)
    assert (found["top1_low_percent"], found["top1_high_percent"]) == pytest.approx((100 * low, 100 * high))
    assert (found["images"], found["split_images"], found["shorter_side"]) == (28, 28, 54)
    printed = capsys.readouterr().out
    assert f"top-1 {100 * right / 28:.2f} % (95 % interval" in printed
    assert "published: top-1 99.00 %, top-5 99.90 %, outside the interval (nowhere)" in printed


@pytest.mark.parametrize("offsets", ["keep", "stretch"])
def test_at_another_size(offsets: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(home, tmp_path / "out.json", "--size", "80", "--offsets", offsets)
    logits, labels = plain_logits(home, 80, offsets)
    assert found["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)
    assert found["published"] is None and "published" not in capsys.readouterr().out  # it is of another size


def test_a_part_of_the_images_is_of_all_classes(home: Path, tmp_path: Path) -> None:
    found = figures(home, tmp_path / "out.json", "--limit", "7")
    logits, labels = plain_logits(home, SIZE)
    every_fourth = slice(0, None, 4)
    right = (logits[every_fourth].argmax(1) == labels[every_fourth]).sum().item()
    assert (found["images"], found["split_images"]) == (7, 28)
    assert found["top1_percent"] == pytest.approx(100 * right / 7)
    assert labels[every_fourth].tolist() == list(range(7))


def test_shards_give_what_the_tree_gives(home: Path, tmp_path: Path) -> None:
    files = {}
    for label, name in enumerate(CLASSES):
        for file in sorted((home / "imagenet" / "val" / name).iterdir()):
            files |= {f"{name}_{file.stem}.jpg": file.read_bytes(), f"{name}_{file.stem}.cls": str(label).encode()}
    write_tar(home / "shards" / "imagenet-val-00.tar", files)
    shards = figures(home, tmp_path / "shards.json", data="shards")
    tree = figures(home, tmp_path / "tree.json")
    assert (shards["images"], shards["split"]) == (28, "val")
    same = ("top1_percent", "top5_percent", "split_hash")
    assert {key: shards[key] for key in same} == {key: tree[key] for key in same}
    assert shards["loss"] == pytest.approx(tree["loss"], rel=1e-6)


def test_bad_input_is_one_line(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*more: str, data: str = "imagenet") -> str:
        assert run(home, *more, "--out", str(tmp_path / "out.json"), data=data) == 2
        assert not (tmp_path / "out.json").exists()
        lines = [line for line in capsys.readouterr().err.splitlines() if line]
        assert len(lines) == 1
        return lines[0]

    assert "no such file or folder; it is made by https://github.com" in fails("--checkpoint", str(tmp_path / "none"))
    assert "is made by `make data`" in fails(data="nowhere")
    assert "patch_size 16 does not divide image_size 50" in fails("--size", "50")
    assert "'0': expected a number above 0" in fails("--limit", "0")
    assert "no file 'autoformer-tinny.yaml'" in fails("--subnet", "autoformer-tinny")
    assert "ImageNet has 7 classes, but 'autoformer-tiny' is for 1000" in fails("--subnet", "autoformer-tiny")
    (tmp_path / "no.pth").write_bytes(b"nothing")
    assert "not a readable checkpoint" in fails("--checkpoint", str(tmp_path / "no.pth"))
    write_checkpoint(tmp_path / "other.pth", small_space())
    assert "is it a checkpoint of" in fails("--checkpoint", str(tmp_path / "other.pth"))
    damaged = tmp_path / "damaged" / "val" / CLASSES[0]
    for name in CLASSES:
        for split in ("train", "val"):
            folder = tmp_path / "damaged" / split / name
            folder.mkdir(parents=True)
            (folder / "0.JPEG").write_bytes(jpeg(1))
    (damaged / "0.JPEG").write_bytes(b"no image")
    assert "image of 8 bytes: not an image" in fails("--data", str(tmp_path / "damaged"))
