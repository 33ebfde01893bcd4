"""Servers whose answers have no end, in bytes, time or pages: each client ends with one line, in little memory."""

import itertools
import re
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import kubernetes.client
import pytest
from endless_server import ENDLESS, SLOW, Answer, Handler, answering

import commands.fetch
from autoformer.bounds import BOUNDS
from autoformer.errors import AutoFormerError, UnavailableError
from pipeline.cluster import pod_log
from pipeline.cluster.kfp_access import NoAnswerError
from pipeline.cluster.kfp_client import KfpClient
from runtime.common import answers
from runtime.kubernetes import api as kubernetes_api
from runtime.kubernetes.api import LINE_BYTES, PATIENCE, KubernetesApi
from runtime.storage.client import S3Uri, read_object
from runtime.storage.objects import head, list_objects
from runtime.tracking.bounded import bound_answers, check_listing
from runtime.tracking.store import translate_errors

MEMORY_MB = 300  # that an answer may take; its bound and what parses it
FOLDER = S3Uri("bucket", "folder")


def ask_kfp(address: str) -> None:
    KfpClient(address)


def ask_mlflow(address: str) -> None:
    from mlflow import MlflowClient

    bound_answers()
    with translate_errors(address):
        MlflowClient(address, address).search_experiments(max_results=1)


def list_s3(address: str) -> None:
    list_objects(FOLDER)


def read_s3(address: str) -> None:
    read_object(FOLDER)


CLIENTS = {"KFP": ask_kfp, "MLflow": ask_mlflow, "S3, a listing": list_s3, "S3, an object": read_s3}
Client = Callable[[str], None]


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let the clients find a server."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    monkeypatch.setattr("runtime.storage.errors.TRIES", 2)
    monkeypatch.setattr("runtime.storage.errors.PAUSE_SECONDS", 0.01)
    return lambda address: monkeypatch.setenv("AWS_ENDPOINT_URL", address)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "BOUNDS", BOUNDS.model_copy(update={"answer_seconds": 0.3}))


def peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)
@pytest.mark.parametrize("answer", ENDLESS.values(), ids=ENDLESS)
def test_an_answer_without_an_end_is_one_line(answer: Answer, client: Client, connect: Callable[[str], None]) -> None:
    if client in (list_s3, read_s3) and answer is ENDLESS["a bomb of gzip"]:
        pytest.skip("boto3 unpacks nothing")
    with answering(answer) as server:
        connect(server.address)
        before, start = peak_mb(), time.monotonic()
        with pytest.raises(AutoFormerError) as caught:
            client(server.address)
        assert peak_mb() - before < MEMORY_MB and time.monotonic() - start < 20
        assert server.address in str(caught.value) or str(FOLDER) in str(caught.value)
        assert not isinstance(caught.value, UnavailableError | NoAnswerError)


@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)
@pytest.mark.parametrize("answer", SLOW.values(), ids=SLOW)
@pytest.mark.usefixtures("impatient")
def test_an_answer_of_a_byte_now_and_then_ends(answer: Answer, client: Client, connect: Callable[[str], None]) -> None:
    with answering(answer) as server:
        connect(server.address)
        start = time.monotonic()
        with pytest.raises(AutoFormerError, match=re.escape(server.address) + "|" + re.escape(str(FOLDER))):
            client(server.address)
        assert time.monotonic() - start < 5


@pytest.mark.parametrize("client", [ask_kfp, ask_mlflow, list_s3])
@pytest.mark.parametrize("status", [503, 302, 404])
def test_an_error_or_a_redirect_without_an_end_is_not_read_to_its_end(
    status: int, client: Client, connect: Callable[[str], None]
) -> None:
    def answer(handler: Handler) -> Iterator[bytes]:
        handler.send_header("Location", "/elsewhere")
        return ENDLESS["in chunks"](handler)

    with answering(answer, status) as server:
        connect(server.address)
        before = peak_mb()
        with pytest.raises(AutoFormerError):
            client(server.address)
        assert peak_mb() - before < MEMORY_MB


@pytest.mark.parametrize("answer", [*ENDLESS.values(), *SLOW.values()])
@pytest.mark.usefixtures("impatient")
def test_a_log_without_an_end_is_left_out(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = BOUNDS.model_copy(update={"log_bytes": 16 * 2**20})
    monkeypatch.setattr("pipeline.cluster.kfp_client.BOUNDS", bounds)
    monkeypatch.setattr(KfpClient, "_checked_call", lambda self, *_, **__: SimpleNamespace(multi_user=False))
    with answering(answer) as server:
        before, start = peak_mb(), time.monotonic()
        assert KfpClient(server.address).log("run", "pod", "namespace") == []
        assert peak_mb() - before < MEMORY_MB and time.monotonic() - start < 10


@pytest.mark.parametrize("answer", [*ENDLESS.values(), *SLOW.values()])
@pytest.mark.usefixtures("impatient")
def test_a_log_of_kubernetes_without_an_end_is_left_out(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_api, "BOUNDS", BOUNDS.model_copy(update={"log_bytes": 16 * 2**20}))
    with answering(answer) as server:
        configuration = kubernetes.client.Configuration(host=server.address)
        api = KubernetesApi(configuration, "namespace", PATIENCE)
        monkeypatch.setattr(KubernetesApi, "connect", lambda *_: api)
        before, start = peak_mb(), time.monotonic()
        assert pod_log._by_kubernetes("pod", "namespace") == []
        assert peak_mb() - before < MEMORY_MB and time.monotonic() - start < 10


def test_a_followed_line_without_an_end_keeps_its_end_only() -> None:
    def answer(handler: Handler) -> Iterator[bytes]:
        handler.end_headers()
        return itertools.chain(itertools.repeat(b"x" * 2**20, 400), [b"the end\nnext\nunfinished"])

    with answering(answer) as server:
        api = KubernetesApi(kubernetes.client.Configuration(host=server.address), "namespace", PATIENCE)
        before = peak_mb()
        first, second = api.log("pod", follow=True)
        assert LINE_BYTES <= len(first) < 1.1 * LINE_BYTES and (first[-8:], second) == ("xthe end", "next")
        assert peak_mb() - before < MEMORY_MB


def page(keys: Callable[[int], list[int]], token: Callable[[int], str]) -> Answer:
    """One page of a listing after the other; each says that there is a further one."""
    numbers = itertools.count()

    def answer(handler: Handler) -> Iterator[bytes]:
        number = next(numbers)
        contents = "".join(
            f"<Contents><Key>folder/{key:08}</Key><Size>1</Size><ETag>e</ETag></Contents>" for key in keys(number)
        )
        text = (
            f"<ListBucketResult><IsTruncated>true</IsTruncated>{contents}"
            f"<NextContinuationToken>{token(number)}</NextContinuationToken></ListBucketResult>"
        ).encode()
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        yield text

    return answer


@pytest.mark.parametrize(
    ("keys", "token"),
    [
        (lambda number: [number], lambda number: "the same"),
        (lambda number: [7, 8], str),
        (lambda number: [], str),
        (lambda number: [number], str),
    ],
    ids=["the same token", "the same objects", "no objects", "ever new objects"],
)
def test_a_listing_without_an_end_is_one_line(
    keys: Callable[[int], list[int]],
    token: Callable[[int], str],
    connect: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("runtime.storage.client.BOUNDS", BOUNDS.model_copy(update={"listed_pages": 50}))
    with answering(page(keys, token)) as server:
        connect(server.address)
        with pytest.raises(AutoFormerError, match="s3://bucket/folder") as caught:
            list_objects(FOLDER)
        assert server.count <= 51
        assert not isinstance(caught.value, UnavailableError)


def test_a_long_listing_is_reported(
    connect: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("runtime.storage.client.BOUNDS", BOUNDS.model_copy(update={"listed_pages": 3}))
    monkeypatch.setattr("runtime.storage.client._NOTICE_SECONDS", 0.0)
    with answering(page(lambda number: [2 * number, 2 * number + 1], str)) as server:
        connect(server.address)
        with pytest.raises(AutoFormerError):
            list_objects(FOLDER)
    assert "s3://bucket/folder: 6 objects listed so far" in capsys.readouterr().err


def test_an_object_without_the_headers_of_s3_is_one_line(connect: Callable[[str], None]) -> None:
    def answer(handler: Handler) -> Iterator[bytes]:
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return iter(())

    with answering(answer) as server:
        connect(server.address)
        with pytest.raises(AutoFormerError, match="s3://bucket/folder: the answer is not one of S3"):
            head(FOLDER)


def test_a_folder_of_artifacts_that_lists_itself_is_refused(
    monkeypatch: pytest.MonkeyPatch, connect: Callable[[str], None]
) -> None:
    def answer(handler: Handler) -> Iterator[bytes]:
        text = b'{"files": [{"path": "inner", "is_dir": true}, {"path": "a.txt", "is_dir": false, "file_size": 1}]}'
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        yield text

    import mlflow

    monkeypatch.setattr("runtime.tracking.bounded.BOUNDS", BOUNDS.model_copy(update={"model_files": 20}))
    with answering(answer) as server:
        mlflow.set_tracking_uri(server.address)
        with pytest.raises(AutoFormerError, match="lists more than 20 files of this model"):
            check_listing("mlflow-artifacts:/models/m/artifacts")
        assert server.count < 15


@pytest.mark.parametrize("answer", [*ENDLESS.values(), *SLOW.values()])
@pytest.mark.usefixtures("impatient")
def test_a_mirror_whose_answer_has_no_end_is_one_line(
    answer: Answer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with answering(answer) as server:
        monkeypatch.setattr(commands.fetch, "MIRRORS", (server.address,))
        monkeypatch.setattr(commands.fetch, "ROUTES", {"mirrors": commands.fetch.ROUTES["mirrors"]})
        start = time.monotonic()
        with pytest.raises(AutoFormerError, match=re.escape(server.address)):
            commands.fetch.fetch(tmp_path / "data")
        assert time.monotonic() - start < 10
    assert not (tmp_path / "data").exists()


def test_a_request_is_sent_again_only_if_its_answer_breaks_off() -> None:
    """urllib3 does so where it reads the answer itself."""
    texts = iter([b'{"multi_user":', b'{"multi_user": false}'])

    def answer(handler: Handler) -> Iterator[bytes]:
        handler.send_header("Content-Length", "21")
        handler.end_headers()
        yield next(texts)

    with answering(answer) as server:
        KfpClient(server.address)
        assert server.count == 2
