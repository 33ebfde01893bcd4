"""The work folder of a step, its key, and the provenance of its result.

Checkpoints are in `work/<step>/<key>/`, outside the folders of DVC and KFP: DVC deletes a stage's outputs before it
runs the stage again, and kfp.local makes a new folder each time. The key is a hash of everything that decides the
result, so a restarted step finds its own checkpoints and no others.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from autoformer.errors import AutoFormerError
from autoformer.files import check_writable, hash_path, hash_value, make_folder, write_json
from autoformer.hash_cache import HashCache
from runtime.common.code import step_code
from runtime.common.config import Config, checkout, lasting


def work_root() -> Path:
    """The folder of all work in progress."""
    return lasting(Path(os.environ.get("AUTOFORMER_WORK", checkout() / "work")))


def known_hashes() -> HashCache:
    """The cached checksums of large archives, which every step compares with the card."""
    return HashCache(work_root() / "checksums.jsonl")


def work_key(provenance: Mapping[str, Any]) -> str:
    """The key of a work folder: a hash of the provenance."""
    return hash_value(dict(provenance))[:16]


class Workspace:
    """The work folder of one step, and the provenance of its result.

    Args:
        step: the step's name.
        config: the configuration.
        inputs: name -> file or folder that the step reads; its content is part of the key.
    """

    def __init__(self, step: str, config: Config, inputs: Mapping[str, Path]) -> None:
        self.provenance: dict[str, Any] = {
            "step": step,
            "seed": config.seed,
            "code": step_code(step),
            "config": config.for_step(step),
            "inputs": {name: hash_path(path) for name, path in inputs.items()},
        }
        self.folder = work_root() / step / work_key(self.provenance)

    def file(self, name: str) -> Path:
        make_folder(self.folder)
        return self.folder / name

    def clear(self) -> None:
        """Delete the folder, once the result is published."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Record:
    """`run.json`: times, run ids and rates, which differ between equal runs and so are not in the result."""

    def __init__(self, path: Path, step: str) -> None:
        self.path = path
        self.values: dict[str, Any] = {"step": step, "started": datetime.now(UTC).isoformat(timespec="seconds")}
        self._start = time.monotonic()

    def __enter__(self) -> Self:
        make_folder(self.path.parent)
        check_writable(self.path)  # now instead of after hours
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.values["seconds"] = round(time.monotonic() - self._start, 1)
        self.values["succeeded"] = error is None
        with contextlib.suppress(AutoFormerError) if error else contextlib.nullcontext():
            write_json(self.path, self.values)
