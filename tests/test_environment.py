"""Odd values of environment variables are one line, or have no effect."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_doors import line_of

from runtime.common.processes import number_in_environment, ranks_on_machine, threads_of_rank
from runtime.steps import command
from runtime.steps.workers import cache_bytes, worker_count
from runtime.storage.cache import staging_bytes
from runtime.tracking.store import initialise, patience_seconds, tracking_uri

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
