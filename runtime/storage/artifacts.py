"""Large files of a step's output by URI: the folder that KFP moves holds a small file in their place.

    output folder                      with AUTOFORMER_STORE
    supernet.json, metrics.json, …     the same
    weights.safetensors                <store>/artifacts/train_supernet/<hash of the whole folder>/weights.safetensors
                                       stored.json: the URI, and each file's name, bytes and sha256

A step that is given such a folder works on a copy that is whole, `work/fetched/<hash>/`; from there on everything is as
without a store, the hashes of inputs too. The copies may be deleted whenever no step runs.
"""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from autoformer.errors import AutoFormerError
from autoformer.files import hash_path, read_json, write_json
from runtime.common.locks import wait_for_lock
from runtime.common.workspace import work_root
from runtime.storage.errors import MissingError
from runtime.storage.folders import File, bring, read_files
from runtime.storage.uploads import upload
from runtime.storage.uris import S3Uri

POINTER = "stored.json"
LARGE = (".safetensors",)  # endings of the files that go by URI


class Pointer(NamedTuple):
    """What `stored.json` says."""

    uri: S3Uri
    hash: str  # of the folder with the large files in their places, as `hash_path` has it
    files: list[File]


def store() -> S3Uri | None:
    """Where large things go, `AUTOFORMER_STORE`; None where everything stays in files. Raises `AutoFormerError`."""
    text = os.environ.get("AUTOFORMER_STORE")
    if not text:
        return None
    try:
        return S3Uri.parse(text)
    except AutoFormerError as error:
        raise AutoFormerError(f"AUTOFORMER_STORE: {error}") from None


def publish(folder: Path, step: str) -> None:
    """Send the large files of a folder that `step` has just made to the store, and leave `stored.json` in their place.

    To be called before the folder gets its name, so that a folder which is there is complete. Done again, it sends only
    what is not there. Without a store it does nothing.

    Raises:
        StorageError: one line; the folder is then as it was.
    """
    place = store()
    if place is None:
        return
    whole = hash_path(folder)
    uri = place / "artifacts" / step / whole
    large = sorted(File.of(folder, file) for file in folder.rglob("*") if file.suffix in LARGE)
    for file in large:
        upload(folder / file.name, uri / file.name)
    for file in large:
        (folder / file.name).unlink()
    write_json(folder / POINTER, {"uri": str(uri), "hash": whole, "files": [file._asdict() for file in large]})


def pointer(folder: Path) -> Pointer | None:
    """What a folder says of files of its that are in the store; None where it holds them all."""
    file = folder / POINTER
    if not file.is_file():
        return None
    found: Any = read_json(file)
    with contextlib.suppress(KeyError, TypeError, ValueError):
        return Pointer(S3Uri.parse(found["uri"]), str(found["hash"]), read_files(found))
    raise AutoFormerError(f"{file}: not what a step writes; run the step that makes it again")


def local_copy(folder: Path) -> Path:
    """The same folder, or, where files of its are in the store, a copy that is whole. All of a machine share it.

    Raises:
        AutoFormerError: one line: what the folder names is not in the store any more, or S3 cannot be reached.
    """
    found = pointer(folder)
    if found is None:
        return folder
    copy = work_root() / "fetched" / found.hash
    with wait_for_lock(copy):
        if not copy.is_dir() or hash_path(copy) != found.hash:
            _fetch(folder, found, copy)
    return copy


def _fetch(folder: Path, found: Pointer, copy: Path) -> None:
    def complete(partial: Path) -> None:
        shutil.copytree(folder, partial, ignore=shutil.ignore_patterns(POINTER), dirs_exist_ok=True)
        if hash_path(partial) != found.hash:
            raise AutoFormerError(
                f"{folder}: its files are not those that it was made with; run the step that makes it again"
            )

    try:
        bring({file: found.uri / file.name for file in found.files}, copy, complete)
    except MissingError as error:
        raise AutoFormerError(f"{folder}: {error}; run the step that makes it again, not from a cache") from None
