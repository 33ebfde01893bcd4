"""Data folders on disk and in S3.

`open_data` downloads a small data folder whole. From a larger one it downloads everything except uncompressed tars,
which are read by ranges, and writes a `source.yaml` that names their S3 folder.
"""

import contextlib
import os
import posixpath
import threading
from collections.abc import Collection, Iterator
from pathlib import Path, PurePath, PurePosixPath
from typing import NamedTuple

import yaml

from autoformer.errors import AutoFormerError
from autoformer.files import FileState, files_below, hash_path, hash_value, write_text
from autoformer.images.source import SOURCE, Source, archive_folder, parse_source, read_source
from runtime.common.locks import wait_for_lock
from runtime.common.workspace import known_hashes
from runtime.storage.archives import S3Archive, S3Archives
from runtime.storage.cache import CacheFolder, free_space, staging_bytes
from runtime.storage.client import S3Uri, is_uri, read_object
from runtime.storage.downloads import download
from runtime.storage.errors import MissingError
from runtime.storage.folders import transfer
from runtime.storage.objects import Entry, hash_listing, list_files

WHOLE_GB = 4.0  # maximum size of a data folder that is downloaded whole
_IN_USE: list[CacheFolder] = []  # folders that this process reads

ArchiveFolder = Path | S3Archives
ArchiveFile = Path | S3Archive


class NoFolderError(AutoFormerError):
    """A folder of data or of archives does not exist on this machine."""

    def __init__(self, folder: Path, remedy: str) -> None:
        super().__init__(f"{folder}: no such folder; {remedy}")
        self.folder = folder


def find_archives(data: Path) -> ArchiveFolder:
    """The archives of a data folder."""
    return remote_archives(data) or archive_folder(data)


def remote_archives(data: Path) -> S3Archives | None:
    """The archives of a data folder if its `source.yaml` names a folder in S3, else None."""
    source = _read_source(data)
    return S3Archives(source.location) if source and isinstance(source.location, str) else None


def _read_source(data: Path) -> Source | None:
    return read_source(data) if (data / SOURCE).is_file() else None


def state_of(archive: ArchiveFile) -> FileState | Entry:
    """Metadata that changes with the archive, without reading it."""
    return FileState.of(archive) if isinstance(archive, Path) else archive.state


def size_of(archive: ArchiveFile) -> int:
    """Size of an archive in bytes."""
    return archive.stat().st_size if isinstance(archive, Path) else archive.size


def hash_data(place: str | Path) -> str:
    """Hash of a data set, for cache keys and lineage. It changes with any image.

    It covers the content of a folder's files, or the names, sizes and ETags of S3's objects. Archives that a
    `source.yaml` locates elsewhere are included; those on disk as in `_hash_archives`.

    Raises:
        NoFolderError: this machine has no such folder.
        StorageError: S3 has nothing of that name, or does not answer.
    """
    if is_uri(place):
        uri = S3Uri.parse(str(place))
        root, files, source = str(uri), hash_listing(uri), _read_remote_source(uri)
    else:
        data = Path(os.path.realpath(place))
        if not data.is_dir():
            raise NoFolderError(Path(place), "put the data there, or name another place")
        root, files, source = str(data), hash_path(data, known_hashes()), _read_source(data)
    if source is None:
        return files
    location = source.location if isinstance(source.location, str) else Path(root, source.location).resolve()
    if PurePath(location).is_relative_to(root):
        return files
    archives = hash_listing(location) if isinstance(location, str) else _hash_archives(location, source.archives)
    return hash_value([files, archives])


def _hash_archives(folder: Path, published: Collection[str]) -> str:
    """Hash of a folder's archives by names, sizes and modification times, since reading ImageNet takes minutes.

    If `source.yaml` lists published archives with their md5, only these count, without times: prepare_data refuses
    others, and a copy on another disk is the same data.
    """
    if not folder.is_dir():
        raise NoFolderError(folder, f"a {SOURCE} says that the archives lie there; correct it, or put them there")
    if published:
        paths = [folder / name for name in sorted(published) if (folder / name).is_file()]
        return hash_value([[path.name, path.stat().st_size] for path in paths])
    paths = files_below(folder)
    states = ((path.relative_to(folder).as_posix(), path.stat()) for path in paths)
    return hash_value([[name, state.st_size, state.st_mtime_ns] for name, state in states])


class Data(NamedTuple):
    """A data folder on disk, and its archives if they are in S3."""

    folder: Path
    remote: S3Archives | None


def open_data(place: str | Path) -> Data:
    """Open a data folder on disk or in S3.

    Raises:
        AutoFormerError: it does not exist, cannot be downloaded, or exceeds the disk limit.
    """
    folder = _open_remote(S3Uri.parse(str(place))) if is_uri(place) else Path(place)
    if not folder.exists():
        raise AutoFormerError(f"{folder}: no such file or folder; it is made by `make data`")
    return Data(folder, remote_archives(folder))


@contextlib.contextmanager
def errors_name(place: str | Path, folder: Path) -> Iterator[None]:
    """Let errors name the `place` of the data in S3 instead of the local `folder` that `open_data` made of it."""
    try:
        yield
    except AutoFormerError as error:
        error.args = (str(error).replace(str(folder), str(place).rstrip("/")),)
        raise


def _open_remote(uri: S3Uri) -> Path:
    """The local folder of a data folder in S3. It has the same name, which may become the data set's name."""
    objects = list_files(uri)
    if not objects:
        raise MissingError(f"{uri}: holds nothing; upload the data there, or name another place")
    for name in (uri.key, *(entry.name for entry in objects)):
        if ".." in PurePosixPath(name).parts:
            raise AutoFormerError(f"{uri}: '{name}' is no name of a file; rename it")
    is_small = sum(entry.bytes for entry in objects) <= WHOLE_GB * 1e9
    has_source = any(entry.name == SOURCE for entry in objects)

    def stays(entry: Entry) -> bool:
        return entry.name.endswith(".tar") and (has_source or not (is_small or "/" in entry.name))

    cached = CacheFolder(hash_value(["files", str(uri), objects])[:16])
    folder = cached.path / "files" / uri.bucket / uri.key
    with wait_for_lock(folder):
        _download_missing(uri, [entry for entry in objects if not stays(entry) and entry.name != SOURCE], folder)
        if has_source or any(map(stays, objects)):
            source = _read_remote_source(uri) or Source(location=str(uri))
            values = source.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
            write_text(folder / SOURCE, yaml.safe_dump(values, sort_keys=False))
    _IN_USE.append(cached)
    return folder


def _download_missing(uri: S3Uri, objects: list[Entry], folder: Path) -> None:
    from runtime.common.console import Progress

    folder.mkdir(parents=True, exist_ok=True)
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    missing = [entry for entry in objects if sizes.get(folder / entry.name) != entry.bytes]
    total = sum(entry.bytes for entry in missing)
    if total > free_space(total):
        raise AutoFormerError(
            f"{uri}: {total / 1e9:.3g} GB have to come to the local disk, where AUTOFORMER_STAGING_GB = "
            f"{staging_bytes() / 1e9:g} leaves less; raise it, or put the images into plain tars (WebDataset shards), "
            "which are read where they lie"
        )
    if not missing:
        return
    done, lock = 0, threading.Lock()
    with Progress(f"bringing {uri}", total >> 20, "MB") as progress:

        def fetch(entry: Entry) -> None:
            nonlocal done
            download(uri / entry.name, folder / entry.name)
            with lock:
                done += entry.bytes
                progress.update(done >> 20)

        transfer(missing, fetch)


def _read_remote_source(uri: S3Uri) -> Source | None:
    """The `source.yaml` of a data folder in S3; a relative location becomes an S3 address."""
    try:
        source = parse_source(read_object(uri / SOURCE).decode(), str(uri / SOURCE))
    except MissingError:
        return None
    if isinstance(source.location, str) or source.location.is_absolute():
        return source
    key = posixpath.normpath(f"{uri.key}/{source.location.as_posix()}").strip("./")
    return source.model_copy(update={"location": str(S3Uri(uri.bucket, key))})
