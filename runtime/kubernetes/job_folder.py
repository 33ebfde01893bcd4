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
from autoformer.files import hash_path, hash_value, replacing
from runtime import storage
from runtime.kubernetes.settings import VARIABLE, JobSettings
from runtime.storage.folders import MANIFEST

OUTPUTS = ("--out", "--record")
SAME_EVERYWHERE = ("--config", "--set", "--data")


class JobFolder(NamedTuple):
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

    def put_inputs(self, argv: Sequence[str]) -> list[str]:
        """Copy what the step reads; returns the arguments as the job's pods are to have them."""
        given: list[str] = []
        for name, value in pairs(argv):
            if name not in SAME_EVERYWHERE:
                kind = "outputs" if name in OUTPUTS else "inputs"
                value = f"{self.root}/{kind}/{_called(name, value)}"
            given += [name, value]
        with self._sent("inputs") as folder:
            folder.mkdir()
            for name, value in _read(argv):
                _copy(Path(value), folder / _called(name, value))
        return given

    def mark_closed(self) -> None:
        """Mark that this job is over, for a launcher that finds the job itself gone: its name is not taken again."""
        with self._sent("closed") as folder:
            folder.mkdir()
            (folder / "closed").touch()

    @property
    def closed(self) -> bool:
        if self.in_store:
            return storage.exists(f"{self.root}/closed/{MANIFEST}")
        return Path(self.root, "closed").exists()

    def has_outputs(self, argv: Sequence[str]) -> bool:
        """Whether all that the step makes is there."""
        if self.in_store:
            return storage.exists(f"{self.root}/outputs/{MANIFEST}")
        return all(Path(self.root, "outputs", called).exists() for called, _ in _made(argv))

    def fetch_outputs(self, argv: Sequence[str]) -> None:
        """Bring what the step has made to where its arguments say, each whole or not at all."""
        with self._brought("outputs") as folder:
            for called, target in _made(argv):
                with replacing(target) as temporary:
                    _copy(folder / called, temporary)

    # --- the pods' side ---

    @contextlib.contextmanager
    def local_arguments(self, arguments: Sequence[str]) -> Iterator[tuple[list[str], Callable[[], None]]]:
        """The step's arguments with paths of this machine, and what sends its results to the place."""
        if not self.in_store:
            yield list(arguments), lambda: None
            return
        with self._brought("inputs") as inputs, tempfile.TemporaryDirectory(prefix="autoformer-job-") as made:
            here = {f"{self.root}/inputs/": f"{inputs}/", f"{self.root}/outputs/": f"{made}/"}
            local = list(arguments)
            for there, folder in here.items():
                local = [folder + word.removeprefix(there) if word.startswith(there) else word for word in local]
            yield local, lambda: _send(Path(made), f"{self.root}/outputs")

    # --- a folder of the place, whole or not at all ---

    @contextlib.contextmanager
    def _sent(self, name: str) -> Iterator[Path]:
        """A folder for the caller to make, which then is in the place."""
        if not self.in_store:
            with replacing(Path(self.root, name)) as temporary:
                yield temporary
            return
        with tempfile.TemporaryDirectory(prefix="autoformer-job-") as scratch:
            yield Path(scratch, name)
            _send(Path(scratch, name), f"{self.root}/{name}")

    @contextlib.contextmanager
    def _brought(self, name: str) -> Iterator[Path]:
        """A folder of the place, as one that can be read here."""
        if not self.in_store:
            yield Path(self.root, name)
            return
        with tempfile.TemporaryDirectory(prefix="autoformer-job-") as scratch:
            storage.download_folder(f"{self.root}/{name}", Path(scratch, name))
            yield Path(scratch, name)


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


def inputs_hash(argv: Sequence[str]) -> str:
    """The same word for the same content of all that the step reads besides configuration and data."""
    return hash_value({name: hash_path(Path(value)) for name, value in _read(argv)})


def _read(argv: Sequence[str]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in pairs(argv) if name not in (*SAME_EVERYWHERE, *OUTPUTS)]


def _called(name: str, value: str) -> str:
    """What a file or folder is called in the place; its ending stays."""
    return name.removeprefix("--") + Path(value).suffix


def _made(argv: Sequence[str]) -> list[tuple[str, Path]]:
    """The step's outputs: what each is called in the place, and where its argument says."""
    return [(_called(name, value), Path(value)) for name, value in pairs(argv) if name in OUTPUTS]


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, copy_function=shutil.copyfile)
    elif source.is_file():
        shutil.copyfile(source, target)
    else:
        raise AutoFormerError(f"{source}: no such file or folder; run the step that makes it")


def _send(folder: Path, uri: str) -> None:
    storage.upload_folder(folder, uri)
