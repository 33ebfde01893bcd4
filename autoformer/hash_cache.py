"""Cached sha256 hashes of large files."""

import contextlib
import json
import time
from pathlib import Path

from autoformer.files import FileState, canonical_json, hash_file

_CLOCK_TICK_NS = 2_000_000_000  # the coarsest clock of a file system


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
