"""Run the steps in containers on this machine, through KFP's DockerRunner.

A container has the caller's user, network and process numbers, a read-only root with its own /tmp, and the folders that
a step reads or writes, at the paths that they have outside.
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
from runtime.common.config import FILE_KEYS, ROOT, Config
from runtime.common.stopping import Stopped
from runtime.common.workspace import work_root
from runtime.storage import is_uri
from runtime.storage.cache import staging_root
from runtime.storage.data import remote_archives
from runtime.tracking.provenance import user
from runtime.tracking.store import sqlite_file, sqlite_uri, tracking_uri

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container
    from kfp import local

WORKING_FOLDER = Path("/app")  # of the images; relative paths start there
CHECKOUT_LABEL = "autoformer.checkout"
PASSED = ("AUTOFORMER_", "AWS_", "MLFLOW_", "OMP_", "NCCL_", "CUDA_VISIBLE_DEVICES", *PROXIES)  # prefixes of names
WITHHELD = ("AUTOFORMER_TTY", "AUTOFORMER_IMAGE")  # the terminal does not exist inside
# Variable -> default path; mounted read-only.
NAMED_FILES = {
    "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
    "AWS_CONFIG_FILE": "~/.aws/config",
    "AWS_CA_BUNDLE": "",
    "REQUESTS_CA_BUNDLE": "",
    "SSL_CERT_FILE": "",
}


class MountedPath(NamedTuple):
    """A file or folder mounted at the same path as on this machine."""

    path: Path
    writable: bool = False


def mounted_paths(config: Config, data: str, preset: str) -> list[MountedPath]:
    """The paths that the steps read or write, besides `runs/`, which KFP mounts. Creates the written folders.

    They include the folder of the MLflow store, by default the checkout, because sqlite writes its journal there.
    """
    store = sqlite_file(tracking_uri())
    written = [work_root().absolute(), staging_root().absolute(), *([store.absolute().parent] if store else [])]
    read = [*_named_files().values()]
    if not is_uri(data):
        read += [Path(data)] if remote_archives(Path(data)) else [Path(data), archive_folder(Path(data)).absolute()]
    if preset.endswith((".yaml", ".yml")):
        read.append(Path(preset))
    for step, key, path in FILE_KEYS:
        named = getattr(getattr(config, step), key, None)
        if named is not None and not is_uri(getattr(named, path)):
            file = Path(getattr(named, path))
            read.append(file.parent if key == "adopt" else file)  # with its supernet.json
    real = {folder.resolve(): folder for folder in written}
    outermost = [folder for path, folder in real.items() if not any(parent in real for parent in path.parents)]
    for folder in outermost:
        folder.mkdir(parents=True, exist_ok=True)
    mounts = {path: MountedPath(path) for path in read if path.exists()}
    return [*(mounts | {path: MountedPath(path, writable=True) for path in outermost}).values()]


def _named_files() -> dict[str, Path]:
    named = {name: os.environ.get(name) or default for name, default in NAMED_FILES.items()}
    paths = {name: Path(file).expanduser() for name, file in named.items() if file}
    return {name: path.absolute() for name, path in paths.items() if os.access(path, os.R_OK)}


def environment() -> dict[str, str]:
    """The environment of a step in a container."""
    passed = {name: value for name, value in os.environ.items() if name.startswith(PASSED) and name not in WITHHELD}
    store = sqlite_file(tracking_uri())
    return passed | {
        "USER": user(),
        "AUTOFORMER_WORK": str(work_root().absolute()),
        "AUTOFORMER_STAGING": str(staging_root().absolute()),
        "MLFLOW_TRACKING_URI": sqlite_uri(store) if store else tracking_uri(),
        **{name: str(path) for name, path in _named_files().items()},
    }


class Containers:
    """The images of this checkout; runs one container at a time.

    Args:
        steps: receives the process of the step inside the running container, to signal it.

    Raises:
        AutoFormerError: there is no Docker daemon, or no image was built from this source.
    """

    def __init__(self, steps: StepProcesses) -> None:
        self._client, self._steps = connect(), steps
        self.images = images_of_checkout(self._client)

    def runner(self, mounted: Iterable[MountedPath]) -> "local.DockerRunner":
        """KFP's runner for containers, with the options of every container.

        `run` replaces KFP's own function, which lets Docker remove a container when it ends, and reports a failed step
        as a success if it requests the exit code too late. It also splits lines, pulls a missing image, and cannot
        stop a step.
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
                for path, writable in mounted
            ],
            read_only=True,
            tmpfs={"/tmp": "exec,mode=1777"},  # torch.compile loads libraries that it writes there
            shm_size=psutil.virtual_memory().total // 2,  # as on the host; Docker's 64 MB are less than a batch
            network_mode="host",  # addresses of local servers stay valid
            pid_mode="host",  # a step watches its runner's process, and the runner signals the step's
            security_opt=["no-new-privileges"],
            labels={CHECKOUT_LABEL: str(ROOT)},
            **gpus,
        )

    def run(
        self, client: "DockerClient", image: str, command: list[str], volumes: Mapping[str, Any], **options: Any
    ) -> int:
        """Run a command in a container, print its lines as they come, and return its exit code."""
        import docker
        from requests.exceptions import RequestException

        try:
            container = client.containers.create(image, command, volumes=volumes, **options)
            try:
                return self._follow(container)
            finally:
                container.remove(force=True)
        except (docker.errors.DockerException, RequestException) as error:
            reason = " ".join(str(getattr(error, "explanation", None) or error).split())
            raise AutoFormerError(f"Docker could not run a step in {image} ({reason})") from error

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
        """Remove containers that a killed runner of this checkout has left, if they have ended or never started."""
        ours = {"label": f"{CHECKOUT_LABEL}={ROOT}"}
        for status in ("created", "exited", "dead"):
            for container in self._client.containers.list(all=True, filters=ours | {"status": status}):
                container.remove(force=True)


def _processes(container: "Container") -> list[psutil.Process]:
    """The main process of a container, if it runs on this machine's kernel."""
    container.reload()
    number = container.attrs["State"]["Pid"]
    try:  # in Docker's virtual machine the number would be that of another process here
        ours = container.id in Path(f"/proc/{number}/cgroup").read_text(encoding="utf-8")
        return [psutil.Process(number)] if ours else []
    except (OSError, psutil.NoSuchProcess):
        return []


def _lines(pieces: Iterable[bytes]) -> Iterator[str]:
    """Whole lines from chunks of bytes; invalid UTF-8 becomes replacement characters."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from (f"{line.decode(errors='replace')}\n" for line in lines)
    if rest:
        yield f"{rest.decode(errors='replace')}\n"
