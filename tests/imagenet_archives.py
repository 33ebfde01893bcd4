"""ImageNet's archives in their real layout, with a few small pictures: written by Python's `tarfile`."""

import io
import tarfile
from hashlib import md5
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from autoformer.images.source import SourceArchive
from benchmarks.index import devkit
from components.prepare_data.imagenet import DEVKIT, TRAIN, VAL, Published

# wnid -> (the devkit's own number, names). Sorted wnids stand in another order than the numbers, as in the real one.
CLASSES = {
    "n02119789": (1, "kit fox, Vulpes macrotis"),
    "n01440764": (3, "tench, Tinca tinca"),
    "n03400231": (2, "frying pan, frypan, skillet"),
}
ORDER = ("n01440764", "n02119789", "n03400231")
COLOURS = {"n01440764": (40, 120, 60), "n02119789": (200, 120, 40), "n03400231": (90, 90, 110)}


def picture(wnid: str, rng: np.random.Generator) -> Image.Image:
    """Of its class's colour, with noise, of any size."""
    height, width = (int(side) for side in rng.integers(20, 60, 2))
    pixels = rng.normal(COLOURS[wnid], 20, (height, width, 3)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def tar_of(files: dict[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=tarfile.GNU_FORMAT) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), 1339789000
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def train_files(per_class: int = 5, seed: int = 0) -> dict[str, dict[str, bytes]]:
    """wnid -> name -> content."""
    rng = np.random.default_rng(seed)
    return {
        wnid: {f"{wnid}_{10 + 3 * number}.JPEG": encoded(picture(wnid, rng)) for number in range(per_class)}
        for wnid in CLASSES
    }


def val_files(truth: list[int], seed: int = 1) -> dict[str, bytes]:
    rng = np.random.default_rng(seed)
    wnid_of = {number: wnid for wnid, (number, _) in CLASSES.items()}
    return {
        f"ILSVRC2012_val_{place:08d}.JPEG": encoded(picture(wnid_of[number], rng))
        for place, number in enumerate(truth, start=1)
    }


TRUTH = [3, 1, 2, 2, 1, 3]  # the devkit's own numbers


def write_archives(
    folder: Path,
    train: dict[str, dict[str, bytes]] | None = None,
    val: dict[str, bytes] | None = None,
    truth: list[int] = TRUTH,
) -> Published:
    """Write the three archives; what a reader must hold them to."""
    train = train_files() if train is None else train
    val = val_files(truth) if val is None else val
    contents = {
        TRAIN: tar_of({f"{wnid}.tar": tar_of(files) for wnid, files in train.items()}),
        VAL: tar_of(val),
        DEVKIT: devkit(truth, CLASSES),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    archives = {
        name: SourceArchive(md5=md5(content).hexdigest(), bytes=len(content)) for name, content in contents.items()
    }
    return Published(archives, sum(map(len, train.values())), len(val), len(CLASSES))


def write_source(data: Path, location: Path, published: Published) -> None:
    data.mkdir(parents=True, exist_ok=True)
    archives = {name: archive.model_dump() for name, archive in published.archives.items()}
    (data / "source.yaml").write_text(yaml.safe_dump({"location": str(location), "archives": archives}))
