"""A folder of photographs as a user may have it: many sizes, modes and formats, some turned, some broken.

There are no labelled photographs in any package, so they are made from the sample photographs of scikit-image: each
class is one picture, each image a random part of it, turned, relit, and saved in some format.
"""

from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageEnhance

CLASSES = ("astronaut", "brick", "cat", "coffee", "grass", "gravel", "rocket")
_FILES = {"cat": "chelsea.png", "rocket": "rocket.jpg"}
_TURNED = 6  # EXIF orientation: the camera was held upright
_MODES = ("RGB", "RGB", "RGB", "RGB", "L", "RGBA", "CMYK", "P")


def sample_photograph(name: str) -> Image.Image:
    """One of scikit-image's sample pictures, in RGB."""
    from skimage import data

    folder = Path(data.__file__).parent
    picture = Image.open(folder / _FILES.get(name, f"{name}.png")).convert("RGB")
    picture.thumbnail((400, 400))
    return picture


def make_photographs(folder: Path, images: int, classes: tuple[str, ...] = CLASSES, seed: int = 0) -> None:
    """Write `images` pictures into class folders, as evenly as it goes."""
    rng = Random(seed)
    pictures = {name: sample_photograph(name) for name in classes}
    for number in range(images):
        name = classes[number % len(classes)]
        picture = _part(pictures[name], rng)
        (folder / name).mkdir(parents=True, exist_ok=True)
        _save(picture, folder / name / f"IMG_{number:04d}", rng)


def _part(picture: Image.Image, rng: Random) -> Image.Image:
    side = rng.uniform(0.4, 0.9)
    width, height = int(picture.width * side), int(picture.height * side)
    left, top = rng.randrange(picture.width - width), rng.randrange(picture.height - height)
    part = picture.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC).crop((left, top, left + width, top + height))
    part = ImageEnhance.Brightness(part).enhance(rng.uniform(0.6, 1.4))
    part = ImageEnhance.Color(part).enhance(rng.uniform(0.5, 1.5))
    longest = rng.choice((90, 160, 240, 480, 900))
    scale = longest / max(part.size)
    part = part.resize((max(40, int(part.width * scale)), max(40, int(part.height * scale))))
    noise = np.random.default_rng(rng.randrange(2**32)).normal(0, 6, (part.height, part.width, 3))
    return Image.fromarray((np.asarray(part) + noise).clip(0, 255).astype(np.uint8))


def _save(picture: Image.Image, path: Path, rng: Random) -> None:
    mode = rng.choice(_MODES)
    picture = picture.convert(mode)
    if mode in ("RGBA", "P"):
        picture.save(path.with_suffix(".png"))
    elif rng.random() < 0.2:  # stored lying down, with a note to turn it
        exif = Image.Exif()
        exif[0x0112] = _TURNED
        picture.transpose(Image.Transpose.ROTATE_90).save(path.with_suffix(".jpg"), quality=90, exif=exif)
    else:
        picture.save(path.with_suffix(rng.choice((".jpg", ".JPG", ".jpeg"))), quality=rng.choice((60, 90)))


def main() -> None:
    import sys

    if len(sys.argv) != 3:
        raise SystemExit("usage: python tests/photographs.py FOLDER IMAGES")
    make_photographs(Path(sys.argv[1]), int(sys.argv[2]))
    print(f"{sys.argv[1]}: {sys.argv[2]} images of {len(CLASSES)} classes")


if __name__ == "__main__":
    main()
