"""Find the accepted folder inside of a refused one: many archives wrap everything in an outer folder."""

import contextlib
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from autoformer.errors import AutoFormerError
from components.prepare_data.listing import folders_in
from components.prepare_data.sources import discover


def accepted_inside(folder: Path, accepts: Callable[[Path], bool]) -> Path | None:
    """The outermost accepted folder below `folder`, descending while there is only one folder; None if none is."""
    inside = _only_folder(folder)
    while inside is not None and not accepts(inside):
        inside = _only_folder(inside)
    return inside


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


def _only_folder(folder: Path) -> Path | None:
    try:
        below = folders_in(folder)
    except AutoFormerError:  # no folder, or one that may not be read
        return None
    return below[0] if len(below) == 1 else None
