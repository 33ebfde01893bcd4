"""Copies of archives on the local disk: what is there is read there, within a limit, by all processes of a machine."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from s3_server import S3Server

from autoformer.errors import AutoFormerError
from autoformer.images.archives import EncodedImages
from autoformer.images.source import ByteRange
from autoformer.images.split_files import Split, image_checksums
from runtime.common.config import ROOT
from runtime.storage import cache, connect
from runtime.storage.archives import RUNNING, S3Archives, stage, start_staging
from runtime.storage.cache import PieceCache, free_space

PIECE = 2**16
SIZES = {"a.tar": 3 * PIECE + 100, "b.tar": PIECE}


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOFORMER_STAGING", str(tmp_path / "staged"))
    monkeypatch.setenv("AUTOFORMER_STAGING_GB", "1")
    monkeypatch.setattr(cache, "PIECE", PIECE)


def content(name: str, seed: int = 0) -> bytes:
    return np.random.default_rng([seed, *name.encode()]).bytes(SIZES[name])


@pytest.fixture
def uri(request: pytest.FixtureRequest, s3: S3Server) -> str:
    """A folder with two archives, and a file that is none."""
    for name in SIZES:
        connect().put_object(Bucket=s3.bucket, Key=f"{request.node.name}/{name}", Body=content(name))
    connect().put_object(Bucket=s3.bucket, Key=f"{request.node.name}/classes.txt", Body=b"cat")
    return s3.uri(request.node.name)


def disk_bytes() -> int:
    return sum(file.lstat().st_blocks * 512 for file in Path(os.environ["AUTOFORMER_STAGING"]).glob("*/**/*"))


def remove(uri: str, name: str) -> None:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    connect().delete_object(Bucket=bucket, Key=f"{key}/{name}")


def cache_of(archives: S3Archives) -> PieceCache:
    assert archives.cache is not None
    return archives.cache


def test_what_was_staged_is_read_from_the_disk(uri: str) -> None:
    archives = S3Archives(uri)
    assert len(cache_of(archives).missing(SIZES)) == 5
    stage(archives, ["a.tar"])
    assert cache_of(archives).missing(SIZES) == [ByteRange("b.tar", 0, PIECE)]
    remove(uri, "a.tar")
    for offset, size in ((0, 10), (PIECE - 5, 10), (0, SIZES["a.tar"]), (SIZES["a.tar"] - 3, 3)):
        assert archives("a.tar", offset, size) == content("a.tar")[offset : offset + size]
    assert archives("b.tar", 5, 7) == content("b.tar")[5:12]
    with pytest.raises(AutoFormerError, match=r"a.tar: there is no such object"):
        archives.reread("a.tar", 0, 10)


def test_an_index_leaves_what_it_has_read_on_the_disk(uri: str) -> None:
    archives = S3Archives(uri)
    with (archives / "a.tar").open() as file:
        assert (file.read(7), file.read(), file.read()) == (content("a.tar")[:7], content("a.tar")[7:], b"")
    assert cache_of(archives).missing(["a.tar"]) == []
    assert (archives / "classes.txt").read_text() == "cat"


def test_no_more_than_the_limit(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOFORMER_STAGING_GB", str(2.5 * PIECE / 1e9))
    archives = S3Archives(uri)
    stage(archives, list(SIZES))
    assert len(cache_of(archives).missing(SIZES)) in (2, 3, 4)  # at most two whole pieces fit, and the short one
    assert PIECE <= disk_bytes() <= 2.5 * PIECE
    with (archives / "b.tar").open() as file:
        assert file.read() == content("b.tar")  # though there is no room for it
    monkeypatch.setenv("AUTOFORMER_STAGING_GB", "0")
    assert S3Archives(uri).cache is None
    for wrong in ("much", "-1", "inf"):
        monkeypatch.setenv("AUTOFORMER_STAGING_GB", wrong)
        with pytest.raises(AutoFormerError, match=f"AUTOFORMER_STAGING_GB = {wrong}: expected gigabytes, 0 or more"):
            S3Archives(uri)("a.tar", 0, 1)


def test_room_is_made_by_what_nobody_reads(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of other content of the same name, from before."""
    old = S3Archives(uri)
    stage(old, list(SIZES))
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    connect().put_object(Bucket=bucket, Key=f"{key}/b.tar", Body=content("b.tar", seed=1))
    monkeypatch.setenv("AUTOFORMER_STAGING_GB", str(6 * PIECE / 1e9))
    new = S3Archives(uri)
    stage(new, list(SIZES))
    assert len(cache_of(new).missing(SIZES)) == 4  # the old one is being read
    assert old("a.tar", 0, 9) == content("a.tar")[:9]
    del old
    give_up = time.monotonic() + 60
    while cache_of(new).missing(SIZES):  # a thread may hold the old one for a moment
        assert time.monotonic() < give_up, "no room"
        stage(new, list(SIZES))
    assert new("b.tar", 0, 9) == content("b.tar", seed=1)[:9]
    assert free_space(10**9) == int(6 * PIECE) - disk_bytes()


def test_a_copy_that_was_damaged_is_read_anew(uri: str) -> None:
    archives = S3Archives(uri)
    stage(archives, ["b.tar"])
    (file,) = Path(os.environ["AUTOFORMER_STAGING"]).glob("*/content")
    with file.open("r+b") as opened:
        opened.seek(-(-SIZES["a.tar"] // PIECE) * PIECE + 50)
        opened.write(b"damaged")
    checksums = image_checksums(np.frombuffer(content("b.tar")[:100], np.uint8)[None])
    rows = Split(np.array(["b.tar"]), np.zeros(1, np.int64), np.array([100]), np.zeros(1, np.int32), checksums)
    images = EncodedImages(file.parent, rows, 3, reader=archives)
    assert archives("b.tar", 0, 100) != content("b.tar")[:100]
    assert images.read(0) == content("b.tar")[:100]
    assert archives("b.tar", 0, 100) == content("b.tar")[:100], "the piece counts as missing"
    assert cache_of(archives).missing(["b.tar"]) == [ByteRange("b.tar", 0, PIECE)]


def first_byte_is_there(archives: S3Archives) -> bool:
    return archives.cache is not None and archives.cache.has("a.tar", 0, 1)


def test_one_process_writes_and_all_see_it(uri: str) -> None:
    archives = S3Archives(uri)
    with get_context("fork").Pool(1) as pool:
        assert not pool.apply(first_byte_is_there, (archives,))
        writer, other = cache_of(archives), S3Archives(uri)
        assert writer.acquire() and not cache_of(other).acquire()
        stage(other, ["a.tar"])
        cache_of(other).write(ByteRange("a.tar", 0, PIECE), content("a.tar")[:PIECE])
        assert len(cache_of(archives).missing(["a.tar"])) == 4
        writer.write(ByteRange("a.tar", 0, PIECE), content("a.tar")[:PIECE])
        assert pool.apply(first_byte_is_there, (archives,))
    writer.close()
    stage(archives, ["a.tar"])
    assert cache_of(archives).missing(["a.tar"]) == []


def test_staging_goes_on_beside_the_step(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, which has pieces of the usual size."""
    monkeypatch.setattr(cache, "PIECE", 8 << 20)
    archives = S3Archives(uri)
    start_staging(archives, ["a.tar"])
    give_up = time.monotonic() + 60
    while cache_of(archives).missing(["a.tar"]):
        assert time.monotonic() < give_up, "it has not come"
        time.sleep(0.02)
    remove(uri, "a.tar")
    assert archives("a.tar", 100, 50) == content("a.tar")[100:150]
    before = list(RUNNING)
    start_staging(archives, ["a.tar"])  # which is there
    assert before == RUNNING
    with RUNNING.pop() as process:
        process.terminate()


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_the_staging_process_ends_with_its_parent(uri: str, silent_server: str) -> None:
    code = (
        "import os, signal, sys; from runtime.storage import archives, objects\n"
        "entries = {'a.tar': objects.Entry('a.tar', 10**6, 'x')}\n"
        "unlisted = archives.S3Archives(sys.argv[1]); unlisted.entries = entries\n"
        "archives.start_staging(unlisted, ['a.tar'])\n"
        "print(archives.RUNNING[0].pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = os.environ | {"AWS_ENDPOINT_URL": silent_server}
    told = subprocess.run(
        [sys.executable, "-c", code, uri], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    child = Path(f"/proc/{int(told.stdout)}/stat")
    give_up = time.monotonic() + 60
    while child.exists() and child.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < give_up, "it is still there"
        time.sleep(0.05)
