"""Atomic writes of files and folders, and sha256 hashes of them."""

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
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

from autoformer.errors import AutoFormerError

_FREE = "free some space there, and run the same command again"
_CHOOSE = "choose a place that may be written to, or change its permissions"
_GONE = "its folder was removed, or takes no files; choose another, and run the same command again"
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:4]
_HASHED_BYTES = 2**17  # at a time
_UNFINISHED = re.compile(r"\..+\.(tmp|old|part)")
_ADVICE = {
    errno.ENOSPC: _FREE, errno.EDQUOT: _FREE, errno.EFBIG: _FREE, errno.EROFS: _CHOOSE, errno.EACCES: _CHOOSE,
    errno.EPERM: _CHOOSE, errno.ENOTDIR: _CHOOSE, errno.EEXIST: _CHOOSE, errno.EISDIR: _CHOOSE,
    errno.ENAMETOOLONG: "give a shorter path", errno.ELOOP: "a link in the way; remove it",
    errno.EIO: "see to the disk", errno.EBUSY: "name a place in it",
    errno.EXDEV: "remove it, or choose another place", errno.ENOENT: _GONE, errno.ESTALE: _GONE,
}  # fmt: skip


class UnwritableError(AutoFormerError):
    """A full disk, or a path that cannot be written to."""

    def __init__(self, path: str, number: int) -> None:
        super().__init__(f"{path}: {os.strerror(number).lower()}; {_ADVICE[number]}")
        self.path, self.number = path, number


def unwritable(error: OSError) -> UnwritableError | None:
    """The `UnwritableError` for an error such as a full disk; None for others, such as a missing input."""
    if error.errno not in _ADVICE or error.errno == errno.ENOENT:
        return None
    return UnwritableError(str(error.filename or "a file"), error.errno)


def make_folder(path: Path) -> None:
    """Make a folder and its parents. Raises `UnwritableError` for ENOENT, too, as below /proc, and `OSError`."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError:
        raise UnwritableError(str(path), errno.ENOENT) from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, a file or a folder, in one rename.

    On an error the temporary is removed, and `path` is unchanged. The content is flushed to disk before the rename, so
    a power failure leaves the old or the new version. Temporaries that a killed process of this machine left are
    removed too. A link at `path`, symbolic or hard, is replaced: its target and its other names keep their content.

    Raises:
        UnwritableError: the disk is full, or the path cannot be written to.
        AutoFormerError: the path is a pipe or a device, such as /dev/null, which a rename would remove; or a file
            where a folder is written.
    """
    temporary = path.parent / f".{path.name}.{_HOST}-{os.getpid()}-{uuid.uuid4().hex[:4]}.tmp"
    try:
        check_replaceable(path)
        make_folder(path.parent)
        _remove_leftovers(path)
        yield temporary
        put_in_place(temporary, path)
    except (OSError, UnwritableError) as error:
        where, number = (
            (error.path, error.number) if isinstance(error, UnwritableError) else (error.filename, error.errno)
        )
        own = temporary.with_suffix("") if number == errno.ENOENT else path.parent  # else an input is missing
        if number not in _ADVICE or not str(where or path).startswith(str(own)):
            raise
        raise UnwritableError(str(path), number) from error
    finally:
        _remove(temporary)


def check_replaceable(path: Path) -> None:
    """Raise `AutoFormerError` for a pipe or a device, and for a link into /proc, such as /dev/stdout."""
    leads_to_proc = path.is_symlink() and path.readlink().is_relative_to("/proc")
    if leads_to_proc or (path.exists() and not path.is_file() and not path.is_dir()):
        raise AutoFormerError(f"{path}: a pipe or a device; name a file to write")


def check_no_file(path: Path) -> None:
    """Raise `AutoFormerError` if a file is where a folder is to be written."""
    if path.is_file() and not path.is_symlink():
        raise AutoFormerError(f"{path}: a file, where a folder is to be written; name another place")


def _remove(path: Path) -> None:
    """Remove a file, a folder or a link, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(NotADirectoryError):  # the parent is a file; another error reports it
            path.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Raise `AutoFormerError` if a file cannot be made at `path`, before the work whose result it is to hold."""
    check_replaceable(path)
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
            _remove(left)


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
    """Replace a folder or a link, which a plain rename cannot: exchange the two, or move the old one aside first.

    Another process may put its own folder there at any moment: the last one stays, whole.
    """
    check_no_file(path)
    if _exchange(temporary, path):
        return
    aside = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.old"
    with contextlib.suppress(FileNotFoundError):
        path.replace(aside)
    try:
        temporary.replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and _exchange(temporary, path):
            return
        with contextlib.suppress(FileNotFoundError):
            aside.replace(path)
        raise
    finally:
        _remove(aside)


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
    return hash_and_start(path, 0)[0]


def hash_and_start(path: Path, size: int) -> tuple[str, bytes]:
    """`hash_file`, and the file's first `size` bytes. Takes a tenth less time than `hashlib.file_digest` if small."""
    check_regular(path)
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        start = block = file.read(_HASHED_BYTES)
        while block:
            digest.update(block)
            block = file.read(_HASHED_BYTES)
    return digest.hexdigest(), start[:size]


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
