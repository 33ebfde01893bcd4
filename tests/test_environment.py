"""Odd values of environment variables are one line, or have no effect."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_doors import line_of

from autoformer.errors import AutoFormerError, UnavailableError
from runtime.common.processes import number_in_environment, ranks_on_machine, threads_of_rank
from runtime.steps import command
from runtime.steps.workers import cache_bytes, worker_count
from runtime.storage import client
from runtime.storage.cache import staging_bytes
from runtime.storage.client import S3Uri
from runtime.storage.objects import head
from runtime.tracking.store import connect, initialise, patience_seconds, retry_while_away, tracking_uri

READERS: dict[str, Callable[[], object]] = {
    "LOCAL_WORLD_SIZE": ranks_on_machine,
    "WORLD_SIZE": lambda: number_in_environment("WORLD_SIZE", 1),
    "AUTOFORMER_WORKERS": lambda: worker_count(torch.device("cpu")),
    "AUTOFORMER_CACHE_GB": cache_bytes,
    "AUTOFORMER_STAGING_GB": staging_bytes,
    "AUTOFORMER_TRACKING_PATIENCE": patience_seconds,
    "AUTOFORMER_RUNNER_PID": command._runner,
}
ODD = ("abc", "9" * 5000, "1e400", "1e300", "nan", "inf", "²", "0x10", "\x1b[31mred", "\udcff", "s3://")


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("name", READERS)
def test_a_variable_that_is_no_sensible_number_is_one_line(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert line_of(READERS[name], name).isprintable()


def test_a_million_workers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOFORMER_WORKERS", "1000000")
    line_of(lambda: worker_count(torch.device("cpu")), "AUTOFORMER_WORKERS = 1000000: more than 1024")


@pytest.mark.parametrize("value", ODD)
def test_an_odd_number_of_threads_is_not_used(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert 1 <= threads_of_rank() <= os.cpu_count()  # type: ignore[operator]


@pytest.mark.parametrize("value", ["abc", "nan", "1e400"])
def test_an_odd_timeout_of_requests_is_one_line(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", value)
    line_of(lambda: initialise(tracking_uri()), f"MLFLOW_HTTP_REQUEST_TIMEOUT={value}: expected a number of seconds")


SERVER = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "AUTOFORMER_TRACKING_PATIENCE": "30"}
ODD_SETTINGS = (
    {"MLFLOW_TRACKING_URI": "http://127.0.0.1:99999"},
    {"MLFLOW_TRACKING_URI": "http://[::1"},
    {"MLFLOW_TRACKING_URI": "foo://x"},
    {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "-1"},
    {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "x"},
    {"MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "x"},
    {"MLFLOW_TRACKING_TOKEN": "geheimes\nWort"},
    {"MLFLOW_TRACKING_SERVER_CERT_PATH": "/nonexistent", "MLFLOW_TRACKING_URI": "https://127.0.0.1:9"},
    {"REQUESTS_CA_BUNDLE": "/nonexistent", "MLFLOW_TRACKING_URI": "https://127.0.0.1:9"},
)


@pytest.mark.parametrize("odd", ODD_SETTINGS, ids=lambda odd: next(iter(odd)))
def test_a_setting_of_mlflow_that_no_waiting_mends_is_refused_at_once(
    odd: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**SERVER, **odd}.items():
        monkeypatch.setenv(name, value)
    start = time.monotonic()
    with pytest.raises(AutoFormerError) as caught:
        retry_while_away(connect)
    assert time.monotonic() - start < 10
    assert "geheim" not in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["MLFLOW_LOGGING_LEVEL", "MLFLOW_CONFIGURE_LOGGING"])
def test_a_setting_with_which_mlflow_cannot_be_imported_is_one_line(name: str) -> None:
    code = (
        "import sys\nfrom runtime.common.console import Parser, run_command\n"
        "from runtime.tracking.store import connect\n"
        "sys.exit(run_command('name', Parser(), lambda _: connect(), []))"
    )
    environment = {**os.environ, name: "odd"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


ODD_AWS = (
    ({"AWS_DEFAULT_REGION": "a b"}, "AWS_DEFAULT_REGION"),
    ({"AWS_MAX_ATTEMPTS": "x"}, "AWS_MAX_ATTEMPTS=x: expected a number of tries from 1 to 100"),
    ({"AWS_MAX_ATTEMPTS": "99999999999"}, "AWS_MAX_ATTEMPTS=99999999999: expected"),
    ({"AWS_METADATA_SERVICE_TIMEOUT": "x"}, "AWS_METADATA_SERVICE_TIMEOUT"),
    ({"AWS_PROFILE": "unknown"}, "unknown"),
    ({"AWS_CONFIG_FILE": __file__}, "AWS configuration cannot be used"),
    ({"AWS_ENDPOINT_URL": "localhost:9000"}, "AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL: expected http://host:port"),
    ({"AWS_ENDPOINT_URL": "ftp://name:geheim@host"}, "was not a valid URI"),
    ({"AWS_SESSION_TOKEN": "geheimes\nWort"}, "AWS_ variables for line breaks"),
    ({"HTTP_PROXY": "http://[::1"}, "check HTTP_PROXY"),
    (
        {"AWS_ACCESS_KEY_ID": "", "AWS_WEB_IDENTITY_TOKEN_FILE": "/nonexistent", "AWS_ROLE_ARN": "arn:x"},
        "a file of the AWS configuration cannot be read: .*/nonexistent",
    ),
    ({"AWS_ACCESS_KEY_ID": "", "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://foo"}, "foo"),
)


@pytest.mark.parametrize(
    ("odd", "words"), ODD_AWS, ids=lambda value: next(iter(value)) if isinstance(value, dict) else None
)
def test_a_setting_of_aws_that_no_waiting_mends_is_one_line(
    odd: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**usual, "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1", **odd}.items():
        monkeypatch.setenv(name, value)
    client._connect.cache_clear()
    try:
        with pytest.raises(AutoFormerError, match=words) as caught:
            head(S3Uri("bucket", "folder"))
    finally:
        client._connect.cache_clear()
    assert not isinstance(caught.value, UnavailableError)
    assert "geheim" not in str(caught.value) and str(caught.value).isprintable()
