"""The hash of a data set: folders, S3, archives elsewhere."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from s3_server import S3Server
from test_caching import FORM, changed, for_cluster, keys_of_the_backend, parameters
from user_images import class_folders

from autoformer.files import hash_path
from components.resolve_config.step import CACHED_STEPS
from runtime.storage.data import hash_data


def test_data_of_a_folder_are_told_by_what_they_hold(tmp_path: Path) -> None:
    data = class_folders(tmp_path / "images", 2, 2)
    package, form = for_cluster("gpu"), FORM | {"data": str(data), "data_hash": ""}
    before = keys_of_the_backend(package, form)
    assert before == keys_of_the_backend(package, form | {"data_hash": hash_path(data)})
    (data / "a" / "000.png").write_bytes((data / "b" / "001.png").read_bytes())
    assert changed(before, keys_of_the_backend(package, form)) == set(CACHED_STEPS)


def test_data_in_s3_are_told_by_its_listing(s3: S3Server) -> None:
    from runtime.storage import connect

    def put(name: str, content: bytes) -> None:
        connect().put_object(Bucket=s3.bucket, Key=f"caching/{name}", Body=content)

    put("a.tar", b"a")
    put("b.tar", b"b")
    package, form = for_cluster("gpu"), FORM | {"data": s3.uri("caching"), "data_hash": ""}
    before = keys_of_the_backend(package, form)
    put("a.tar", b"a")
    assert changed(before, keys_of_the_backend(package, form)) == set()
    put("b.tar", b"c")
    assert changed(before, keys_of_the_backend(package, form)) == set(CACHED_STEPS)


def linked(data: Path, location: str, archives: dict[str, Any] | None = None) -> str:
    """A data folder that holds a source.yaml alone."""
    data.mkdir()
    (data / "source.yaml").write_text(json.dumps({"location": location, "archives": archives or {}}))
    return str(data)


def test_archives_elsewhere_in_s3_are_data_too(s3: S3Server, tmp_path: Path) -> None:
    """A data folder that holds a source.yaml alone, on disk or in S3: the keys change with a shard that it names."""
    from runtime.storage import connect

    def put(name: str, content: bytes) -> None:
        connect().put_object(Bucket=s3.bucket, Key=f"caching-elsewhere/{name}", Body=content)

    put("shards/0.tar", b"a")
    put("shards/1.tar", b"b")
    put("data/source.yaml", b"location: ../shards\n")
    package = for_cluster("gpu")
    places = linked(tmp_path / "data", s3.uri("caching-elsewhere/shards")), s3.uri("caching-elsewhere/data")
    forms = [FORM | {"data": data, "data_hash": ""} for data in places]
    before = [keys_of_the_backend(package, form) for form in forms]
    with_hash = [form | {"data_hash": hash_data(form["data"])} for form in forms]
    assert before == [keys_of_the_backend(package, form) for form in with_hash]
    put("shards/1.tar", b"b")
    assert before == [keys_of_the_backend(package, form) for form in forms]
    put("shards/1.tar", b"c")
    after = [keys_of_the_backend(package, form) for form in forms]
    assert [changed(*pair) for pair in zip(before, after, strict=True)] == [set(CACHED_STEPS)] * 2


def test_archives_in_another_folder_are_data_too(tmp_path: Path) -> None:
    """Shards that a source.yaml names without a sum: by size and time of change, so that none is read."""
    shards = tmp_path / "shards"
    shards.mkdir()
    for name in ("0.tar", "1.tar"):
        (shards / name).write_bytes(b"a")
    package, form = for_cluster("gpu"), FORM | {"data": linked(tmp_path / "data", str(shards)), "data_hash": ""}
    before = keys_of_the_backend(package, form)
    assert before == keys_of_the_backend(package, form)
    (shards / "1.tar").write_bytes(b"b")
    os.utime(shards / "1.tar", (1, 1))  # whatever the clock's tick
    assert changed(before, keys_of_the_backend(package, form)) == set(CACHED_STEPS)


def test_published_archives_are_told_by_their_sums(tmp_path: Path) -> None:
    """ImageNet on another disk, with other times and neighbours, is the same data; other sums or sizes are not."""
    archives = tmp_path / "archives"
    archives.mkdir()
    (archives / "train.tar").write_bytes(bytes(512))
    data = linked(tmp_path / "data", "../archives", {"train.tar": {"md5": "0" * 32}})
    first = hash_data(data)
    os.utime(archives / "train.tar", (1, 1))
    (archives / "notes.txt").write_text("mine")
    assert hash_data(data) == first
    (archives / "train.tar").write_bytes(bytes(1024))
    larger = hash_data(data)
    other_sum = hash_data(linked(tmp_path / "other", "../archives", {"train.tar": {"md5": "1" * 32}}))
    assert len({first, larger, other_sum}) == 3


def test_large_archives_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until size or time of change differ, as DVC has it."""
    monkeypatch.setenv("AUTOFORMER_WORK", str(tmp_path / "work"))
    archive = tmp_path / "data" / "train.tar"
    archive.parent.mkdir()
    archive.write_bytes(bytes(2**24))
    os.utime(archive, (1, 1))
    first = hash_data(archive.parent)
    assert first == hash_path(archive.parent)
    with archive.open("r+b") as file:
        file.write(b"changed")
    os.utime(archive, (1, 1))
    assert hash_data(archive.parent) == first
    os.utime(archive, (2, 2))
    assert hash_data(archive.parent) == hash_path(archive.parent) != first


def test_data_that_are_nowhere_are_one_line(
    tmp_path: Path, s3: S3Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AUTOFORMER_FAILURE", raising=False)
    package, nowhere = for_cluster("gpu"), str(tmp_path / "nowhere")
    not_mounted = "no such folder in this pod; mount its volume in every step, or give data_hash"
    for data, place, says in (
        (nowhere, nowhere, not_mounted),
        (linked(tmp_path / "linked", nowhere), nowhere, not_mounted),
        (s3.uri("caching-nowhere"), s3.uri("caching-nowhere"), "there is no such object"),
    ):
        with pytest.raises(SystemExit) as ended:
            parameters(package, FORM | {"data": data, "data_hash": ""})
        message = capsys.readouterr().err
        assert ended.value.code == 2 and message.count("\n") == 1
        assert message.startswith(f"resolve_config: {place}: ") and says in message
