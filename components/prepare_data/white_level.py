"""The white level of a user's 16-bit images: one for all, so that no image is brightened individually."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from autoformer.errors import AutoFormerError
from autoformer.images.pixels import WHITE_16_BIT, brightest, is_deep, open_image
from components.prepare_data.threads import in_order

_LEVELS = (255, 1023, 4095, 16383, WHITE_16_BIT)  # 8, 10, 12, 14 and 16 bits
START_BYTES = 32
# first bytes of PNG with 16 bits a channel; TIFF; binary PGM and PPM; JPEG 2000
_MAY_BE_DEEP = re.compile(rb"\x89PNG.{20}\x10|II[*+]|MM\x00[*+]|P[56]\s|\x00\x00\x00\x0cjP|\xff\x4f\xff\x51", re.DOTALL)


class Found(NamedTuple):
    images: int  # number of 16-bit images
    highest: int  # highest value in any of them
    white_level: int
    dark: int  # images that fit a lower level too: they appear dark if that is their range
    lower_level: int  # the smallest level that fits all of those


def may_be_deep(start: bytes) -> bool:
    """Whether a file with these first `START_BYTES` bytes may be a 16-bit image."""
    return _MAY_BE_DEEP.match(start) is not None


def find_white_level(paths: Sequence[Path]) -> Found | None:
    """The smallest of the levels (8 to 16 bits) that no image exceeds; None without 16-bit images.

    `paths`: all files that `may_be_deep`.
    """
    values = [value for value in in_order(_all_brightest, paths) if value is not None]
    if not values:
        return None
    white = _level(max(values))
    dark = [value for value in values if _level(value) < white]
    return Found(len(values), max(values), white, len(dark), _level(max(dark, default=0)))


def _level(value: int) -> int:
    return next(level for level in _LEVELS if level >= value)


def _all_brightest(paths: Sequence[Path]) -> list[int | None]:
    return [_brightest(path) for path in paths]


def _brightest(path: Path) -> int | None:
    """The highest value of a 16-bit image; None for other or unreadable images."""
    try:
        image = open_image(path)
        return brightest(image) if is_deep(image) else None
    except (OSError, AutoFormerError):  # packing reports the error
        return None
