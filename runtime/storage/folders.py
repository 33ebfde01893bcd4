"""Folders in S3 that exist whole or not at all: a manifest of all files is written last and read first."""

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Self, TypeVar

from pydantic import field_validator

from autoformer.files import hash_file, put_in_place
from autoformer.reading import parse_json
from runtime.common.locks import wait_for_lock
from runtime.common.records import Written
from runtime.storage import uploads
from runtime.storage.client import S3Uri, read_object
from runtime.storage.downloads import download
from runtime.storage.errors import MissingError, StorageError
from runtime.storage.objects import Entry, delete, write_object

MANIFEST = "_manifest.json"
PARALLEL = 8  # concurrent transfers of small files


class File(NamedTuple):
    """A file of a folder."""

    name: str  # relative path, with slashes
    bytes: int
    sha256: str

    @classmethod
    def of(cls, folder: Path, path: Path) -> Self:
        return cls(path.relative_to(folder).as_posix(), path.stat().st_size, hash_file(path))


class Manifest(Written):
    """The list of a folder's files. No name leads out of the folder."""

    files: tuple[File, ...]
    newest_ns: int = 0

    @field_validator("files")
    @classmethod
    def _inside(cls, files: tuple[File, ...]) -> tuple[File, ...]:
        for file in files:
            path = PurePosixPath(file.name)
            if path.is_absolute() or ".." in path.parts or not file.name or file.bytes < 0:
                raise ValueError(f"'{file.name}' is no file of a folder")
        return files


Sized = TypeVar("Sized", File, Entry)


def upload_folder(folder: Path, uri: S3Uri | str) -> list[File]:
    """Upload a folder and return its files, sorted by name. Files that S3 already has are skipped.

    Raises:
        StorageError: the folder in S3 is missing or unchanged.
    """
    uri = S3Uri.parse(uri)
    files = sorted(File.of(folder, path) for path in folder.rglob("*") if path.is_file())
    try:
        if read_manifest(uri)[0] == files:
            return files
        delete(uri / MANIFEST)  # the manifest of the old content
    except MissingError:
        pass
    transfer(files, lambda file: uploads.upload(folder / file.name, uri / file.name))
    write_manifest(uri, files)
    return files


def download_folder(uri: S3Uri | str, folder: Path) -> None:
    """Download a folder, verify each file, and replace `folder` by it. An interrupted download resumes.

    Raises:
        MissingError: the folder does not exist, or is incomplete.
        StorageError: `folder` is unchanged.
    """
    uri = S3Uri.parse(uri)
    with wait_for_lock(folder):
        download_files(read_manifest(uri)[0], lambda file: uri / file.name, folder)


def partial_folder(folder: Path) -> Path:
    """The temporary folder of an incomplete download."""
    return folder.with_name(f".{folder.name}.part")


def download_files(
    files: Sequence[File],
    source: Callable[[File], S3Uri],
    folder: Path,
    complete: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Download files into a folder that is created by one rename. The caller holds the lock of `folder`.

    Args:
        complete: adds other files to the folder before the rename.
    """
    partial = partial_folder(folder)
    partial.mkdir(parents=True, exist_ok=True)

    def fetch(file: File) -> None:
        path = partial / file.name
        if not (path.is_file() and hash_file(path) == file.sha256):
            download(source(file), path, file.sha256)

    transfer(files, fetch)
    for path in set(partial.rglob("*")) - {partial / file.name for file in files}:
        if path.is_file():  # left by a killed download
            path.unlink()
    complete(partial)
    put_in_place(partial, folder)


def transfer(files: Iterable[Sized], move: Callable[[Sized], object]) -> None:
    """Call `move` for each file: small ones in parallel, large ones one by one, since their parts are parallel."""
    with ThreadPoolExecutor(PARALLEL) as pool:
        list(pool.map(move, (file for file in files if file.bytes <= uploads.PART_BYTES)))
    for file in files:
        if file.bytes > uploads.PART_BYTES:
            move(file)


def write_manifest(uri: S3Uri, files: Iterable[File], **values: int) -> None:
    """Write the list of a folder's files, which completes the folder."""
    manifest = values | {"files": [file._asdict() for file in files]}
    write_object((json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode(), uri / MANIFEST)


def read_manifest(uri: S3Uri) -> tuple[list[File], int]:
    """A folder's files and its `newest_ns` (default 0). Raises `MissingError` if it is missing or incomplete."""
    try:
        text = read_object(uri / MANIFEST)
    except MissingError:
        raise MissingError(f"{uri}: there is no such folder, or not all of it ({MANIFEST} is missing)") from None
    try:
        manifest = Manifest.model_validate(parse_json(text))
    except (ValueError, RecursionError):
        raise StorageError(f"{uri / MANIFEST}: not a list of files; remove the folder and make it again") from None
    return list(manifest.files), manifest.newest_ns
