"""The folder with the files of a job on several machines.

KFP passes a step's files to the launcher's pod, where the job's pods cannot read them. So the launcher copies the
step's inputs, some megabytes and the supernet, to `<folder>/inputs/<name>`, and its outputs from
`<folder>/outputs/<name>`. The folder is on a volume that several machines mount, or in the store. The data set is never
copied: `--data` is a path or a URI that is valid everywhere.
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
    """The folder of one job. Its parts `inputs`, `outputs` and `closed` exist completely or not at all."""

    root: str  # a path, or s3://bucket/folder

    @classmethod
    def of_job(cls, settings: JobSettings, job: str) -> Self:
        """The folder in the store if there is one, else on the volume that all pods mount.

        Raises:
            AutoFormerError: there is no store and no volume, or the volume is not mounted here.
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

    # --- for the launcher ---

    def put_inputs(self, argv: Sequence[str]) -> list[str]:
        """Copy the step's inputs; return the arguments for the job's pods."""
        arguments: list[str] = []
        with self._put("inputs") as folder:
            folder.mkdir()
            for name, value in pairs(argv):
                if name in OUTPUTS:
                    value = f"{self.root}/outputs/{_file_name(name, value)}"
                elif name not in SAME_EVERYWHERE:
                    _copy(Path(value), folder / _file_name(name, value))
                    value = f"{self.root}/inputs/{_file_name(name, value)}"
                arguments += [name, value]
        return arguments

    def mark_closed(self) -> None:
        """Record that the job has ended, so that a launcher that no longer finds it does not reuse its name."""
        with self._put("closed") as folder:
            folder.mkdir()

    @property
    def closed(self) -> bool:
        if self.in_store:
            return storage.exists(f"{self.root}/closed/{MANIFEST}")
        return Path(self.root, "closed").exists()

    def has_outputs(self, argv: Sequence[str]) -> bool:
        """Whether all outputs of the step exist."""
        if self.in_store:
            return storage.exists(f"{self.root}/outputs/{MANIFEST}")
        return all(Path(self.root, "outputs", name).exists() for name, _ in _outputs(argv))

    def fetch_outputs(self, argv: Sequence[str]) -> None:
        """Copy the outputs of the step to the paths of its arguments, each whole or not at all."""
        with self._get("outputs") as folder:
            for name, target in _outputs(argv):
                with replacing(target) as temporary:
                    _copy(folder / name, temporary)

    # --- for the pods of the job ---

    @contextlib.contextmanager
    def local_arguments(self, arguments: Sequence[str]) -> Iterator[tuple[list[str], Callable[[], object]]]:
        """The step's arguments with local paths, and a function that uploads its outputs to the folder."""
        if not self.in_store:
            yield list(arguments), lambda: None
            return
        with self._get("inputs") as inputs, tempfile.TemporaryDirectory(prefix="autoformer-job-") as outputs:
            local = list(arguments)
            for name, folder in (("inputs", inputs), ("outputs", outputs)):
                root = f"{self.root}/{name}/"
                local = [f"{folder}/{word.removeprefix(root)}" if word.startswith(root) else word for word in local]
            yield local, lambda: storage.upload_folder(Path(outputs), f"{self.root}/outputs")

    # --- parts of the folder ---

    @contextlib.contextmanager
    def _put(self, name: str) -> Iterator[Path]:
        """Yield a path at which the caller creates a folder, which then becomes a part."""
        if not self.in_store:
            with replacing(Path(self.root, name)) as temporary:
                yield temporary
            return
        with tempfile.TemporaryDirectory(prefix="autoformer-job-") as scratch:
            yield Path(scratch, name)
            storage.upload_folder(Path(scratch, name), f"{self.root}/{name}")

    @contextlib.contextmanager
    def _get(self, name: str) -> Iterator[Path]:
        """Yield a part as a local folder, for reading."""
        if not self.in_store:
            yield Path(self.root, name)
            return
        with tempfile.TemporaryDirectory(prefix="autoformer-job-") as scratch:
            storage.download_folder(f"{self.root}/{name}", Path(scratch, name))
            yield Path(scratch, name)


def shared_folder(settings: JobSettings) -> str | None:
    """The folder that all pods of a job see."""
    writable = (volume.mount for volume in settings.volumes if not volume.read_only)
    return settings.shared or next(writable, None)


def pairs(argv: Sequence[str]) -> list[tuple[str, str]]:
    """`--name value` …, as the components build them."""
    names, values = argv[::2], argv[1::2]
    if len(names) != len(values) or not all(name.startswith("--") and "=" not in name for name in names):
        raise AutoFormerError("expected the step's arguments as --name value --name value …")
    return list(zip(names, values, strict=True))


def inputs_hash(argv: Sequence[str]) -> str:
    """A hash of the content of the step's inputs other than configuration and data."""
    inputs = {name: value for name, value in pairs(argv) if name not in (*SAME_EVERYWHERE, *OUTPUTS)}
    return hash_value({name: hash_path(Path(value)) for name, value in inputs.items()})


def _file_name(name: str, value: str) -> str:
    """The name of a file or folder in its part; the suffix is kept."""
    return name.removeprefix("--") + Path(value).suffix


def _outputs(argv: Sequence[str]) -> list[tuple[str, Path]]:
    """The step's outputs: name in the folder, and path in the arguments."""
    return [(_file_name(name, value), Path(value)) for name, value in pairs(argv) if name in OUTPUTS]


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, copy_function=shutil.copyfile)
    elif source.is_file():
        shutil.copyfile(source, target)
    else:
        raise AutoFormerError(f"{source}: no such file or folder; run the step that makes it")
