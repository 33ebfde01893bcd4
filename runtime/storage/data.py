"""Where data are: a folder, or `s3://bucket/folder`, which becomes one.

A data folder that is not large comes to the local disk whole. Of a larger one the tars stay where they are, of which a
part can be read: the local folder then has a `source.yaml` that names the place.
"""

import posixpath
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path, PurePath, PurePosixPath
from typing import NamedTuple

import yaml

from autoformer.errors import AutoFormerError
from autoformer.files import FileState, hash_path, hash_value, write_text
from autoformer.images.source import SOURCE, Source, archive_folder, parse_source, read_source
from runtime.common.workspace import known_hashes
from runtime.storage.archives import S3Archive, S3Archives, S3State
from runtime.storage.cache import Hold, make_room, staging_bytes
from runtime.storage.downloads import download
from runtime.storage.errors import MissingError
from runtime.storage.objects import Entry, listing, listing_hash, without_markers
from runtime.storage.uris import S3Uri, is_uri

WHOLE_GB = 4.0  # of a data folder that is brought whole
_FILES = 4  # that are brought at once
_HELD: list[Hold] = []  # copies that this process reads

ArchiveFolder = Path | S3Archives
ArchiveFile = Path | S3Archive


class NoFolderError(AutoFormerError):
    """A folder of data, or of their archives, that this machine does not have."""

    def __init__(self, folder: Path, answer: str) -> None:
        super().__init__(f"{folder}: no such folder; {answer}")
        self.folder = folder


def find_archives(data: Path) -> ArchiveFolder:
    """Where the archives of a data folder lie."""
    return remote_archives(data) or archive_folder(data)


def remote_archives(data: Path) -> S3Archives | None:
    """The archives of a data folder whose `source.yaml` says that they lie in S3; None for all others."""
    location = read_source(data).location if (data / SOURCE).is_file() else None
    return S3Archives(location) if isinstance(location, str) else None


def state_of(archive: ArchiveFile) -> FileState | S3State:
    """By what a changed archive is told from the one that it was."""
    return FileState.of(archive) if isinstance(archive, Path) else archive.state


def size_of(archive: ArchiveFile) -> int:
    """Bytes."""
    return archive.stat().st_size if isinstance(archive, Path) else archive.size


def hash_data(place: str | Path) -> str:
    """Hash of a data set, for cache keys and lineage: a changed image changes it, wherever the archives lie.

    It covers the content of a folder's files, or the names, sizes and ETags of S3's objects. Archives that a
    `source.yaml` puts elsewhere count too: in S3 by the same, in another folder as `_hash_archives` says.

    Raises:
        NoFolderError: this machine has no such folder.
        StorageError: S3 has nothing of that name, or cannot be asked.
    """
    if is_uri(place):
        uri = S3Uri.parse(str(place))
        return _with_archives(listing_hash(uri), str(uri), _source_in(uri))
    data = Path(place).resolve()
    if not data.is_dir():
        raise NoFolderError(Path(place), "put the data there, or name another place")
    source = read_source(data) if (data / SOURCE).is_file() else None
    if source and isinstance(source.location, Path):
        source = source.model_copy(update={"location": (data / source.location).resolve()})
    return _with_archives(hash_path(data, known_hashes()), data, source)


def _with_archives(files: str, place: str | Path, source: Source | None) -> str:
    """The hash `files` of a data folder, and that of the archives where they lie outside of it."""
    if source is None or PurePath(source.location).is_relative_to(place):
        return files
    if isinstance(source.location, str):
        return hash_value([files, listing_hash(source.location)])
    return hash_value([files, _hash_archives(source.location, source.archives)])


def _hash_archives(folder: Path, published: Collection[str]) -> str:
    """Hash of a folder's archives by names, sizes and times of change: to read ImageNet takes minutes.

    Where `source.yaml` names published archives, with their md5, only those count, and not their times: prepare_data
    refuses others, and a copy on another disk is the same data.
    """
    if not folder.is_dir():
        raise NoFolderError(folder, f"a {SOURCE} says that the archives lie there; mend it, or put them there")
    if published:
        found = [folder / name for name in sorted(published) if (folder / name).is_file()]
        return hash_value([[file.name, file.stat().st_size] for file in found])
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    states = ((file.relative_to(folder).as_posix(), file.stat()) for file in files)
    return hash_value([[name, state.st_size, state.st_mtime_ns] for name, state in states])


class Data(NamedTuple):
    """A data folder, and the archives of it that lie in S3."""

    folder: Path
    remote: S3Archives | None


def open_data(place: str | Path) -> Data:
    """Data that lie in a folder, or in S3.

    Raises `AutoFormerError` where nothing is there, it cannot be had, or would take more of the disk than it may.
    """
    folder = _brought(S3Uri.parse(str(place))) if is_uri(place) else Path(place)
    if not folder.exists():
        raise AutoFormerError(f"{folder}: no such file or folder; it is made by `make data`")
    return Data(folder, remote_archives(folder))


def _brought(uri: S3Uri) -> Path:
    """The local folder for a folder in S3; of the same name, since a data set may be called by it."""
    objects = _listed(uri)
    whole = sum(entry.bytes for entry in objects) <= WHOLE_GB * 1e9
    named = next((entry for entry in objects if entry.name == SOURCE), None)
    stay = [entry for entry in objects if entry.name.endswith(".tar") and (named or not (whole or "/" in entry.name))]
    hold = Hold(hash_value(["files", str(uri), objects])[:16])
    folder = hold.folder / "files" / uri.bucket / uri.key
    with hold.filling():
        _bring(uri, [entry for entry in objects if entry not in stay and entry.name != SOURCE], folder)
        if named or stay:
            _name_source(uri, folder, named)
    _HELD.append(hold)
    return folder


def _listed(uri: S3Uri) -> list[Entry]:
    objects = without_markers(listing(uri))
    if not objects:
        raise MissingError(f"{uri}: holds nothing; upload the data there, or name another place")
    for name in (uri.key, *(entry.name for entry in objects)):
        if ".." in PurePosixPath(name).parts:
            raise AutoFormerError(f"{uri}: '{name}' is no name of a file; rename it")
    return objects


def _bring(uri: S3Uri, objects: Sequence[Entry], folder: Path) -> None:
    """Fetch what the folder lacks; each file is written whole or not at all."""
    from runtime.common.console import Progress

    folder.mkdir(parents=True, exist_ok=True)
    missing = [entry for entry in objects if not _is_there(folder / entry.name, entry)]
    wanted = sum(entry.bytes for entry in missing)
    if wanted > make_room(wanted):
        raise AutoFormerError(
            f"{uri}: {wanted / 1e9:.3g} GB have to come to the local disk, where AUTOFORMER_STAGING_GB = "
            f"{staging_bytes() / 1e9:g} leaves less; raise it, or put the images into plain tars (WebDataset shards), "
            "which are read where they lie"
        )
    if not missing:
        return

    def fetch(entry: Entry) -> int:
        download(uri / entry.name, folder / entry.name)
        return entry.bytes

    with Progress(f"bringing {uri}", wanted >> 20, "MB") as progress, ThreadPoolExecutor(_FILES) as pool:
        waiting, done = [pool.submit(fetch, entry) for entry in missing], 0
        try:
            for fetched in as_completed(waiting):
                done += fetched.result()
                progress.update(done >> 20)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _is_there(file: Path, entry: Entry) -> bool:
    return file.is_file() and file.stat().st_size == entry.bytes


def _name_source(uri: S3Uri, folder: Path, delivered: Entry | None) -> None:
    """Write the `source.yaml` of a folder whose archives stay in S3: that which was delivered there, or a new one."""
    if delivered:
        text, as_delivered = _read_source_in(uri, delivered)
        source = _seen_from_here(as_delivered, uri)
        if source is as_delivered:
            write_text(folder / SOURCE, text)
            return
    else:
        source = Source(location=str(uri))
    text = yaml.safe_dump(source.model_dump(mode="json", exclude_defaults=True, exclude_none=True), sort_keys=False)
    write_text(folder / SOURCE, text)


def _source_in(uri: S3Uri) -> Source | None:
    """The `source.yaml` of a data folder in S3, where it has one."""
    found = next((entry for entry in listing(uri) if entry.name == SOURCE), None)
    return _seen_from_here(_read_source_in(uri, found)[1], uri) if found else None


def _read_source_in(uri: S3Uri, entry: Entry) -> tuple[str, Source]:
    """The `source.yaml` of a data folder in S3, as text and as it stands there."""
    text = (S3Archives(str(uri), {entry.name: entry}) / entry.name).read_text()
    return text, parse_source(text, str(uri / entry.name))


def _seen_from_here(source: Source, uri: S3Uri) -> Source:
    """A relative location is one in S3, beside the data folder `uri`; any other stays."""
    if not isinstance(source.location, Path) or source.location.is_absolute():
        return source
    location = posixpath.normpath(f"{uri.key}/{source.location.as_posix()}")
    return source.model_copy(update={"location": str(S3Uri(uri.bucket, location.strip("./")))})
