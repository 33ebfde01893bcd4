"""Where runs are kept, and the one way to reach it. MLflow is imported inside functions: it takes seconds."""

import contextlib
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from autoformer.errors import AutoFormerError
from autoformer.locks import lock
from runtime.common.config import ROOT
from runtime.common.console import print_line
from runtime.common.redaction import hide
from runtime.common.retrying import retry, within

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

Answer = TypeVar("Answer")
EXPERIMENT = "autoformer"
LOCK_SECONDS = 120
PATIENCE_SECONDS = 300.0  # a server that is restarted, or moved to another machine, is back by then
FILE_PATIENCE_SECONDS = 60.0  # with a sqlite file that another process writes to
POLL_SECONDS = 5.0
# MLflow's own defaults are 7 retries of 120 s each, after a pause that the server may choose. Its jitter is drawn from
# Python's one generator, from which augmentation draws too: requests of another thread would move a training's result.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_PROBE_SECONDS = "10"


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or the sqlite file at the root of the repository."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{ROOT / 'mlflow.db'}"


def without_password(uri: str) -> str:
    """The address without user name and password, fit for records and messages."""
    parts = urlsplit(uri)
    secret, at, _ = parts.netloc.rpartition("@")
    return uri.replace(secret + at, "", 1) if at else uri


def sqlite_file(uri: str) -> Path | None:
    """The database file of a sqlite address; None for any other."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def connect() -> "MlflowClient":
    """A client of the store that `tracking_uri` names, which is made where it does not yet exist."""
    return initialise(tracking_uri())


@cache
def initialise(uri: str) -> "MlflowClient":
    """Create the store at `uri` if need be, and answer with a client of it.

    Safe to call from several processes at once: two first users of a fresh sqlite file would break it.

    Raises:
        AutoFormerError: the store does not answer, within about 20 seconds.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # the password of an address is in it
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    file = sqlite_file(uri)
    with translate_errors(uri):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        with locked(uri), _short_requests():
            client = mlflow.MlflowClient(uri, uri)
            client.search_experiments(max_results=1)
            client.search_registered_models(max_results=1)
    return client


class NoAnswerError(AutoFormerError):
    """The server does not answer, or not now: asking again may help."""

    def __init__(self, uri: str, why: str) -> None:
        address = without_password(uri)
        super().__init__(
            f"MLflow at {address} cannot be used ({why}); see that it is there, or set MLFLOW_TRACKING_URI"
        )
        self.notice = f"MLflow at {address} does not answer ({why})"


@contextlib.contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Say it in one line where the store does not do what it is asked."""
    try:
        yield
    except AutoFormerError:
        raise
    except Exception as error:  # MLflow, SQLAlchemy, requests and the file system each raise kinds of their own
        no_answer = NoAnswerError(uri, reason(error))
        if uri.startswith("http") and not is_refusal(error) and not _is_unauthorised(error):
            raise no_answer from error
        raise AutoFormerError(str(no_answer)) from error


def usual_patience_seconds() -> float:
    """How long a step waits for a store that is away, before its work and after it."""
    text = os.environ.get("AUTOFORMER_TRACKING_PATIENCE", "")
    if not text:
        return PATIENCE_SECONDS if tracking_uri().startswith("http") else FILE_PATIENCE_SECONDS
    try:
        return max(0.0, float(text))
    except ValueError:
        raise AutoFormerError(f"AUTOFORMER_TRACKING_PATIENCE={text}: expected a number of seconds") from None


def patiently(ask: Callable[[], Answer], seconds: float | None = None) -> Answer:
    """The answer of `ask`, which is called again while a server is away.

    Raises:
        AutoFormerError: the server said no, or nothing for so many seconds (the usual time where that is None).
    """
    seconds = usual_patience_seconds() if seconds is None else seconds

    def tell(error: NoAnswerError, failures: int) -> None:
        if failures == 1:
            print_line(f"tracking: {error.notice}; waiting for it, up to {seconds:.0f} s", sys.stderr)

    return retry(ask, NoAnswerError, within(seconds, repeat(POLL_SECONDS)), tell)


def is_refusal(error: Exception) -> bool:
    """Whether trying again is useless: the store, or the disk, has answered, and the answer is no."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in (
            "INVALID_PARAMETER_VALUE",
            "RESOURCE_DOES_NOT_EXIST",
            "RESOURCE_ALREADY_EXISTS",
            "BAD_REQUEST",
            "INVALID_STATE",
        )
    answer = getattr(error, "response", None)  # of requests, which uploads are made with
    if getattr(answer, "status_code", None) in (400, 404, 413):
        return True
    return isinstance(error, FileNotFoundError | TypeError | KeyError | ImportError)


def _is_unauthorised(error: Exception) -> bool:
    """Waiting does not help a step that begins without a password; one that is at work may be let in again."""
    from mlflow.exceptions import MlflowException

    return isinstance(error, MlflowException) and error.get_http_status_code() in (401, 403)


@contextlib.contextmanager
def locked(uri: str) -> Iterator[None]:
    """Hold the lock of a store among the processes of this machine."""
    database = sqlite_file(uri)
    digest = hashlib.sha256(uri.encode()).hexdigest()[:16]
    path = (
        database.with_name(f"{database.name}.lock")
        if database
        else Path(tempfile.gettempdir()) / f"mlflow-{os.getuid()}-{digest}.lock"
    )
    with path.open("a") as file:
        if not lock(file, wait_seconds=LOCK_SECONDS):
            raise AutoFormerError(f"{path}: another process has held this lock for {LOCK_SECONDS} s; end it")
        yield


def experiment_id(client: "MlflowClient") -> str:
    """The experiment that runs belong to: KFP's, else `MLFLOW_EXPERIMENT_NAME`, else "autoformer"; made if need be."""
    given = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if given:
        return given
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    with locked(client.tracking_uri):
        found = client.get_experiment_by_name(name)
        if found is None:
            found = _make_experiment(client, name)
    if found.lifecycle_stage == "deleted":
        raise AutoFormerError(
            f"the MLflow experiment '{name}' was deleted; restore it, or name another: MLFLOW_EXPERIMENT_NAME"
        )
    return str(found.experiment_id)


def _make_experiment(client: "MlflowClient", name: str) -> "Experiment":
    from mlflow.exceptions import MlflowException

    try:
        made = client.create_experiment(name, artifact_location=_artifact_location(client.tracking_uri, name))
    except MlflowException as error:  # a step on another machine was quicker
        found = client.get_experiment_by_name(name) if error.error_code == "RESOURCE_ALREADY_EXISTS" else None
        if found is None:
            raise
        return found
    return client.get_experiment(made)


def _artifact_location(uri: str, experiment: str) -> str | None:
    """Beside a sqlite file, whatever folder the step was started in; a server has a place of its own."""
    file = sqlite_file(uri)
    return None if file is None else (file.absolute().parent / "mlruns" / experiment).as_uri()


@contextlib.contextmanager
def _short_requests() -> Iterator[None]:
    """The first request is a small one: it need not have the time that an upload has."""
    usual = os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = min(usual, _PROBE_SECONDS, key=float)
    try:
        yield
    finally:
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = usual


def reason(error: BaseException) -> str:
    """An error as the short part of one line, without what is secret in it."""
    text = str(error)
    if text.startswith("API request to http"):  # what the request was for, three times over, before what went wrong
        text = str(_innermost(error))
    text = hide(" ".join(text.split())) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"


def _innermost(error: BaseException) -> BaseException:
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    return error
