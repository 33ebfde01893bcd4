"""Move large files of a step's output to the store; the folder that KFP copies has a small file instead.

    output folder                      with AUTOFORMER_STORE
    supernet.json, metrics.json, …     the same
    weights.safetensors                <store>/artifacts/train_supernet/<hash of the whole folder>/weights.safetensors
                                       stored.json: the URI, and each file's name, bytes and sha256

The next step works on a complete copy of the folder, `work/fetched/<hash>/`. All else, the hashes of inputs too, is as
without a store. The copies may be deleted while no step runs.
"""

import os
import shutil
from pathlib import Path

from pydantic import Field

from autoformer.errors import AutoFormerError
from autoformer.files import hash_path, write_json
from autoformer.reading import read_json_as
from runtime.common.locks import wait_for_lock
from runtime.common.workspace import work_root
from runtime.storage.client import S3Uri
from runtime.storage.errors import MissingError
from runtime.storage.folders import File, Manifest, download_files
from runtime.storage.uploads import upload

POINTER = "stored.json"
_SHA256 = r"^[0-9a-f]{64}$"
LARGE = ".safetensors"  # suffix of files that are moved to the store


class _Pointer(Manifest):
    """`stored.json`."""

    uri: str
    hash: str = Field(pattern=_SHA256, description="of the whole folder; names its local copy")


def store_uri() -> S3Uri | None:
    """The address in `AUTOFORMER_STORE`, or None. Raises `AutoFormerError`."""
    text = os.environ.get("AUTOFORMER_STORE")
    if not text:
        return None
    try:
        return S3Uri.parse(text)
    except AutoFormerError as error:
        raise AutoFormerError(f"AUTOFORMER_STORE: {error}") from None


def publish(folder: Path, step: str) -> None:
    """Move the large files of the output of `step` to the store, if there is one, and leave `stored.json`.

    Call it before the folder gets its final name, so that a folder of that name is complete. A second call sends only
    what is missing.

    Raises:
        StorageError: the folder is unchanged.
    """
    store = store_uri()
    if store is None:
        return
    content = hash_path(folder)
    uri = store / f"artifacts/{step}/{content}"
    large = sorted(File.of(folder, path) for path in folder.rglob(f"*{LARGE}") if path.is_file())
    for file in large:
        upload(folder / file.name, uri / file.name)
    for file in large:
        (folder / file.name).unlink()
    write_json(folder / POINTER, {"uri": str(uri), "hash": content, "files": [file._asdict() for file in large]})


def local_copy(folder: Path) -> Path:
    """The folder itself or, if some of its files are in the store, a complete copy, one per machine.

    Raises:
        AutoFormerError: a file is missing in the store, or the store cannot be reached.
    """
    pointer = folder / POINTER
    if not pointer.is_file():
        return folder
    values = read_json_as(_Pointer, pointer)
    uri, content, files = S3Uri.parse(values.uri), values.hash, values.files

    def complete(partial: Path) -> None:
        shutil.copytree(folder, partial, ignore=shutil.ignore_patterns(POINTER), dirs_exist_ok=True)
        if hash_path(partial) != content:
            raise AutoFormerError(
                f"{folder}: its files are not those that it was made with; run the step that makes it again"
            )

    copy = work_root() / "fetched" / content
    with wait_for_lock(copy):
        if not copy.is_dir() or hash_path(copy) != content:
            try:
                download_files(files, lambda file: uri / file.name, copy, complete)
            except MissingError as error:
                raise AutoFormerError(
                    f"{folder}: {error}; run the step that makes it again, not from a cache"
                ) from None
    return copy
