"""What a job's machines and its launcher hand to each other: inputs there, results back.

KFP gives a task paths of its own pod, which no other pod sees. So the launcher copies what the step reads, some
megabytes and the supernet, to a place that all see, `<place>/inputs/<name>`, and brings back what it makes from
`<place>/outputs/<name>`. The place is a folder on a volume that several machines mount, or one of the store. The data
themselves are never copied: `--data` is a path, or a URI, which means the same everywhere.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from autoformer.errors import AutoFormerError
from autoformer.files import replacing
from components import storage
from components.trainjob.settings import VARIABLE, JobSettings

OUTPUTS = ("--out", "--record")
SAME_EVERYWHERE = ("--config", "--set", "--data")


class Place(NamedTuple):
    """`root`: a folder, or `s3://bucket/folder`, of one job."""

    root: str

    @classmethod
    def of_job(cls, settings: JobSettings, job: str) -> Self:
        """Where this job's files go: the store where there is one, else the volume that all pods mount.

        Raises:
            AutoFormerError: there is neither, or the volume is not mounted here.
        """
        store = os.environ.get("AUTOFORMER_STORE")
        if store:
            return cls(f"{store.rstrip('/')}/jobs/{job}")
        shared = shared_folder(settings)
        if shared is None:
            raise AutoFormerError(
                f"{VARIABLE}: machines need a place that all of them see; give a volume that several may mount, "
                "or set AUTOFORMER_STORE"
            )
        if not Path(shared).is_dir():
            raise AutoFormerError(
                f"{VARIABLE}: {shared}: no such folder here; mount the volume in the pod that launches the job, too"
            )
        return cls(f"{shared}/jobs/{job}")

    @property
    def in_store(self) -> bool:
        return storage.is_uri(self.root)

    # --- the launcher's side ---

    def give(self, argv: Sequence[str]) -> list[str]:
        """Copy what the step reads; returns the arguments as the job's pods are to have them."""
        given = []
        for name, value in pairs(argv):
            if name in SAME_EVERYWHERE:
                given += [name, value]
            elif name in OUTPUTS:
                given += [name, f"{self.root}/{output(name, value)}"]
            else:
                there = f"inputs/{name.removeprefix('--')}{Path(value).suffix}"
                self._put(Path(value), there)
                given += [name, f"{self.root}/{there}"]
        return given

    def has_results(self, argv: Sequence[str]) -> bool:
        """Whether all that the step makes is there."""
        return all(self._holds(output(name, value)) for name, value in pairs(argv) if name in OUTPUTS)

    def take(self, argv: Sequence[str]) -> None:
        """Bring what the step has made to where its arguments say, each whole or not at all."""
        for name, value in pairs(argv):
            if name in OUTPUTS:
                self._get(output(name, value), Path(value))
        self._forget("inputs")

    # --- the pods' side ---

    @contextlib.contextmanager
    def seen_from_here(self, arguments: Sequence[str]) -> Iterator[tuple[list[str], Callable[[], None]]]:
        """The step's arguments with paths of this machine, and what sends its results to the place."""
        if not self.in_store:
            yield list(arguments), lambda: None
            return
        with tempfile.TemporaryDirectory(prefix="autoformer-job-") as here:
            self._get("inputs", Path(here, "inputs"))
            local = [word.replace(f"{self.root}/", f"{here}/", 1) for word in arguments]
            made = [value.removeprefix(f"{self.root}/") for name, value in pairs(arguments) if name in OUTPUTS]

            def publish() -> None:
                for name in made:
                    self._put(Path(here, name), name)

            yield local, publish

    # --- one file or folder, whole or not at all ---

    def _put(self, source: Path, name: str) -> None:
        if not source.exists():
            raise AutoFormerError(f"{source}: no such file or folder; run the step that makes it")
        if not self._holds(name):  # a try before this one may have got as far
            _copy(source, Path(self.root, name))

    def _get(self, name: str, target: Path) -> None:
        _copy(Path(self.root, name), target)

    def _holds(self, name: str) -> bool:
        return Path(self.root, name).exists()

    def _forget(self, name: str) -> None:
        shutil.rmtree(Path(self.root, name), ignore_errors=True)


def shared_folder(settings: JobSettings) -> str | None:
    """The folder that all pods of a job see."""
    written = (volume.mount for volume in settings.volumes if not volume.read_only)
    return settings.shared or next(written, None)


def pairs(argv: Sequence[str]) -> list[tuple[str, str]]:
    """`--name value` …, as the components build them."""
    names, values = argv[::2], argv[1::2]
    if len(names) != len(values) or not all(name.startswith("--") and "=" not in name for name in names):
        raise AutoFormerError("expected the step's arguments as --name value --name value …")
    return list(zip(names, values, strict=True))


def output(name: str, value: str) -> str:
    """Where in the place an output lies; its ending stays."""
    return f"outputs/{name.removeprefix('--')}{Path(value).suffix}"


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        if source.is_dir():
            shutil.copytree(source, temporary, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(source, temporary)
