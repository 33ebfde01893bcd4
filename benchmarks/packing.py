"""Packing a user's images: processor time against Pillow's own decoding and one resize of the same files.

Both use all cores. Packing also hashes the files, reads their headers, writes PNGs into a tar and hashes those. The
baseline decodes at full size: packing may gain by decoding a large JPEG at a fraction of it.

A pack costs a few milliseconds beside its images, for threads, locks and tables. So there are 400 of the small images:
real folders hold thousands. Removing the pack after a round is not measured.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

from autoformer.cores import cores
from benchmarks.loader import Shape, make_images
from benchmarks.rows import Row, elapsed, interleaved, measured, ratio
from components.prepare_data.pack import pack

MAX_RATIO = 1.3
CHANNELS, MAX_UNREADABLE = 3, 0.0


class Case(NamedTuple):
    name: str
    make: Callable[[Path, int], Path]  # folder and number of images -> class folders
    images: int
    shorter_side: int  # of the packed images, in pixels


def clip_art(folder: Path, images: int, sides: tuple[int, int] = (1200, 900)) -> Path:
    """Outlined shapes on transparent ground."""
    rng = Random(0)
    for number in range(images):
        image = Image.new("RGBA", sides)
        draw = ImageDraw.Draw(image)
        for _ in range(12):
            x, y, radius = rng.randrange(sides[0]), rng.randrange(sides[1]), rng.randrange(20, 200)
            colour = tuple(rng.randrange(256) for _ in range(3))
            box = (x - radius, y - radius, x + radius, y + radius)
            draw.ellipse(box, fill=(*colour, rng.choice((128, 255))), outline="black", width=5)
        path = folder / "art" / f"class{number % 2}" / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return folder / "art"


def photographs(width: int, height: int, quality: int) -> Callable[[Path, int], Path]:
    """JPEG files of this size."""
    return lambda folder, images: make_images(folder, Shape(width, height, quality, images, 1.0))[0]


CASES = (
    Case("clip art of 1200 x 900 to 73 pixels", clip_art, 40, 73),
    Case("photographs of 500 x 375 to 73 pixels", photographs(500, 375, 95), 400, 73),
    Case("photographs of 2000 x 1500 to 256 pixels", photographs(2000, 1500, 85), 20, 256),
    Case("photographs of 500 x 375 to 256 pixels", photographs(500, 375, 95), 400, 256),
)


def decode_and_resize(files: Sequence[Path], shorter_side: int) -> None:
    def run(file: Path) -> None:
        with Image.open(file) as image:
            scale = shorter_side / min(image.size)
            image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(run, files))


def processor_seconds(packs: Path, run: Callable[[], object]) -> float:
    """Of all threads. The folder of packs exists and is empty before `run`."""
    packs.mkdir()
    try:
        return elapsed(run, time.process_time)
    finally:
        shutil.rmtree(packs)


def measure(quick: bool = False, cases: Sequence[Case] = CASES) -> dict[str, Any]:
    """`quick`: a few images, one round."""
    rows, seconds = [], {}
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            source = case.make(Path(folder), 4 if quick else case.images)
            files = sorted(path for path in source.rglob("*") if path.is_file())
            packs, unwatched = Path(folder) / "packs", lambda *_: None
            runs = {
                "pack": partial(pack, source, packs, case.shorter_side, CHANNELS, MAX_UNREADABLE, unwatched),
                "Pillow": partial(decode_and_resize, files, case.shorter_side),
            }
            seconds[case.name] = taken = interleaved(runs, 1 if quick else 5, partial(processor_seconds, packs))
        value = ratio(taken["pack"], taken["Pillow"])
        rows.append(Row(f"{case.name}: processor time / Pillow's decoding and resizing", value, "x", MAX_RATIO))
    return measured(rows, seconds=seconds)
