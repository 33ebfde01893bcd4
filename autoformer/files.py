"""Files that are written whole or not at all, and hashes of what they hold."""

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import yaml

from autoformer.errors import AutoFormerError

_TICK_NS = 2_000_000_000  # of the coarsest clock of a file system
_FREE = "free some space there, and give the same command again"
_CHOOSE = "choose a place that may be written to, or change its permissions"
_ANSWERS = {
    errno.ENOSPC: _FREE, errno.EDQUOT: _FREE, errno.EFBIG: _FREE, errno.EROFS: _CHOOSE, errno.EACCES: _CHOOSE,
    errno.EPERM: _CHOOSE, errno.ENOTDIR: _CHOOSE, errno.EEXIST: _CHOOSE, errno.EIO: "see to the disk",
}  # fmt: skip


class UnwritableError(AutoFormerError):
    """A disk that is full, or a place that cannot be written to."""

    def __init__(self, path: str, number: int) -> None:
        super().__init__(f"{path}: {os.strerror(number).lower()}; {_ANSWERS[number]}")
        self.path, self.number = path, number


def unwritable(error: OSError) -> UnwritableError | None:
    """One line for an error of that kind; None for any other."""
    return UnwritableError(str(error.filename or "a file"), error.errno) if error.errno in _ANSWERS else None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes the place of `path` by one rename.

    Works for a file and for a folder that the caller makes. On an error the temporary is removed and
    whatever stood at `path` before still stands there. All of it is on the disk before the rename, so that a
    machine that loses its power keeps the one or the other.

    Raises:
        UnwritableError: the disk is full, or the place cannot be written to.
    """
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        put_in_place(temporary, path)
    except (OSError, UnwritableError) as error:
        where, number = (
            (error.path, error.number) if isinstance(error, UnwritableError) else (error.filename, error.errno)
        )
        if number not in _ANSWERS or not str(where or path).startswith(str(path.parent)):
            raise
        raise UnwritableError(str(path), number) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with contextlib.suppress(NotADirectoryError):  # its parent is a file, which the error above says
                temporary.unlink(missing_ok=True)


def put_in_place(temporary: Path, path: Path) -> None:
    """Let a file or folder, once it is on the disk, take the place of `path`, beside it, by one rename."""
    _flush(temporary)
    if temporary.is_dir():
        _replace_folder(temporary, path)
    else:
        temporary.replace(path)


def _flush(path: Path) -> None:
    """Wait until a file, or all that a folder holds, is on the disk."""
    for each in [path, *(path.rglob("*") if path.is_dir() else ())]:
        handle = os.open(each, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _replace_folder(temporary: Path, path: Path) -> None:
    """A rename refuses a folder that is not empty: the two change places, or else the old one steps aside first."""
    if not path.exists():
        temporary.replace(path)
    elif not _exchange(temporary, path):
        aside = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.old"
        path.replace(aside)
        try:
            temporary.replace(path)
        except BaseException:
            aside.replace(path)
            raise
        shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change their names at one stroke; False where the system cannot (Linux can, by renameat2)."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises `AutoFormerError` naming the file where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AutoFormerError(f"{path}: no such file; run the step that makes it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise AutoFormerError(f"{path}: not readable as JSON ({error}); run the step that makes it again") from None


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which PyYAML would keep the last and say nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: list[Any] = []
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if name in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, f"the key '{name}' is there twice", key.start_mark)
            seen.append(name)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """Parse a YAML file. Raises `AutoFormerError` naming file and line where it is missing or malformed."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise AutoFormerError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise _not_yaml(str(path), error) from None


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML text. Raises `AutoFormerError` naming `where` it is from and the line where it is malformed."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _not_yaml(where, error) from None


def _not_yaml(where: str, error: Exception) -> AutoFormerError:
    return AutoFormerError(f"{where}: not readable as YAML: {' '.join(str(error).split())}")


def canonical_json(value: Any) -> str:
    """One text for one value: keys sorted, no spaces. What hashes are made of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def hash_value(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """sha256 of the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_path(path: Path, hash_of: Callable[[Path], str] = hash_file) -> str:
    """sha256 of a file, or of the names and hashes of all files below a folder.

    `hash_of`: sha256 of a file; `HashCache` spares reading a large one each time.
    """
    if path.is_file():
        return hash_of(path)
    if not path.is_dir():
        raise AutoFormerError(f"{path}: no such file or folder; run the step that makes it")
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return hash_value([[file.relative_to(path).as_posix(), hash_of(file)] for file in files])


class FileState(NamedTuple):
    """By what a changed file is told from the one that it was, without reading it."""

    path: str
    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> Self:
        real = path.resolve()
        found = real.stat()
        return cls(str(real), found.st_size, found.st_mtime_ns, found.st_ino)


class HashCache:
    """sha256 of files, remembered as DVC does: a file of the same path, size, time of change and inode is the same.

    Small files are read each time, and so are those that were changed just now, since a second change within one tick
    of the clock would leave no trace. Several processes may share the place: each adds lines, and damaged ones count
    for nothing.

    Args:
        place: a file of lines of JSON; made where it is missing.
        min_bytes: of a file that is worth remembering.
    """

    def __init__(self, place: Path, min_bytes: int = 2**24) -> None:
        self._place, self._least_bytes = place, min_bytes

    def __call__(self, path: Path) -> str:
        state = FileState.of(path)
        if state.size < self._least_bytes:
            return hash_file(path)
        return self._known().get(state) or self.remember(state, hash_file(path))

    def remember(self, state: FileState, sha256: str) -> str:
        """Note what a file's bytes hashed to, unless it has changed since `state` was taken."""
        settled = time.time_ns() - state.mtime_ns > _TICK_NS
        if settled and FileState.of(Path(state.path)) == state:
            line = canonical_json({"file": state, "sha256": sha256}) + "\n"
            with contextlib.suppress(OSError):  # what cannot be remembered is read again
                self._place.parent.mkdir(parents=True, exist_ok=True)
                with self._place.open("ab", buffering=0) as file:  # one write: whole lines, whoever else writes
                    file.write(line.encode())
        return sha256

    def _known(self) -> dict[FileState, str]:
        if not self._place.is_file():
            return {}
        known = {}
        for line in self._place.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                known[FileState(*entry["file"])] = str(entry["sha256"])
        return known
