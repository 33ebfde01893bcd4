"""The loader's benchmark measures what it says: the same images on both sides, every figure of its table."""

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.loader import Shape, make_images, measure_shapes, table

TINY = Shape(250, 240, 90, 8, 1.0)


def test_both_sides_read_the_same_images(tmp_path: Path) -> None:
    made = make_images(tmp_path, TINY)
    files = sorted(made.tree.rglob("*.JPEG"), key=lambda path: path.name)
    assert [made.split.pictures.read(index) for index in range(8)] == [file.read_bytes() for file in files]
    assert len({file.read_bytes() for file in files}) == 8 and made.split.labels.tolist() == list(range(8))
    assert all(np.asarray(Image.open(file)).shape == (240, 250, 3) for file in files)


def test_every_figure_is_measured() -> None:
    result = measure_shapes([TINY], rounds=1, batches=1, batch_size=4, workers=1)
    (of,) = result["shapes"]
    names = ["ImageFolder + timm", "exact", "fast", "fast, kept"]
    assert list(of["images_per_second"]) == list(of["ratio"]) == list(of["processor_ms"]) == names
    assert min(of["images_per_second"].values()) > 0 and of["ratio"]["ImageFolder + timm"] == 1
    stages = {name: {stage for stage, ms in side.items() if ms} for name, side in of["profile_ms"].items()}
    assert stages["ImageFolder + timm"] - stages["fast"] == {"to tensor", "erase"}  # by the training process
    assert stages["fast"] - stages["ImageFolder + timm"] == {"training process"}
    assert all(name in table(result) for name in names)
