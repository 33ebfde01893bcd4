"""Small folders of images as a user may have them, in milliseconds: each image is its own noise."""

from pathlib import Path

import numpy as np
from PIL import Image


def noise(seed: int, width: int = 12, height: int = 10, mode: str = "RGB") -> Image.Image:
    """Brighter with its number, so that images differ in the mean as well."""
    values = np.random.default_rng(seed).integers(0, 100 + seed % 150, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def write_images(folder: Path, images: int, seed: int = 0, suffix: str = ".png") -> Path:
    """Different images `000.png` and so on; no two seeds below 1000 share one."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(images):
        noise(1000 * seed + number).save(folder / f"{number:03d}{suffix}")
    return folder


def class_folders(root: Path, *counts: int, start: int = 0) -> Path:
    """Classes a, b, … with so many images each."""
    for label, images in enumerate(counts):
        write_images(root / "abcdefgh"[label], images, seed=start + label)
    return root
