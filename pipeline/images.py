"""Build the images of the pipeline from this checkout, and find images that were built from it.

KFP's cache goes by the tag, so the tag is a hash of the content: an image that is rebuilt with the same layers keeps
its tag and its cached results.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import autoformer
from autoformer.errors import AutoFormerError
from autoformer.files import hash_value, write_text
from autoformer.reading import read_yaml
from pipeline.cluster.settings import cluster_path
from runtime.common.code import code_files, hash_files
from runtime.common.config import ROOT
from runtime.common.console import Parser, run_command
from runtime.common.git import git
from runtime.common.redaction import without_password
from runtime.tracking.provenance import git_commit

if TYPE_CHECKING:
    from docker import DockerClient

NAMES = ("launcher", "training")
SOURCE_LABEL = "autoformer.source"
# The files in an image. A test holds that the Dockerfile copies these, and that the build context has no others.
CODE = (
    "LICENSE",
    "THIRD_PARTY_NOTICES.md",
    "params.yaml",
    "configs",
    "autoformer",
    "runtime",
    "components",
    "commands",
    "pipeline",
)
LEFT_OUT = ("configs/cluster", "pipeline/manifests")  # where steps run, which changes no image
RECIPE = ("docker/Dockerfile", *(f"docker/{name}.lock" for name in ("uv", "launcher", "training", "executor")))
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
# Package indices of this machine, passed as a build secret: an address may contain a password.
INDEX = (
    "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST",
    "UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_INSECURE_HOST",
)  # fmt: skip
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m pipeline.images", description="Build the images of the pipeline.")
    parser.add_argument("--tag", help="a tag beside the one that names the image's content")
    parser.add_argument("--registry", default="", help="what stands before the names: registry.example.com/team")
    parser.add_argument(
        "--push", action="store_true", help="push the images to their registry, and print their digests"
    )
    parser.add_argument("--cluster", help="with --push: the file of configs/cluster/ that is to name these digests")
    parser.add_argument("--build", default="", metavar="ARGUMENTS", help="more arguments of `docker build`")

    def work(arguments: argparse.Namespace) -> None:
        if arguments.cluster and not arguments.push:
            raise AutoFormerError("--cluster names images by digest, which an image has once it is pushed; give --push")
        settings = cluster_path(arguments.cluster) if arguments.cluster else None
        if settings is not None:
            read_yaml(settings)  # fails before the build if the file is unreadable
        client, pushed = connect(), {}
        for name in NAMES:
            image = build(client, name, arguments.registry, shlex.split(arguments.build), arguments.tag)
            built = client.images.get(image)
            print(f"{image}  {built.id}  {built.attrs['Size'] / 1e9:.2f} GB", flush=True)
            if arguments.push:
                pushed[name] = _push(client, image)
                print(f"  {pushed[name]}", flush=True)
        if settings is not None:
            name_images(settings, pushed)
            print(f"{settings}: names them")

    return run_command("images", parser, work, argv, after="")


def connect() -> "DockerClient":
    """A client of the Docker daemon in `DOCKER_HOST`, else of this machine's."""
    import docker
    from requests.exceptions import RequestException

    try:
        client = docker.from_env()
        client.ping()
    except (docker.errors.DockerException, RequestException):
        raise AutoFormerError(
            f"no Docker daemon answers at {_host()}; start one that this user may use, or name it in DOCKER_HOST"
        ) from None
    return client


def _host() -> str:
    return os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"


def build(client: "DockerClient", name: str, registry: str, more: Sequence[str], tag: str | None) -> str:
    """Build one image and tag it with its content; return its full name.

    Raises:
        AutoFormerError: `docker` is missing, or the build fails; Docker has printed the reason.
    """
    program = shutil.which("docker")
    if program is None:
        raise AutoFormerError("there is no `docker` on the PATH, which builds images; install it (Debian: docker.io)")
    repository = f"{registry.rstrip('/')}/autoformer-{name}".lstrip("/")
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "id"
        command = [program, "build", "--file", "docker/Dockerfile", "--target", name, "--iidfile", str(written)]
        for argument, value in _labels().items():
            command += ["--build-arg", f"{argument}={value}"]
        for proxy in PROXIES:  # by name only: Docker keeps the values out of the image and its history
            command += ["--build-arg", proxy] if proxy in os.environ else []
        command += [*_secrets(Path(folder)), *more, "."]
        environment = os.environ | {"DOCKER_BUILDKIT": "1", "DOCKER_HOST": _host()}
        if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode:
            raise AutoFormerError(f"the image '{name}' could not be built; Docker's messages are above")
        image = client.images.get(written.read_text(encoding="utf-8").strip())
    for each in filter(None, (content_tag(image.attrs), tag)):
        image.tag(repository, each)
    return f"{repository}:{content_tag(image.attrs)}"


def _labels() -> dict[str, str]:
    labels = {"VERSION": autoformer.__version__, "REVISION": git_commit(), "SOURCE": source_hash()}
    address = without_password(git("config", "--get", "remote.origin.url") or "")
    return labels | {"URL": address} if "://" in address else labels  # a local path is useless elsewhere


def _secrets(folder: Path) -> Iterator[str]:
    """Arguments that mount this machine's certificates and package index during the build."""
    certificates = Path(os.environ.get("SSL_CERT_FILE") or CERTIFICATES)
    if certificates.is_file():
        yield from ("--secret", f"id=ca,src={certificates}")
    lines = [f"{name}={shlex.quote(os.environ[name])}\n" for name in INDEX if os.environ.get(name)]
    if lines:
        file = folder / "index"
        file.write_text("".join(lines), encoding="utf-8")
        yield from ("--secret", f"id=index,src={file}")


def _push(client: "DockerClient", image: str) -> str:
    """Push an image; return its name by digest, as in `configs/cluster/`."""
    repository, _, tag = image.rpartition(":")
    for line in client.images.push(repository, tag=tag, stream=True, decode=True):
        if "error" in line:
            raise AutoFormerError(f"{image} could not be pushed ({line['error']}); see `docker login`, or the registry")
    digests: list[str] = client.images.get(image).attrs["RepoDigests"]
    return next(digest for digest in digests if digest.startswith(f"{repository}@"))


def name_images(settings: Path, images: Mapping[str, str]) -> None:
    """Write image names into a cluster's settings; the rest of the file stays, comments included.

    Raises:
        AutoFormerError: the file has no section `images` with a line for each image.
    """
    text = settings.read_text(encoding="utf-8")
    head, _, section = text.partition("\nimages:")
    for name, image in images.items():
        section, found = re.subn(rf"^( +{name}:) *\S+", rf"\1 {image}", section, count=1, flags=re.MULTILINE)
        if not found:
            raise AutoFormerError(f"{settings}: no line `{name}: …` under images; name there {image}")
    write_text(settings, f"{head}\nimages:{section}")


def content_tag(attributes: Mapping[str, Any]) -> str:
    """Hash (12 digits) of an image's layers and settings, without labels and commit.

    Args:
        attributes: the image's attributes from Docker's API.
    """
    config = attributes["Config"]
    settings = {key: config.get(key) for key in ("User", "WorkingDir", "Entrypoint", "Cmd")}
    variables = [variable for variable in config["Env"] if not variable.startswith("GIT_COMMIT=")]
    return hash_value([attributes["RootFS"]["Layers"], settings, variables])[:12]


def source_hash() -> str:
    """Hash of all files that the images are built from."""
    return hash_files({file.relative_to(ROOT).as_posix(): file for file in image_files()})


def image_files() -> list[Path]:
    """The files that the images are built from."""
    files = (file for name in (*CODE, *RECIPE) for file in code_files(ROOT / name))
    return [file for file in files if not any(file.is_relative_to(ROOT / name) for name in LEFT_OUT)]


def images_of_checkout(client: "DockerClient") -> dict[str, str]:
    """The newest image built from exactly this source, for each of `NAMES`.

    Raises:
        AutoFormerError: there is none, or only images built from other source.
    """
    return {name: _newest(client, name) for name in NAMES}


def _newest(client: "DockerClient", name: str) -> str:
    labels = [SOURCE_LABEL, f"org.opencontainers.image.title=autoformer-{name}"]
    built = [image for image in client.images.list(filters={"label": labels}) if image.tags]
    if not built:
        raise AutoFormerError(f"there is no image 'autoformer-{name}' at {_host()}; `make images` builds it")
    ours = [image for image in built if image.labels[SOURCE_LABEL] == source_hash()]
    if not ours:
        raise AutoFormerError(
            f"the image '{built[0].tags[0]}' was built from other source than this checkout holds; "
            "`make images` builds it again, in seconds where only code has changed"
        )
    newest = max(ours, key=lambda image: image.attrs["Created"])
    by_content = [tag for tag in newest.tags if tag.endswith(f":{content_tag(newest.attrs)}")]
    if not by_content:
        raise AutoFormerError(f"the image '{newest.tags[0]}' has lost the tag that names its content; `make images`")
    return by_content[0]


if __name__ == "__main__":
    raise SystemExit(main())
