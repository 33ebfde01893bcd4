"""Fetch the four files of Fashion-MNIST into a data folder, by the first route that works.

    python -m commands.fetch --dataset fashion-mnist --data data/fashion-mnist

Every route gives the published bytes, so `data.dvc` always matches.
"""

import argparse
import shutil
import struct
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

from autoformer.errors import AutoFormerError
from autoformer.files import hash_file, replacing
from components.prepare_data.fashion_mnist import ARCHIVES, NAME
from runtime.common.answers import whole
from runtime.common.console import Parser, print_line, run_command

PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("usr/share/datasets/fashion-mnist")  # below / or an unpacked package

# The first is torchvision's (torchvision.datasets.FashionMNIST.mirrors, BSD-3), the second the authors' repository.
MIRRORS = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion",
)

# Debian's build drops name and time from the gzip headers of the published files and keeps the compressed
# bytes. These are the times (POSIX seconds) in the published headers.
_PUBLISHED_AT = {"train": 1504176606, "t10k": 1504176627}
_GZIP_HAS_NAME = 8
_GZIP_HEADER_BYTES = 10


_MOST_BYTES = 2**26  # of a download; the published files are smaller


class RouteError(Exception):
    """A route failed; the message is the reason."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m commands.fetch", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default=NAME, help="only this one can be fetched: %(default)s")
    parser.add_argument("--data", type=Path, default=Path("data") / NAME, help="folder to fill (default: %(default)s)")

    def work(arguments: argparse.Namespace) -> None:
        if arguments.dataset != NAME:
            raise AutoFormerError(_not_fetched(arguments.dataset))
        print(f"{arguments.data}: {NAME}, {fetch(arguments.data)}")

    return run_command("fetch", parser, work, argv, after="")


def _not_fetched(dataset: str) -> str:
    """The error for a data set that this command cannot fetch, with what to do."""
    from commands.deliver import OFFICIAL

    if dataset in OFFICIAL:
        return f"DATASET={dataset}: download its archives yourself, and give their folder: ARCHIVES=folder"
    return (
        f"DATASET={dataset}: only {NAME} is fetched; ARCHIVES=folder is for {', '.join(OFFICIAL)}, and for class "
        "folders or WebDataset shards under any name; DATA=folder NAME=name is for your own images"
    )


def fetch(data: Path) -> str:
    """Fetch the four published files into `data`, each whole or not at all.

    Returns:
        "already there", or the name of the route.

    Raises:
        AutoFormerError: no route worked; the message has the reason for each.
    """
    present = [name for name in ARCHIVES if (data / name).is_file() and hash_file(data / name) == ARCHIVES[name]]
    missing = [name for name in ARCHIVES if name not in present]
    if not missing:
        return "already there"
    problems = []
    for route, get in ROUTES.items():
        with tempfile.TemporaryDirectory(prefix="autoformer-fetch-") as folder:
            try:
                files = _published(get(Path(folder), missing), missing)
            except RouteError as problem:
                problems.append(f"{route}: {problem}")
                continue
            for name, content in files.items():
                with replacing(data / name) as temporary:
                    temporary.write_bytes(content)
            return route
    raise AutoFormerError(
        f"{data}: could not get {NAME} ({'; '.join(problems)}); install Debian's package {PACKAGE}, "
        f"or put {', '.join(missing)} there from one of: {' '.join(MIRRORS)}"
    )


def published_bytes(name: str, content: bytes) -> bytes:
    """The published file, unchanged or restored from Debian's copy, whose gzip header lacks name and time."""
    flags = content[3:4]
    if content[:2] != b"\x1f\x8b" or flags != b"\x00":
        return content
    time = _PUBLISHED_AT[name.partition("-")[0]]
    header = content[:3] + bytes([_GZIP_HAS_NAME]) + struct.pack("<I", time) + content[8:_GZIP_HEADER_BYTES]
    return header + name.removesuffix(".gz").encode() + b"\x00" + content[_GZIP_HEADER_BYTES:]


def _published(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Read all files of a route and verify their checksums before any is written."""
    files = {}
    for name in names:
        if not (folder / name).is_file():
            raise RouteError(f"no {name}")
        files[name] = published_bytes(name, (folder / name).read_bytes())
        if sha256(files[name]).hexdigest() != ARCHIVES[name]:
            raise RouteError(f"{name} has another checksum than the published file")
    return files


def _unpack_package(folder: Path, _: Sequence[str]) -> Path:
    """Download Debian's package and unpack it into `folder`, without root. Fetches package lists if there are none."""
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise RouteError("no apt-get or no dpkg here")
    lists, cache = folder / "lists", folder / "cache"
    (lists / "partial").mkdir(parents=True)
    (cache / "archives" / "partial").mkdir(parents=True)
    # As root, apt would read and write as the user _apt, who has no access to a private folder.
    sandbox = ["-o", "APT::Sandbox::User=root"]
    private = [*sandbox, "-o", f"Dir::State::lists={lists}", "-o", f"Dir::Cache={cache}"]
    try:
        _call(["apt-get", *sandbox, "-o", f"Dir::Cache={cache}", "download", PACKAGE], folder)
    except RouteError:
        _call(["apt-get", *private, "update"], folder)
        _call(["apt-get", *private, "download", PACKAGE], folder)
    packages = list(folder.glob("*.deb"))
    if not packages:
        raise RouteError("apt-get download left no package")
    _call(["dpkg", "-x", str(packages[0]), str(folder / "unpacked")], folder)
    return folder / "unpacked" / INSTALLED


def _call(command: list[str], folder: Path, seconds: float = 300) -> None:
    print_line(f"fetch: {command[0]} {PACKAGE if 'update' not in command else 'update'}, up to {seconds:.0f} s")
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise RouteError(f"{command[0]} took longer than {seconds:.0f} s") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RouteError(f"{command[0]} ended with {done.returncode}: {last}")


def _download(folder: Path, names: Sequence[str]) -> Path:
    """Download files into `folder`, each from the first mirror that has the published bytes."""
    for name in names:
        problems = []
        for mirror in MIRRORS:
            try:
                with urllib.request.urlopen(f"{mirror}/{name}", timeout=30) as answer:
                    content = whole(answer.read1, mirror, _MOST_BYTES)
            except (OSError, ValueError) as error:
                problems.append(f"{mirror}: {getattr(error, 'reason', error)}")
                continue
            if sha256(content).hexdigest() == ARCHIVES[name]:
                (folder / name).write_bytes(content)
                break
            problems.append(f"{mirror}: {name} has another checksum than the published file")
        else:
            raise RouteError(", ".join(problems))
    return folder


# Route -> function that gets an empty folder and the missing names, and returns the folder with the files.
ROUTES: dict[str, Callable[[Path, Sequence[str]], Path]] = {
    "installed": lambda folder, names: Path("/") / INSTALLED,
    "debian": _unpack_package,
    "mirrors": _download,
}


if __name__ == "__main__":
    raise SystemExit(main())
