"""Atomic writes of files and folders, and cached sha256 hashes of them."""

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

from autoformer.errors import AutoFormerError

_CLOCK_TICK_NS = 2_000_000_000  # the coarsest clock of a file system
_FREE = "free some space there, and give the same command again"
_CHOOSE = "choose a place that may be written to, or change its permissions"
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:4]
_UNFINISHED = re.compile(r"\..+\.(tmp|old|part)")
_ADVICE = {
    errno.ENOSPC: _FREE, errno.EDQUOT: _FREE, errno.EFBIG: _FREE, errno.EROFS: _CHOOSE, errno.EACCES: _CHOOSE,
    errno.EPERM: _CHOOSE, errno.ENOTDIR: _CHOOSE, errno.EEXIST: _CHOOSE, errno.EISDIR: _CHOOSE,
    errno.ENAMETOOLONG: "give a shorter path", errno.ELOOP: "a link that leads to itself; remove it",
    errno.EIO: "see to the disk",
}  # fmt: skip


class UnwritableError(AutoFormerError):
    """A full disk, or a path that cannot be written to."""

    def __init__(self, path: str, number: int) -> None:
        super().__init__(f"{path}: {os.strerror(number).lower()}; {_ADVICE[number]}")
        self.path, self.number = path, number


def unwritable(error: OSError) -> UnwritableError | None:
    """The `UnwritableError` for an error of that kind; None for any other."""
    return UnwritableError(str(error.filename or "a file"), error.errno) if error.errno in _ADVICE else None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, a file or a folder, in one rename.

    On an error the temporary is removed, and `path` is unchanged. The content is flushed to disk before the rename, so
    a power failure leaves the old or the new version. Temporaries that a killed process of this machine left are
    removed too.

    Raises:
        UnwritableError: the disk is full, or the path cannot be written to.
        AutoFormerError: the path is a pipe or a device, such as /dev/null, which a rename would remove.
    """
    temporary = path.parent / f".{path.name}.{_HOST}-{os.getpid()}-{uuid.uuid4().hex[:4]}.tmp"
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise AutoFormerError(f"{path}: a pipe or a device; name a file to write")
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        yield temporary
        put_in_place(temporary, path)
    except (OSError, UnwritableError) as error:
        where, number = (
            (error.path, error.number) if isinstance(error, UnwritableError) else (error.filename, error.errno)
        )
        if number not in _ADVICE or not str(where or path).startswith(str(path.parent)):
            raise
        raise UnwritableError(str(path), number) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with contextlib.suppress(NotADirectoryError):  # the parent is a file; the error above reports it
                temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Raise `AutoFormerError` if a file cannot be made at `path`, before the work whose result it is to hold."""
    try:
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if error.errno in _ADVICE:
            raise UnwritableError(str(path), error.errno) from None
        raise AutoFormerError(f"{path}: no file can be made there ({error.strerror}); {_CHOOSE}") from None


def _remove_leftovers(path: Path) -> None:
    """Remove temporaries of `path` (and their own temporaries) that an ended process of this machine has left."""
    temporary = re.compile(rf"\.+{re.escape(path.name)}(?:\.{_HOST}-(\d+)-[0-9a-f]{{4}}\.tmp)+")
    for left in path.parent.iterdir():
        found = temporary.fullmatch(left.name)
        if found and not _is_running(int(found[1])):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def is_leftover(name: str) -> bool:
    """Whether `name` is that of an unfinished file or folder: being written, or left by a killed process."""
    return _UNFINISHED.fullmatch(name) is not None


def files_below(folder: Path) -> list[Path]:
    """All finished files below a folder, sorted."""
    return sorted(
        file
        for file in folder.rglob("*")
        if not any(map(is_leftover, file.relative_to(folder).parts)) and file.is_file()
    )


def put_in_place(temporary: Path, path: Path) -> None:
    """Flush a temporary file or folder to disk, and replace `path` in the same folder by it."""
    _flush(temporary)
    if temporary.is_dir():
        _replace_folder(temporary, path)
    else:
        temporary.replace(path)


def _flush(path: Path) -> None:
    for each in [path, *(path.rglob("*") if path.is_dir() else ())]:
        handle = os.open(each, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _replace_folder(temporary: Path, path: Path) -> None:
    """Replace a folder, which a plain rename cannot: exchange the two, or move the old one aside first."""
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
    """Exchange two paths atomically, by Linux's renameat2; return whether it worked."""
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


def canonical_json(value: Any) -> str:
    """One text per value, for hashes: keys sorted, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def hash_value(value: Any) -> str:
    """sha256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def check_regular(path: Path) -> None:
    """Raise `AutoFormerError` for a pipe or a device, also behind a link: reading may never end. Raises `OSError`."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a folder raises a clear error later
        raise AutoFormerError(f"{path}: a pipe or a device, not a file; remove it")


def hash_file(path: Path) -> str:
    """sha256 of a file. Raises `AutoFormerError` for a pipe or a device, and `OSError`."""
    check_regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_path(path: Path, hash_of: Callable[[Path], str] = hash_file) -> str:
    """sha256 of a file, or of the names and hashes of a folder's finished files. `hash_of`: such as a `HashCache`."""
    if path.is_file():
        return hash_of(path)
    if not path.is_dir():
        raise AutoFormerError(f"{path}: no such file or folder; run the step that makes it")
    files = files_below(path)
    return hash_value([[file.relative_to(path).as_posix(), hash_of(file)] for file in files])


class FileState(NamedTuple):
    """Metadata that changes when the file does."""

    path: str
    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> Self:
        real = path.resolve()
        stat = real.stat()
        return cls(str(real), stat.st_size, stat.st_mtime_ns, stat.st_ino)


class HashCache:
    """sha256 of files, cached by path, size, modification time and inode, as in DVC.

    Small and recently changed files are always read: a second change within one clock tick would not show in the
    metadata. Processes may share the cache: each appends lines, and damaged lines are ignored.

    Args:
        place: a file of JSON lines; created if missing.
        min_bytes: smallest size of a cached file.
    """

    def __init__(self, place: Path, min_bytes: int = 2**24) -> None:
        self._place, self._min_bytes = place, min_bytes

    def __call__(self, path: Path) -> str:
        state = FileState.of(path)
        if state.size < self._min_bytes:
            return hash_file(path)
        return self._load().get(state) or self.remember(state, hash_file(path))

    def remember(self, state: FileState, sha256: str) -> str:
        """Cache the hash of a file, unless the file has changed since `state` was taken."""
        settled = time.time_ns() - state.mtime_ns > _CLOCK_TICK_NS
        if settled and FileState.of(Path(state.path)) == state:
            line = canonical_json({"file": state, "sha256": sha256}) + "\n"
            with contextlib.suppress(OSError):  # the file is read again next time
                self._place.parent.mkdir(parents=True, exist_ok=True)
                with self._place.open("ab", buffering=0) as file:  # one write, so lines of processes do not mix
                    file.write(line.encode())
        return sha256

    def _load(self) -> dict[FileState, str]:
        hashes = {}
        if self._place.is_file():
            for line in self._place.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                    entry = json.loads(line)
                    hashes[FileState(*entry["file"])] = str(entry["sha256"])
        return hashes
