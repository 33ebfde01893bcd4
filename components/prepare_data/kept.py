"""Parts of an index that have been made before, so that a reading of a terabyte that was stopped goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from autoformer.errors import AutoFormerError
from autoformer.files import hash_value, read_json, write_json
from runtime.common.workspace import work_root
from runtime.storage.data import ArchiveFolder


class KeptIndex:
    """The parts of one source's index, each kept in the work folder beside what it was made of.

    Args:
        source: where the source lies.
    """

    def __init__(self, source: ArchiveFolder) -> None:
        place = source.resolve() if isinstance(source, Path) else source
        self._folder = work_root() / "prepare_data" / f"index-{hash_value(str(place))[:16]}"

    def part(self, name: str, made_of: Any, make: Callable[[], Any]) -> Any:
        """A part as it was kept, or made and kept now. Both values are plain data, as JSON has it.

        Args:
            name: of the part; two parts of one source have two names.
            made_of: what decides the part: names, sizes and times of files, say.
        """
        file, key = self._folder / f"{hash_value(name)[:16]}.json", hash_value(made_of)
        if file.exists():
            try:
                found = read_json(file)
            except AutoFormerError:  # a part of no use is made anew
                found = None
            if isinstance(found, dict) and found.get("key") == key:
                return found["part"]
        part = make()
        write_json(file, {"name": name, "key": key, "part": part})
        return part
