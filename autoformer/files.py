"""Files that are written whole or not at all, and hashes of what they hold."""

import contextlib
import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from autoformer.errors import AutoFormerError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes the place of `path` by one rename.

    Works for a file and for a folder that the caller makes. On an error the temporary is removed and
    whatever stood at `path` before still stands there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        yield temporary
        if temporary.is_dir():
            _replace_folder(temporary, path)
        else:
            temporary.replace(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _replace_folder(temporary: Path, path: Path) -> None:
    """A rename refuses a folder that is not empty, so the old one steps aside first."""
    aside = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.old"
    if path.exists():
        path.replace(aside)
    temporary.replace(path)
    shutil.rmtree(aside, ignore_errors=True)


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
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AutoFormerError(f"{path}: not readable as JSON ({error}); run the step that makes it again") from None


def read_yaml(path: Path) -> Any:
    """Parse a YAML file. Raises `AutoFormerError` naming file and line where it is missing or malformed."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AutoFormerError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise AutoFormerError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None


def canonical_json(value: Any) -> str:
    """One text for one value: keys sorted, no spaces. What hashes are made of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def hash_value(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """sha256 of the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_path(path: Path) -> str:
    """sha256 of a file, or of the names and hashes of all files below a folder."""
    if path.is_file():
        return hash_file(path)
    if not path.is_dir():
        raise AutoFormerError(f"{path}: no such file or folder; run the step that makes it")
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return hash_value([[file.relative_to(path).as_posix(), hash_file(file)] for file in files])
