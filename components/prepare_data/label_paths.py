"""Find the files that a CSV names: by their paths as written, in another spelling, or below another folder."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from components.prepare_data.listing import alike, is_system

_SAMPLE = 200  # paths
_FIRST = 5  # of them, one of which must fit
_MOST_FOLDERS = 200


class Move(NamedTuple):
    """What is meant by paths of another folder: `base` in place of the first `left` of their folders."""

    base: str = ""
    left: int = 0

    def applied(self, path: str) -> str:
        if self == UNMOVED:
            return path
        return "/".join([*filter(None, [self.base]), *_parts(path)[self.left :]])


UNMOVED = Move()


class Finder:
    """Find the file of a path: as written, or the only file whose name differs in spelling alone."""

    def __init__(self, root: Path, move: Move = UNMOVED) -> None:
        self.root, self.move, self.respelt = root, move, 0
        self._listings: dict[Path, dict[str, list[str]]] = {}

    def find(self, path: str) -> Path:
        """The file; the path as written if no file or several match."""
        path = self.move.applied(path)
        file = Path(os.path.normpath(self.root / path))
        if os.path.lexists(file):  # creating a million `Path`s would be slow
            return file
        if "\\" in path:  # written by Windows
            if re.match(r"[A-Za-z]:|\\\\", path):
                return Path(path)  # an absolute path of another machine, so outside
            file = Path(os.path.normpath(self.root / path.replace("\\", "/")))
        if not file.is_relative_to(self.root):
            return file
        here = self.root
        for name in file.relative_to(self.root).parts:
            meant = self._listing(here).get(alike(name), [])
            if name not in meant and len(meant) != 1:
                return file
            here /= name if name in meant else meant[0]
        self.respelt += 1
        return here

    def _listing(self, folder: Path) -> dict[str, list[str]]:
        """Normalised name, with and without suffix -> names in a folder."""
        if folder not in self._listings:
            names: dict[str, list[str]] = {}
            for name in os.listdir(folder) if folder.is_dir() else []:  # noqa: PTH208
                for key in {alike(name), alike(os.path.splitext(name)[0])}:  # noqa: PTH122
                    names.setdefault(key, []).append(name)
            self._listings[folder] = names
        return self._listings[folder]


def leads_out(path: str) -> bool:
    """Whether a path, as written, is absolute or begins above its folder."""
    return re.match(r"([A-Za-z]:)?[\\/]|[A-Za-z]:|\.\.([\\/]|$)", path) is not None


def _parts(path: str) -> list[str]:
    """Folders and name, without the root or the drive of an absolute path."""
    plain = path if "/" in path else path.replace("\\", "/")
    return [part for part in re.sub(r"^[A-Za-z]:", "", plain).split("/") if part not in ("", ".", "..")]


def find_move(root: Path, paths: Iterable[str]) -> Move:
    """The move by which most of the paths are files below `root`; `UNMOVED` if one is a file as written, or it is open.

    Tables lie beside the folder of their images (`images/`), or their paths begin at a folder above or on another
    computer. One move holds for a whole table: a single image that is missing is never looked for elsewhere.
    """
    finder, sample, stride = Finder(root), list[str](), 1
    for number, path in enumerate(paths):
        if path and number % stride == 0:
            if not sample and _is_there(finder.find(path), root):
                return UNMOVED  # as of most tables, whose other rows are then read once
            sample.append(path)
            if len(sample) > _SAMPLE:
                sample, stride = sample[::2], 2 * stride
    if not sample or any(_is_there(finder.find(path), root) for path in sample):
        return UNMOVED
    found: dict[Move, list[Path]] = {}
    depth = max(len(_parts(path)) for path in sample)
    for move in (Move(base, left) for left in range(depth) for base in _folders(root)):
        finder.move = move
        if any(_is_there(finder.find(path), root) for path in sample[:_FIRST]):
            found[move] = [file for file in map(finder.find, sample) if _is_there(file, root)]
    most = max((len(set(files)) for files in found.values()), default=0)
    best = [move for move, files in found.items() if len(set(files)) == most]
    return best[0] if best and all(found[move] == found[best[0]] for move in best) else UNMOVED


def _is_there(file: Path, root: Path) -> bool:
    return file.is_relative_to(root) and os.path.isfile(file)  # noqa: PTH113 (pathlib raises for too long a name)


def _folders(root: Path) -> list[str]:
    """The folders below `root`, itself first, as relative paths."""
    found = list[str]()
    for folder, below, _ in os.walk(root):  # ignores errors
        below[:] = sorted(name for name in below if not is_system(name))
        name = os.path.relpath(folder, root).replace(os.sep, "/")
        found.append("" if name == "." else name)
        if len(found) == _MOST_FOLDERS:
            break
    return found
