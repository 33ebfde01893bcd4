"""The loader's benchmark reads the same images on both sides, and measures every figure of its table."""

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.loader import Shape, make_images, measure

TINY = Shape(250, 240, 90, 8, 1.0)


def test_both_sides_read_the_same_images(tmp_path: Path) -> None:
    tree, split = make_images(tmp_path, TINY)
    files = sorted(tree.rglob("*.JPEG"), key=lambda path: path.name)
    assert [split.pictures.read(index) for index in range(8)] == [file.read_bytes() for file in files]
    assert len({file.read_bytes() for file in files}) == 8 and split.labels.tolist() == list(range(8))
    assert all(np.asarray(Image.open(file)).shape == (240, 250, 3) for file in files)


def test_every_figure_is_measured() -> None:
    result = measure(quick=True, shapes=[TINY], workers=1)
    names = [row["name"].removeprefix("250 x 240, ").partition(":")[0] for row in result["rows"]]
    assert names == ["ImageFolder + timm", "exact", "fast", "fast, cached", "fast"]
    assert min(row["value"] for row in result["rows"]) > 0 and result["rows"][2]["limit"] == TINY.min_ratio
    seconds = result["seconds"]["250 x 240"]
    assert result["rows"][1]["value"] == seconds["ImageFolder + timm"][0] / seconds["exact"][0]
