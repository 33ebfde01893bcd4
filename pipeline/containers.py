"""The steps in containers on this machine: KFP's DockerRunner, each task with what it needs of the machine.

A container has the caller's user, network and process numbers, a read-only root with a /tmp of its own, and those
folders that a step reads or writes, each under the name that it has outside.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

from autoformer.errors import AutoFormerError
from autoformer.images.source import archive_folder
from pipeline.images import PROXIES, connect, images_of_checkout
from pipeline.step_processes import StepProcesses
from runtime.common.config import ROOT, Config
from runtime.common.stopping import Stopped
from runtime.common.workspace import work_root
from runtime.storage import is_uri
from runtime.storage.cache import staging_root
from runtime.storage.data import remote_archives
from runtime.tracking.provenance import user
from runtime.tracking.store import sqlite_file, tracking_uri

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container
    from kfp import local

WORKING_FOLDER = Path("/app")  # of the images; what a step is given by a relative path is found below it
CHECKOUT_LABEL = "autoformer.checkout"
# What of the environment a step is told: names, and what names begin with.
PASSED = ("AUTOFORMER_", "AWS_", "MLFLOW_", "OMP_", "NCCL_", "CUDA_VISIBLE_DEVICES", *PROXIES)
KEPT = ("AUTOFORMER_TTY", "AUTOFORMER_IMAGE")  # a terminal of outside is none inside
# Files that the environment names, or that are at a place of their own: mounted, to be read.
NAMED_FILES = {
    "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
    "AWS_CONFIG_FILE": "~/.aws/config",
    "AWS_CA_BUNDLE": "",
    "REQUESTS_CA_BUNDLE": "",
    "SSL_CERT_FILE": "",
}


class MountedPath(NamedTuple):
    """A file or folder of this machine that the steps see, under its own name."""

    path: Path
    writable: bool = False


def mounted_paths(config: Config, data: str, preset: str) -> list[MountedPath]:
    """What the steps read and write beside `runs/`, which KFP mounts itself. Folders to be written are made.

    The store's folder is among them, by default the checkout: sqlite writes its journal beside the file.
    """
    store = sqlite_file(tracking_uri())
    written = [work_root().absolute(), staging_root().absolute(), *([store.absolute().parent] if store else [])]
    read = [*_data_places(data), *_named_files().values()]
    read += [Path(preset)] if preset.endswith((".yaml", ".yml")) else []
    for section in (config.train_supernet, config.retrain_subnet):
        if section is not None and section.distillation is not None:
            read.append(Path(section.distillation.checkpoint))
    written = _outermost(written)
    for folder in written:
        folder.mkdir(parents=True, exist_ok=True)
    found = {path: MountedPath(path) for path in read} | {path: MountedPath(path, writable=True) for path in written}
    return [place for path, place in found.items() if place.writable or path.exists()]


def _outermost(folders: Iterable[Path]) -> list[Path]:
    """Without those that lie in another of them."""
    real = {folder.resolve(): folder for folder in folders}
    return [folder for place, folder in real.items() if not any(parent in real for parent in place.parents)]


def _data_places(data: str) -> list[Path]:
    """The data folder, and where its archives are; none of what lies in S3."""
    if is_uri(data):
        return []
    folder = Path(data)
    return [folder] if remote_archives(folder) else [folder, archive_folder(folder).absolute()]


def _named_files() -> dict[str, Path]:
    named = {name: os.environ.get(name) or usual for name, usual in NAMED_FILES.items()}
    paths = {name: Path(file).expanduser() for name, file in named.items() if file}
    return {name: path.absolute() for name, path in paths.items() if os.access(path, os.R_OK)}


def environment() -> dict[str, str]:
    """What a step in a container is told of this process's environment."""
    passed = {name: value for name, value in os.environ.items() if name.startswith(PASSED) and name not in KEPT}
    store = sqlite_file(tracking_uri())
    return passed | {
        "USER": user(),
        "AUTOFORMER_WORK": str(work_root().absolute()),
        "AUTOFORMER_STAGING": str(staging_root().absolute()),
        "MLFLOW_TRACKING_URI": f"sqlite:///{store.absolute()}" if store else tracking_uri(),
        **{name: str(path) for name, path in _named_files().items()},
    }


class Containers:
    """The images of this checkout, and what runs the container of each task, one at a time.

    Args:
        steps: is told the processes of a container, so that a signal reaches the step in it.

    Raises:
        AutoFormerError: there is no Docker daemon, or no image of this source.
    """

    def __init__(self, steps: StepProcesses) -> None:
        self._client, self._steps = connect(), steps
        self.images = images_of_checkout(self._client)

    def runner(self, seen: Iterable[MountedPath]) -> "local.DockerRunner":
        """KFP's runner for containers, with the options that every step's container has.

        `run` takes the place of KFP's own function, which lets Docker remove a container as it ends: where it then
        asks too late for the exit code, it takes a failed step for a success. It also prints pieces for lines, fetches
        an image that is missing, and has no way to stop a step.
        """
        from docker.types import DeviceRequest, Mount
        from kfp import local
        from kfp.local import docker_task_handler

        self._remove_ended()
        docker_task_handler.run_docker_container = self.run
        gpus = {}
        if "nvidia" in self._client.info().get("Runtimes", {}):
            gpus = {"device_requests": [DeviceRequest(count=-1, capabilities=[["gpu"]])]}
        return local.DockerRunner(
            user=f"{os.getuid()}:{os.getgid()}",
            environment=environment(),
            mounts=[
                Mount(str(WORKING_FOLDER / path), str(path.resolve()), type="bind", read_only=not writable)
                for path, writable in seen
            ],
            read_only=True,
            tmpfs={"/tmp": "exec,mode=1777"},  # torch.compile loads what it has written there
            shm_size=psutil.virtual_memory().total // 2,  # as outside; Docker's own 64 MB hold no batch of photographs
            network_mode="host",  # a server of this machine is found by the address that it has here
            pid_mode="host",  # a step sees that its runner is gone, and the runner sees the step
            security_opt=["no-new-privileges"],
            labels={CHECKOUT_LABEL: str(ROOT)},
            **gpus,
        )

    def run(
        self, client: "DockerClient", image: str, command: list[str], volumes: Mapping[str, Any], **options: Any
    ) -> int:
        """Run a command to its end, its lines printed as they come; its exit code."""
        import docker
        from requests.exceptions import RequestException

        try:
            container = client.containers.create(image, command, volumes=volumes, **options)
            try:
                return self._follow(container)
            finally:
                container.remove(force=True)
        except (docker.errors.DockerException, RequestException) as error:
            raise AutoFormerError(f"Docker could not run a step in {image} ({_in_one_line(error)})") from error

    def _follow(self, container: "Container") -> int:
        container.start()
        with self._steps.including(_processes(container)):
            try:
                for line in _lines(container.logs(stream=True, follow=True)):
                    print(line, end="")
            except Stopped:
                self._steps.stop()
                raise
        return int(container.wait()["StatusCode"])

    def _remove_ended(self) -> None:
        """Remove what a killed runner of this checkout has left: containers that have ended, or never began."""
        ours = {"label": f"{CHECKOUT_LABEL}={ROOT}"}
        for status in ("created", "exited", "dead"):
            for container in self._client.containers.list(all=True, filters=ours | {"status": status}):
                container.remove(force=True)


def _processes(container: "Container") -> list[psutil.Process]:
    """The first process of a container that runs on this machine's kernel, by its number here."""
    container.reload()
    number = container.attrs["State"]["Pid"]
    try:  # the number of a virtual machine's process means another one here
        ours = container.id in Path(f"/proc/{number}/cgroup").read_text(encoding="utf-8")
        return [psutil.Process(number)] if ours else []
    except (OSError, psutil.NoSuchProcess):
        return []


def _lines(pieces: Iterable[bytes]) -> Iterator[str]:
    """Whole lines, each with its end, of bytes that come in pieces; what is no UTF-8 is shown as such."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from (f"{line.decode(errors='replace')}\n" for line in lines)
    if rest:
        yield f"{rest.decode(errors='replace')}\n"


def _in_one_line(error: Exception) -> str:
    return " ".join(str(getattr(error, "explanation", None) or error).split())
