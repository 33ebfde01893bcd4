"""Paths that users write in another Unicode form, or another case, than the files have."""

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

from autoformer.errors import printable


def as_spelt(path: Path) -> Path:
    """The path itself if it is there, or the only one that differs in Unicode form alone: they look the same."""
    return _found(path, _composed) or path


def hint(path: Path) -> str:
    """A question after the refusal of a missing path: the only one that differs in case or outer blanks; "" if none."""
    found = _found(path, lambda name: _composed(name).strip().casefold())
    return f"; did you mean {printable(str(found))}?" if found and found != path else ""


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _found(path: Path, form: Callable[[str], str]) -> Path | None:
    """The only path whose names have the same forms."""
    if os.path.lexists(path):
        return path
    here = Path(path.anchor)
    for name in path.parts[len(here.parts) :]:
        if not os.path.lexists(here / name):
            try:
                same = [each for each in os.listdir(here) if form(each) == form(name)]  # noqa: PTH208 (names alone)
            except OSError:
                return None
            if len(same) != 1:
                return None
            name = same[0]
        here /= name
    return here
