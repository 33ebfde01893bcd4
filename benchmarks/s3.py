"""Staging of an archive from S3 against boto3's own download of it.

The server is moto's, in a process of its own on this machine: this measures the work of this side, without a network.
"""

import logging
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from moto.server import ThreadedMotoServer

from benchmarks.rows import Row, interleaved, measured, ratio
from runtime.storage import connect
from runtime.storage.archives import S3Archives, stage

BUCKET, ARCHIVE = "benchmark", "train.tar"


def measure(quick: bool = False) -> dict[str, Any]:
    archive_mb, rounds = (16, 1) if quick else (64, 5)
    keys = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "benchmark")
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(1, get_context("spawn")) as server:
        staging, local = Path(name) / "staged", Path(name) / "downloaded"
        os.environ |= keys | {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": server.submit(_serve).result()}
        os.environ |= {"AUTOFORMER_STAGING": str(staging), "AUTOFORMER_STAGING_GB": "1"}
        connect().create_bucket(Bucket=BUCKET)
        content = np.random.default_rng(0).bytes(archive_mb << 20)
        connect().put_object(Bucket=BUCKET, Key=ARCHIVE, Body=content)

        def staged() -> None:
            shutil.rmtree(staging, ignore_errors=True)
            stage(S3Archives(f"s3://{BUCKET}"), [ARCHIVE])

        def downloaded() -> None:
            with local.open("wb") as file:
                connect().download_fileobj(BUCKET, ARCHIVE, file)
                os.fsync(file.fileno())

        seconds = interleaved({"staged": staged, "boto3": downloaded}, rounds)
    row = Row("archive staged / boto3.download_fileobj", ratio(seconds["staged"], seconds["boto3"]), "x", 1.5)
    return measured([row], archive_mb=archive_mb, seconds=seconds)


def _serve() -> str:
    """Start moto's server in a thread of this process; return its address."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    return f"http://{host}:{port}"
