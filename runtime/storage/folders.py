"""Folders in S3, there whole or not at all: their manifest, which names every file, is written last and read first."""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Self

from autoformer.files import hash_file, put_in_place
from runtime.common.locks import wait_for_lock
from runtime.storage import downloads, uploads
from runtime.storage.client import connect
from runtime.storage.errors import MissingError, StorageError, body_of, patiently, told
from runtime.storage.objects import delete
from runtime.storage.uris import S3Uri

MANIFEST = "_manifest.json"
PARALLEL = 8  # small files under way at once


class File(NamedTuple):
    """A file of a folder."""

    name: str  # below the folder, with slashes
    bytes: int
    sha256: str

    @classmethod
    def of(cls, folder: Path, file: Path) -> Self:
        return cls(file.relative_to(folder).as_posix(), file.stat().st_size, hash_file(file))


def files_of(folder: Path) -> list[File]:
    """All files below a folder, sorted by name."""
    return sorted(File.of(folder, file) for file in folder.rglob("*") if file.is_file())


def upload_folder(folder: Path, uri: S3Uri | str) -> list[File]:
    """Send a folder; what it holds. What is there already is not sent again, so that a killed upload is gone on with.

    Raises:
        StorageError: one line; there is then no folder of that name, or it is as it was before.
    """
    uri = S3Uri.of(uri)
    files = files_of(folder)
    try:
        if read_files(read_manifest(uri)) == files:
            return files
        delete(uri / MANIFEST)  # of other content, which is about to be replaced
    except MissingError:
        pass
    _each(files, uploads.PART_BYTES, lambda file: uploads.upload(folder / file.name, uri / file.name))
    write_manifest(uri, {"files": [file._asdict() for file in files]})
    return files


def download_folder(uri: S3Uri | str, folder: Path) -> None:
    """Bring a folder, in place of what is there, each file checked. Interrupted, it is gone on with.

    Raises:
        MissingError: there is no such folder, or not all of it.
        StorageError: one line; what stood in the place of `folder` still stands there.
    """
    uri = S3Uri.of(uri)
    with wait_for_lock(folder):
        bring({file: uri / file.name for file in read_files(read_manifest(uri))}, folder)


def partial_of(folder: Path) -> Path:
    """Where that lies of a folder which has been brought so far."""
    return folder.with_name(f".{folder.name}.part")


def bring(files: Mapping[File, S3Uri], folder: Path, besides: Callable[[Path], None] = lambda folder: None) -> None:
    """Bring files into a folder which appears by one rename; the caller holds its lock.

    Args:
        files: with the place of each.
        besides: puts what else the folder shall hold into it.
    """
    partial = partial_of(folder)
    partial.mkdir(parents=True, exist_ok=True)

    def fetch(file: File) -> None:
        place = partial / file.name
        if not (place.is_file() and hash_file(place) == file.sha256):  # of an earlier try
            downloads.download(files[file], place, file.sha256)

    _each(list(files), downloads.RANGE_BYTES, fetch)
    for found in set(partial.rglob("*")) - {partial / file.name for file in files}:
        if found.is_file():  # what a try that was killed has left
            found.unlink()
    besides(partial)
    put_in_place(partial, folder)


def write_manifest(uri: S3Uri, value: Mapping[str, Any]) -> None:
    """Say what a folder holds, with which it is there. `files` of it is what `read_files` reads."""
    uploads.put((json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode(), uri / MANIFEST)


def read_manifest(uri: S3Uri) -> Any:
    """What a folder says of itself. Raises `MissingError` where there is none, or not all of it."""
    place = uri / MANIFEST
    try:
        text = read_object(place)
    except MissingError:
        raise MissingError(f"{uri}: there is no such folder, or not all of it ({MANIFEST} is missing)") from None
    try:
        found = json.loads(text)
        read_files(found)
    except (ValueError, TypeError, KeyError):
        raise StorageError(f"{place}: not a list of files; remove the folder and make it again") from None
    return found


def read_object(uri: S3Uri) -> bytes:
    """A small object. Raises `StorageError`."""

    def read() -> bytes:
        with told(uri):
            answer = connect().get_object(Bucket=uri.bucket, Key=uri.key)
        with body_of(uri), answer["Body"] as body:
            return bytes(body.read())

    return patiently(read)


def read_files(found: Any) -> list[File]:
    """The files that a manifest names. Raises ValueError, TypeError or KeyError where it is none."""
    return [_checked(File(**file)) for file in found["files"]]


def _checked(file: File) -> File:
    """A name that leads out of the folder is refused."""
    path = PurePosixPath(file.name)
    if path.is_absolute() or ".." in path.parts or not file.name:
        raise ValueError(file.name)
    return file


def _each(files: list[File], large: int, do: Callable[[File], object]) -> None:
    """Small files several at once; large ones, which go in several parts at once, one after the other."""
    with ThreadPoolExecutor(PARALLEL) as pool:
        waiting = [pool.submit(do, file) for file in files if file.bytes <= large]
        try:
            for future in waiting:
                future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    for file in files:
        if file.bytes > large:
            do(file)
