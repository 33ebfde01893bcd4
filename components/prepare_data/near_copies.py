"""Images that look like another without its pixels: exports in another format, size or quality. They are reported only.

The look is a difference hash: 64 signs of horizontal differences of a picture of 9 x 8 grey pixels. Of 90 parts of
scikit-image's photographs in six other encodings (JPEG 95, 75, 50, WebP, GIF, half the size), both limits below found
519 of 540 where packed to 256 pixels, 505 where packed to 73, and no pair of two different parts.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from autoformer.errors import quantity
from autoformer.images.pixels import open_image
from components.prepare_data.png import raw_rows

_SIGNS = 3  # that may differ
_LEVELS = 16  # of 255, largest difference of small pictures
_SMALL = (16, 16)
_REDUCED = 16  # pixels of a side after a first, fast reduction
_BANDS = 4  # of 16 signs: of two looks that differ in `_SIGNS`, one band is equal
_MOST_ALIKE = 30  # looks with an equal band: more are of images that all look alike, such as X-rays


def look_of(image: Image.Image) -> int:
    """The look of an image of mode L or RGB; 0 of one colour."""
    smaller = image.reduce(max(1, min(image.size) // _REDUCED))
    grey = raw_rows(smaller.convert("L").resize((9, 8), Image.Resampling.BOX), 9)
    levels = np.frombuffer(grey, np.uint8).reshape(8, 9)
    return int.from_bytes(np.packbits(levels[:, 1:] > levels[:, :-1]).tobytes(), "big")


def near_copies(rows: Sequence[Mapping[str, str]], looks: Sequence[int], folder: Path) -> list[str]:
    """A note if there are some.

    Args:
        rows: archive in `folder`, offset, size, checksum, label and source of each image.
        looks: of each row.
    """
    small: dict[int, npt.NDArray[np.int64]] = {}

    def picture(row: int) -> npt.NDArray[np.int64]:
        if row not in small:
            small[row] = _small_picture(rows[row], folder)
        return small[row]

    pairs: dict[int, int] = {}  # the later image -> the earlier one
    for earlier, later in _candidates(rows, looks):
        if later not in pairs and np.abs(picture(earlier) - picture(later)).max() <= _LEVELS:
            pairs[later] = earlier
    if not pairs:
        return []
    later, earlier = next(iter(pairs.items()))
    others = sum(rows[one]["label"] != rows[other]["label"] for one, other in pairs.items())
    return [
        f"{quantity(len(pairs), 'image looks', 'images look')} like another in another format, size or quality, such "
        f"as {rows[later]['source']} = {rows[earlier]['source']}"
        + (f", {others:,} of them in another class" if others else "")
        + ": one may be trained on and the other tested; keep one of each"
    ]


def _candidates(rows: Sequence[Mapping[str, str]], looks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Pairs of rows with other pixels whose looks differ in few signs, the earlier row first, in order."""
    first: dict[str, int] = {}
    for number, row in enumerate(rows):
        first.setdefault(row["checksum"], number)
    compared = np.array([number for number in first.values() if looks[number]], np.int64)
    values = np.array(looks, np.uint64)[compared]
    found = {
        (one, other)
        for band in range(_BANDS)
        for numbers in _groups(compared, values >> np.uint64(16 * band) & np.uint64(0xFFFF))
        for one, other in combinations(numbers, 2)
        if (looks[one] ^ looks[other]).bit_count() <= _SIGNS
    }
    yield from sorted(found)


def _groups(numbers: npt.NDArray[np.int64], keys: npt.NDArray[np.uint64]) -> Iterator[list[int]]:
    """The numbers of each key that has two to `_MOST_ALIKE`, in their order."""
    order = np.argsort(keys, kind="stable")
    _, starts, counts = np.unique(keys[order], return_index=True, return_counts=True)
    few = (counts > 1) & (counts <= _MOST_ALIKE)
    for start, count in zip(starts[few].tolist(), counts[few].tolist(), strict=True):
        yield numbers[order[start : start + count]].tolist()


def _small_picture(row: Mapping[str, str], folder: Path) -> npt.NDArray[np.int64]:
    with (folder / row["archive"]).open("rb") as file:
        file.seek(int(row["offset"]))
        image = open_image(file.read(int(row["size"])))
    colours = image if image.mode == "RGB" else image.convert("RGB")  # which would copy one of that mode
    return np.asarray(colours.resize(_SMALL, Image.Resampling.BOX)).astype(np.int64)
