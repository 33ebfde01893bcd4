"""What networks and servers do wrong: tried again, or one line; nothing lost, nothing half-written."""

import hashlib
import random
import resource
from pathlib import Path

import pytest
from botocore.retries import standard
from faulty_proxy import Fault, FaultyProxy

from autoformer.errors import AutoFormerError
from runtime.storage import client, connect, download_folder, downloads, exists, upload_folder, uploads
from runtime.storage.client import S3Uri
from runtime.storage.downloads import download
from runtime.storage.errors import MissingError, StorageError, storage_errors
from runtime.storage.objects import head, list_objects, list_uploads
from runtime.storage.uploads import upload

PART, RANGE = 2**16, 2**15
SIZE = PART + 7  # two parts, and three ranges


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "PART_BYTES", PART)
    monkeypatch.setattr(downloads, "RANGE_BYTES", RANGE)
    monkeypatch.setattr("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", 1)


def content(size: int = SIZE, seed: str = "") -> bytes:
    """Bytes of which no two parts are alike."""
    return b"".join(hashlib.sha256(f"{seed}{number}".encode()).digest() for number in range(-(-size // 32)))[:size]


def write(file: Path, value: bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(value)
    return file


@pytest.fixture
def uri(faulty: FaultyProxy, request: pytest.FixtureRequest) -> str:
    return faulty.server.uri(f"faults/{hashlib.md5(request.node.name.encode()).hexdigest()}")


PASSING_IN_AN_UPLOAD = [
    Fault("answer", "PUT", "InternalError", times=1),
    Fault("answer", "partNumber=2", "SlowDown", times=1),
    Fault("answer", "uploads", "ServiceUnavailable", times=1),
    Fault("answer", "POST", "InternalError", times=1, skip=1),  # the end of the upload
    Fault("reset", "PUT", times=1),
    Fault("corrupted on its way", "partNumber=1", times=2),
    Fault("answer", "partNumber=2", "NoSuchUpload", times=1),  # somebody has ended it
    Fault("answer", "GET", "AccessDenied"),  # who may write need not be allowed to ask
]


@pytest.mark.parametrize("fault", PASSING_IN_AN_UPLOAD, ids=lambda fault: f"{fault.kind}-{fault.where}-{fault.code}")
def test_an_upload_goes_on_after(fault: Fault, faulty: FaultyProxy, uri: str, tmp_path: Path) -> None:
    faulty.faults = [Fault(**vars(fault))]
    upload(write(tmp_path / "file", content()), uri)
    taken = faulty.faults[0].times < fault.times
    faulty.faults = []
    assert taken
    parsed = S3Uri.parse(uri)
    assert connect().get_object(Bucket=parsed.bucket, Key=parsed.key)["Body"].read() == content()
    assert list_uploads(parsed, parsed.key) == [] or fault.code == "NoSuchUpload"


PASSING_IN_A_DOWNLOAD = [
    Fault("answer", "GET", "InternalError", times=1),
    Fault("answer", "GET", "SlowDown", times=1),
    Fault("reset", "GET", times=1),
    Fault("reset in the body", "GET", times=3),
    Fault("cut off", "GET", times=3),
    Fault("shortened", "GET", times=3),
    Fault("corrupted", "GET", times=1),  # which shows when all has come; then all is fetched again
]


@pytest.mark.parametrize("fault", PASSING_IN_A_DOWNLOAD, ids=lambda fault: f"{fault.kind}-{fault.code}")
def test_a_download_goes_on_after(fault: Fault, faulty: FaultyProxy, uri: str, tmp_path: Path) -> None:
    upload(write(tmp_path / "file", content()), uri)
    faulty.faults = [Fault(**vars(fault))]
    download(uri, tmp_path / "came")
    assert faulty.faults[0].times == 0
    assert (tmp_path / "came").read_bytes() == content()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["came", "file"]


REFUSED = {
    "ExpiredToken": "{uri}: the AWS credentials have expired; renew them, and run the same command again",
    "InvalidAccessKeyId": "{uri}: the AWS credentials are not accepted (InvalidAccessKeyId); check AWS_ACCESS_KEY_ID, "
    "AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN",
    "NoSuchBucket": "{bucket}: there is no such bucket; make it, or correct its name",
    "SlowDown": "{uri}: S3 has no capacity or is at fault (SlowDown), after all tries; run the same command again "
    "later",
    "AccessDenied": "{uri}: access denied; these credentials lack {permission} there",
}


@pytest.mark.parametrize("code", REFUSED)
def test_what_does_not_pass_is_one_line(code: str, faulty: FaultyProxy, uri: str, tmp_path: Path) -> None:
    file, old = write(tmp_path / "file", content()), write(tmp_path / "old", b"old")
    upload(write(tmp_path / "other", b"other"), uri)
    line = REFUSED[code].replace("{uri}", uri).replace("{bucket}", f"s3://{faulty.server.bucket}")

    faulty.faults = [Fault("answer", "", code)]  # to HEAD too, whose answer has no body to say why
    with pytest.raises(StorageError) as read:
        download(uri, old)
    faulty.faults = [Fault("answer", method, code) for method in ("PUT", "POST")]
    with pytest.raises(StorageError) as written:
        upload(file, uri)
    faulty.faults = []

    assert str(read.value) == line.replace("{permission}", "s3:GetObject").replace("SlowDown", "503")
    assert str(written.value) == line.replace("{permission}", "s3:PutObject")
    assert old.read_bytes() == b"old"
    download(uri, tmp_path / "came")
    assert (tmp_path / "came").read_bytes() == b"other"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["came", "file", "old", "other"]


def test_bodies_that_never_arrive_leave_the_old_file_and_the_next_try_goes_on(
    faulty: FaultyProxy, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "PREFETCH", 1)  # the first range arrives, and no other
    old = write(tmp_path / "old", b"old")
    upload(write(tmp_path / "file", content()), uri)
    faulty.faults = [Fault("reset in the body", "GET", skip=1)]
    with pytest.raises(StorageError, match=r"what S3 sends breaks off \(.*\) in every attempt; try again later"):
        download(uri, old)
    assert old.read_bytes() == b"old"
    faulty.faults, faulty.lines = [], []
    download(uri, old)
    assert old.read_bytes() == content()
    assert faulty.count("GET") == 2  # of three ranges
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "old"]


def test_trying_again_draws_nothing_from_the_generator_that_augmentation_draws_from(
    faulty: FaultyProxy, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(write(tmp_path / "file", content()), uri)
    monkeypatch.setattr(standard.ExponentialBackoff, "delay_amount", lambda self, _: self._random() / 100)
    client._connect.cache_clear()  # the next client is made like the first
    faulty.faults = [Fault("answer", "GET", "SlowDown", times=1)]
    random.seed(1)
    expected = random.random()
    random.seed(1)
    download(uri, tmp_path / "came")
    assert faulty.faults[0].times == 0
    assert random.random() == expected


def test_an_upload_is_gone_on_with(faulty: FaultyProxy, uri: str, tmp_path: Path) -> None:
    """The parts that S3 has are not sent again; those of other content are, and what was left of it is removed."""
    file = write(tmp_path / "file", content(2 * PART + 1))
    faulty.faults = [Fault("answer", "partNumber=3", "AccessDenied")]
    with pytest.raises(StorageError, match="access denied"):
        upload(file, uri)
    assert not exists(uri)
    faulty.faults, faulty.lines = [], []
    upload(file, uri)
    assert faulty.count("partNumber=") == 1
    download(uri, tmp_path / "came")
    assert (tmp_path / "came").read_bytes() == file.read_bytes()

    write(file, content(2 * PART + 1, "new"))
    faulty.faults = [Fault("answer", "partNumber=3", "AccessDenied")]
    with pytest.raises(StorageError):
        upload(file, uri)
    write(file, content(2 * PART + 1, "newer"))
    faulty.faults, faulty.lines = [], []
    upload(file, uri)
    assert faulty.count("partNumber=") == 3
    parsed = S3Uri.parse(uri)
    assert list_uploads(parsed, parsed.key) == []


def test_the_same_beginning_with_another_end_is_not_taken_for_the_same(
    faulty: FaultyProxy, uri: str, tmp_path: Path
) -> None:
    """An upload that is gone on with has the sha256 of the content that it was begun for."""
    first, second = content(PART) + b"one", content(PART) + b"two"
    file = write(tmp_path / "file", first)
    faulty.faults = [Fault("answer", "partNumber=2", "AccessDenied")]
    with pytest.raises(StorageError):
        upload(file, uri)
    faulty.faults = []
    upload(write(file, second), uri)
    download(uri, tmp_path / "came", hashlib.sha256(second).hexdigest())
    assert (tmp_path / "came").read_bytes() == second


def test_a_disk_that_takes_no_more_names_the_file_and_the_next_try_goes_on(
    faulty: FaultyProxy, uri: str, tmp_path: Path
) -> None:
    upload(write(tmp_path / "file", content()), uri)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (RANGE + 1, limits[1]))
    try:
        with pytest.raises(OSError, match="came") as full:
            download(uri, tmp_path / "came")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert full.value.filename == str(tmp_path / "came") and not (tmp_path / "came").exists()
    faulty.lines = []
    download(uri, tmp_path / "came")
    assert (tmp_path / "came").read_bytes() == content() and faulty.count("GET") == 2  # of three ranges


def test_an_object_that_changes_midway_is_fetched_as_one(faulty: FaultyProxy, uri: str, tmp_path: Path) -> None:
    upload(write(tmp_path / "file", content()), uri)
    new, parsed = content(SIZE, "new"), S3Uri.parse(uri)

    def change(line: str) -> None:
        if line.startswith("GET") and faulty.count("GET") == 2:
            faulty.before = lambda line: None
            connect().put_object(Bucket=parsed.bucket, Key=parsed.key, Body=new)

    faulty.before = change
    download(uri, tmp_path / "came")
    assert (tmp_path / "came").read_bytes() == new


def test_an_object_that_is_gone_is_missing_though_its_server_answers_that_it_has_changed(
    faulty: FaultyProxy, uri: str, tmp_path: Path
) -> None:
    """SeaweedFS 4.34 answers 412 to a request with If-Match for an object that it does not have, S3 and moto 404."""
    upload(write(tmp_path / "file", content()), uri)
    parsed = S3Uri.parse(uri)
    etag = head(parsed).etag
    connect().delete_object(Bucket=parsed.bucket, Key=parsed.key)
    faulty.faults = [Fault("answer", "GET", "PreconditionFailed", times=1)]
    with pytest.raises(MissingError, match="there is no such object"):
        client.read_object(parsed, 1, 5, etag)
    assert faulty.faults[0].times == 0


def test_wrong_content_is_refused(faulty: FaultyProxy, uri: str, tmp_path: Path) -> None:
    upload(write(tmp_path / "file", b"hello"), uri)
    wanted, found = hashlib.sha256(b"world").hexdigest(), hashlib.sha256(b"hello").hexdigest()
    with pytest.raises(StorageError) as refused:
        download(uri, tmp_path / "came", wanted)
    assert str(refused.value) == (
        f"{uri}: its content has the checksum {found}, not {wanted}, in 3 tries; put the right one there"
    )
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_folder_is_there_whole_or_not_at_all(faulty: FaultyProxy, uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for name in "abc":
        write(folder / name, name.encode())
    faulty.faults = [Fault("answer", "PUT", "AccessDenied", skip=2)]
    with pytest.raises(StorageError, match="access denied"):
        upload_folder(folder, uri)
    with pytest.raises(StorageError, match="there is no such folder, or not all of it"):
        download_folder(uri, tmp_path / "came")
    faulty.faults, faulty.lines = [], []
    upload_folder(folder, uri)
    assert faulty.count("PUT") == 2  # the third file, and the manifest
    faulty.faults = [Fault("answer", "/c", "AccessDenied")]
    with pytest.raises(StorageError, match="access denied"):
        download_folder(uri, tmp_path / "came")
    assert not (tmp_path / "came").exists()
    faulty.faults = []
    download_folder(uri, tmp_path / "came")
    assert sorted(file.name for file in (tmp_path / "came").iterdir()) == ["a", "b", "c"]
    assert len(list_objects(uri)) == 4


def test_a_server_that_is_not_there_is_one_line(
    faulty: FaultyProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:secret@127.0.0.1:9")
    with pytest.raises(StorageError) as away:
        download("s3://bucket/key", tmp_path / "came")
    assert str(away.value) == (
        "s3://bucket/key: S3 at http://127.0.0.1:9 cannot be reached (EndpointConnectionError); check "
        "AWS_ENDPOINT_URL_S3 and the network, then run the same command again"
    )


def test_no_credentials_is_one_line(faulty: FaultyProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    client._connect.cache_clear()
    with pytest.raises(StorageError) as none:
        upload(write(tmp_path / "file", b"hello"), "s3://bucket/key")
    assert str(none.value) == (
        "s3://bucket/key: no AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    )
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    client._connect.cache_clear()
    with pytest.raises(StorageError) as unknown:
        upload(tmp_path / "file", "s3://bucket/key")
    assert str(unknown.value) == (
        "s3://bucket/key: the AWS configuration cannot be used: The config profile (nobody) could not be found"
    )
    client._connect.cache_clear()


def test_an_endpoint_that_is_no_url_is_one_line_without_it(
    faulty: FaultyProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "user:secret@nowhere")
    with pytest.raises(AutoFormerError) as refused:
        download("s3://bucket/key", tmp_path / "came")
    assert str(refused.value) == "AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL: expected http://host:port"


@pytest.mark.parametrize("error", [ValueError("Invalid timestamp \x1b[31m"), RecursionError(), KeyError("Size")])
def test_an_answer_that_boto3_cannot_read_is_one_line(error: Exception) -> None:
    with (
        pytest.raises(StorageError, match=r"^s3://bucket/key: the answer is not one of S3") as caught,
        storage_errors("s3://bucket/key"),
    ):
        raise error
    assert str(caught.value).isprintable()


def test_an_object_larger_than_its_kind_may_be_is_not_read(
    faulty: FaultyProxy, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(write(tmp_path / "file", content()), uri)
    monkeypatch.setattr(client, "BOUNDS", client.BOUNDS.model_copy(update={"json_bytes": 1000}))
    with pytest.raises(StorageError, match="larger than 1000 bytes"):
        client.read_object(S3Uri.parse(uri))
    assert (
        client.read_object(
            S3Uri.parse(uri),
            0,
            2000,
            client.connect().head_object(Bucket=S3Uri.parse(uri).bucket, Key=S3Uri.parse(uri).key)["ETag"],
        )
        == content()[:2000]
    )
