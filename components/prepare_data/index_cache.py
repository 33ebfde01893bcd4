"""Finished parts of an index, cached in the work folder, so that an interrupted reading of a terabyte resumes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from autoformer.errors import AutoFormerError
from autoformer.files import hash_value, read_json, write_json
from runtime.common.workspace import work_root
from runtime.storage.places import ArchivePlace


class IndexCache:
    """The parts of the index of one `source`."""

    def __init__(self, source: ArchivePlace) -> None:
        place = source.resolve() if isinstance(source, Path) else source
        self._folder = work_root() / "prepare_data" / f"index-{hash_value(str(place))[:16]}"

    def part(self, name: str, made_of: Any, make: Callable[[], Any]) -> Any:
        """The cached part of that name, or `make()`, which is then cached. A part is plain data, as JSON has it.

        Args:
            made_of: what decides the part, such as names, sizes and times of files; another value makes it anew.
        """
        file, key = self._folder / f"{hash_value(name)[:16]}.json", hash_value(made_of)
        try:
            cached = read_json(file) if file.exists() else None
        except AutoFormerError:  # damaged
            cached = None
        if isinstance(cached, dict) and cached.get("key") == key:
            return cached["part"]
        part = make()
        write_json(file, {"name": name, "key": key, "part": part})
        return part
