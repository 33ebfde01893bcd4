"""S3 against moto's real server."""

import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest
from s3_server import S3Server

from autoformer.errors import AutoFormerError
from autoformer.files import hash_value
from runtime.storage import S3Uri, connect, download_folder, downloads, exists, is_uri, upload_folder, uploads
from runtime.storage.downloads import download
from runtime.storage.errors import MissingError, StorageError
from runtime.storage.objects import delete_folder, hash_listing, list_objects
from runtime.storage.uploads import upload

PART, RANGE = 2**16, 2**15


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "PART_BYTES", PART)
    monkeypatch.setattr(downloads, "RANGE_BYTES", RANGE)
    monkeypatch.setattr("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", 1)


def content(size: int) -> bytes:
    """Bytes of which no two parts are alike."""
    return b"".join(hashlib.sha256(str(number).encode()).digest() for number in range(-(-size // 32)))[:size]


def write(file: Path, value: bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(value)
    return file


def head(s3: S3Server, key: str) -> Any:
    return connect().head_object(Bucket=s3.bucket, Key=key, ChecksumMode="ENABLED")


def test_a_uri_is_a_bucket_and_a_key() -> None:
    uri = S3Uri.parse("s3://bucket/a/b/")
    assert uri == ("bucket", "a/b") and str(uri) == "s3://bucket/a/b" and str(uri / "c") == "s3://bucket/a/b/c"
    assert is_uri("s3://bucket") and not is_uri("/data/s3")
    for wrong in ("s3://", "/data", "s3:///key"):
        with pytest.raises(AutoFormerError, match="expected s3://bucket/folder"):
            S3Uri.parse(wrong)


def test_the_aws_environment_says_where_s3_is(s3: S3Server) -> None:
    connect().put_object(Bucket=s3.bucket, Key="where/it-is", Body=b"here")
    assert connect().get_object(Bucket=s3.bucket, Key="where/it-is")["Body"].read() == b"here"


@pytest.mark.parametrize("size", [0, 1, PART, PART + 1, 2 * PART + 3])
def test_a_file_goes_and_comes_back(s3: S3Server, tmp_path: Path, size: int) -> None:
    sent, uri = write(tmp_path / "sent", content(size)), s3.uri(f"round/{size}")
    sha256 = hashlib.sha256(content(size)).hexdigest()
    assert upload(sent, uri) == sha256
    download(uri, tmp_path / "came", sha256)
    assert (tmp_path / "came").read_bytes() == content(size)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["came", "sent"]


def test_an_object_has_the_checksums_that_s3_documents(s3: S3Server, tmp_path: Path) -> None:
    """Of one part: its sha256. Of several: the sha256 of the parts' sha256, one after the other."""
    upload(write(tmp_path / "one", b"hello"), s3.uri("checksums/one"))
    assert head(s3, "checksums/one")["ChecksumSHA256"] == "LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ="
    whole = content(PART + 7)
    upload(write(tmp_path / "two", whole), s3.uri("checksums/two"))
    digests = hashlib.sha256(whole[:PART]).digest() + hashlib.sha256(whole[PART:]).digest()
    found = head(s3, "checksums/two")
    assert found["ChecksumSHA256"].partition("-")[0] == base64.b64encode(hashlib.sha256(digests).digest()).decode()
    assert found["Metadata"] == {"sha256": hashlib.sha256(whole).hexdigest()}


def test_a_folder_goes_and_comes_back(s3: S3Server, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    write(folder / "small", b"a")
    write(folder / "below" / "empty", b"")
    write(folder / "large", content(PART + 1))
    uri = s3.uri("folder")
    names = [file.name for file in upload_folder(folder, uri)]
    assert names == ["below/empty", "large", "small"]
    assert [entry.name for entry in list_objects(uri)] == ["_manifest.json", *names]
    download_folder(uri, tmp_path / "came")
    for name in names:
        assert (tmp_path / "came" / name).read_bytes() == (folder / name).read_bytes()
    assert exists(f"{uri}/small") and not exists(f"{uri}/other")
    delete_folder(uri)
    assert list_objects(uri) == []
    with pytest.raises(MissingError, match=r"there is no such folder, or not all of it \(_manifest.json is missing\)"):
        download_folder(uri, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_hash_stands_for_what_a_folder_holds(s3: S3Server, tmp_path: Path) -> None:
    uri = s3.uri("hashed")
    for name, value in (("b", b"two"), ("a", b"one")):
        upload(write(tmp_path / name, value), f"{uri}/{name}")
    md5 = [hashlib.md5(value).hexdigest() for value in (b"one", b"two")]
    first = hash_value([["a", 3, f'"{md5[0]}"'], ["b", 3, f'"{md5[1]}"']])
    assert hash_listing(uri) == first
    upload(write(tmp_path / "b", b"2nd"), f"{uri}/b")
    assert hash_listing(uri) != first
    assert hash_listing(f"{uri}/a") == hash_value([["", 3, f'"{md5[0]}"']])
    with pytest.raises(MissingError, match="hashed/none: there is no such object"):
        hash_listing(f"{uri}/none")


def test_a_bucket_without_objects_is_named(s3: S3Server) -> None:
    connect().create_bucket(Bucket="empty")
    with pytest.raises(MissingError, match="s3://empty: the bucket is empty, or the name of an object is missing"):
        hash_listing("s3://empty")


def test_a_whole_bucket_is_never_emptied(s3: S3Server) -> None:
    with pytest.raises(StorageError, match="a whole bucket is never emptied"):
        delete_folder(f"s3://{s3.bucket}")


def test_a_file_is_never_of_more_parts_than_s3_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """10,000 parts; ImageNet's training archive, 138 GiB, goes in parts of the usual size, the largest object not."""
    monkeypatch.undo()
    gib = 2**30
    assert uploads.part_size(138 * gib) == 16 * 2**20
    for size in (160 * gib, 5 * 2**40, 5 * 2**40 - 1):
        assert size / 10_001 < uploads.part_size(size) and size / uploads.part_size(size) <= 10_000
