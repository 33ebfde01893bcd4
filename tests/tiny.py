"""A tiny data set in the layout of the real one: gzipped IDX files with 10 classes that are easy to learn."""

import gzip
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from autoformer.images.card import DatasetCard
from components.prepare_data import fashion_mnist
from components.prepare_data.step import SPLITS, prepare, write_prepared
from runtime.common.sections import PrepareData

CLASSES = 10


class TinyData(NamedTuple):
    """What a step is given: `--data`, `--card` and the split files."""

    data: Path
    card_path: Path
    train: Path
    search: Path
    test: Path
    train_full: Path
    card: DatasetCard


def make_images(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (count, 28, 28) and labels uint8 (count,), equally many of each class: its own pattern, with noise."""
    patterns = np.random.default_rng(0).integers(40, 216, (CLASSES, 7, 7)).repeat(4, axis=1).repeat(4, axis=2)
    labels = rng.permutation(np.arange(count, dtype=np.uint8) % CLASSES)
    noisy = patterns[labels] + rng.normal(0, 40, (count, 28, 28))
    return noisy.clip(0, 255).astype(np.uint8), labels


def write_idx(folder: Path, prefix: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Write `<prefix>-images-idx3-ubyte.gz` and `<prefix>-labels-idx1-ubyte.gz`, the same bytes each time."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in (("images-idx3", images), ("labels-idx1", labels)):
        header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
        content = gzip.compress(header + values.tobytes(), mtime=0)
        (folder / f"{prefix}-{name}-ubyte.gz").write_bytes(content)


def read_idx(folder: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """An independent reading of the same files: (n, 28, 28) and (n,)."""
    with gzip.open(folder / f"{prefix}-images-idx3-ubyte.gz") as file:
        _, count, rows, columns = struct.unpack(">IIII", file.read(16))
        images = np.frombuffer(file.read(), dtype=np.uint8).reshape(count, rows, columns)
    with gzip.open(folder / f"{prefix}-labels-idx1-ubyte.gz") as file:
        file.read(8)
        return images, np.frombuffer(file.read(), dtype=np.uint8)


def make_tiny_data(root: Path, train: int = 600, test: int = 100, search: int = 100, seed: int = 0) -> TinyData:
    """Archives, card and splits below `root`; `train` counts the search images in."""
    rng = np.random.default_rng(seed)
    data = root / "data"
    write_idx(data, "train", *make_images(train, rng))
    write_idx(data, "t10k", *make_images(test, rng))
    paths = {name: root / "splits" / f"{name}.parquet" for name in SPLITS}
    card_path = root / "splits" / "card.json"
    prepared = prepare(data, fashion_mnist.index(data), PrepareData(search_images=search), seed)
    write_prepared(prepared, card_path, paths)
    return TinyData(data, card_path, **paths, card=prepared.card)
