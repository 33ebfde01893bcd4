"""Images out of S3: by ranges, and out of what was staged, against local files and against boto3's own download.

    python -m benchmarks.bench s3

The server is moto's, in a process of its own on this machine, so there is no network: what is measured is the work of
this side, and rates are as far from those of a real store as moto is. Ratios are of one run.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from socket import create_server
from typing import Any

import numpy as np

from autoformer.images.archives import FileReader, Reader
from autoformer.images.source import ByteRange
from benchmarks.rows import Row, interleaved, measured, ratio
from runtime.storage import connect
from runtime.storage.archives import S3Archives, stage

IMAGE_BYTES = 110_000  # ImageNet's mean
BATCH = 64  # images that are asked for together
BUCKET, ARCHIVE = "benchmark", "train.tar"
LARGE, SHARDS = f"s3://{BUCKET}/large", f"s3://{BUCKET}/shards"
SHARD_BYTES = 4 << 20  # moto's server copies a whole object for each range of it


def measure(quick: bool) -> dict[str, Any]:
    """Rows for `benchmarks.bench`."""
    archive_mb, images, rounds = (16, 64, 1) if quick else (64, 256, 5)
    with tempfile.TemporaryDirectory() as folder, _server(), _environment(Path(folder)):
        rng, local = np.random.default_rng(0), Path(folder) / "local"
        local.mkdir()
        connect().create_bucket(Bucket=BUCKET)
        connect().put_object(Bucket=BUCKET, Key=f"large/{ARCHIVE}", Body=rng.bytes(archive_mb << 20))
        names = [f"{number:04d}.tar" for number in range(8)]
        for name in names:
            (local / name).write_bytes(rng.bytes(SHARD_BYTES))
            connect().put_object(Bucket=BUCKET, Key=f"shards/{name}", Body=(local / name).read_bytes())
        offsets = rng.integers(0, SHARD_BYTES - IMAGE_BYTES, images).tolist()
        places = [ByteRange(names[number % len(names)], offset, IMAGE_BYTES) for number, offset in enumerate(offsets)]
        rows = _bringing(Path(folder), rounds) + _reading(local, names, places, rounds)
    return measured(rows, archive_mb=archive_mb, images=images, image_bytes=IMAGE_BYTES)


def _bringing(folder: Path, rounds: int) -> list[Row]:
    """A whole archive to the local disk."""

    def staged() -> None:
        shutil.rmtree(os.environ["AUTOFORMER_STAGING"], ignore_errors=True)
        stage(S3Archives(LARGE), [ARCHIVE])

    def downloaded() -> None:
        with (folder / "downloaded").open("wb") as file:
            connect().download_fileobj(BUCKET, f"large/{ARCHIVE}", file)
            os.fsync(file.fileno())

    seconds = interleaved({"staged": staged, "boto3": downloaded}, rounds, time.perf_counter)
    return [
        Row("archive staged / boto3.download_fileobj", ratio(seconds["staged"], seconds["boto3"]), "x", 1.5),
    ]


def _reading(local: Path, names: list[str], places: list[ByteRange], rounds: int) -> list[Row]:
    """Images at random places: one after the other, side by side, and out of what was staged."""
    stage(S3Archives(SHARDS), names)
    staged, files = S3Archives(SHARDS), FileReader(local)
    assert staged.cache is not None and not staged.cache.missing(names)
    os.environ["AUTOFORMER_STAGING_GB"] = "0"
    one, several = S3Archives(SHARDS), S3Archives(SHARDS)
    runs = {
        "one by one": lambda: _read(one, places),
        "side by side": lambda: _read(several, places, several),
        "staged": lambda: _read(staged, places, staged),
        "files": lambda: _read(files, places),
    }
    seconds = interleaved(runs, rounds, time.perf_counter)
    rate = len(places) / sorted(seconds["side by side"])[rounds // 2]
    return [
        Row("images from S3, side by side / one by one", ratio(seconds["side by side"], seconds["one by one"]), "x", 1),
        Row("images staged / in local files", ratio(seconds["staged"], seconds["files"]), "x", 2),
        Row("images from S3, side by side", rate, "images/s", note="as fast as moto's server answers"),
    ]


def _read(reader: Reader, places: list[ByteRange], ahead: S3Archives | None = None) -> None:
    for first in range(0, len(places), BATCH):
        batch = places[first : first + BATCH]
        if ahead:
            ahead.prefetch(batch)
        for place in batch:
            assert len(reader(*place)) == IMAGE_BYTES


@contextlib.contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """What steps would find in theirs."""
    before = dict(os.environ)
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "benchmark",
        "AWS_SECRET_ACCESS_KEY": "benchmark",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AUTOFORMER_STAGING": str(folder / "staged"),
        "AUTOFORMER_STAGING_GB": "1",
    }
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _server() -> Iterator[None]:
    """moto's, which `AWS_ENDPOINT_URL` names meanwhile."""
    with create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        give_up = time.monotonic() + 120
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError("moto's server does not start")
            time.sleep(0.1)
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
        yield
    finally:
        os.environ.pop("AWS_ENDPOINT_URL", None)
        process.terminate()
        process.wait()


def _answers(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/moto-api/")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
