"""Find the accepted folder inside of a refused one: archives have an outer folder, and annotations beside."""

import contextlib
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from autoformer.errors import AutoFormerError
from components.prepare_data.listing import folders_in
from components.prepare_data.sources import discover

_MOST = 8  # folders beside each other that are looked into


def accepted_inside(folder: Path, accepts: Callable[[Path], bool]) -> Path | None:
    """The outermost accepted folder below `folder`, if it is the only one; None if none or several are.

    Descends while there is only one folder.
    """
    while below := _folders(folder):
        accepted = [inside for inside in below[:_MOST] if accepts(inside)]
        if accepted or len(below) > 1:
            return accepted[0] if len(accepted) == 1 and len(below) <= _MOST else None
        folder = below[0]
    return None


@contextlib.contextmanager
def pointing_inside(source: Path) -> Iterator[None]:
    """Add to the error about a user's images the folder inside of `source` that would be accepted."""
    try:
        yield
    except AutoFormerError as error:
        inside = None if _is_source(source) else accepted_inside(source, _is_source)
        if inside is None:
            raise
        raise AutoFormerError(f"{error}; {did_you_mean('DATA', inside)}") from None


def did_you_mean(variable: str, path: Path) -> str:
    return f"did you mean {variable}={shlex.quote(str(path))}?"


def _is_source(path: Path) -> bool:
    try:
        discover(path)
    except AutoFormerError:
        return False
    return True


def _folders(path: Path) -> list[Path]:
    try:
        return folders_in(path)
    except AutoFormerError:  # no folder, or one that may not be read
        return []
