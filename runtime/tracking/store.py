"""The MLflow store: address, client, lock, and errors.

MLflow is imported inside functions, since the import takes seconds.
"""

import contextlib
import errno
import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar
from urllib.parse import quote, unquote

from autoformer.errors import AutoFormerError, shortened
from autoformer.files import check_regular
from autoformer.locks import lock
from runtime.common.addresses import is_sound
from runtime.common.config import checkout, lasting
from runtime.common.console import print_line
from runtime.common.processes import number_of
from runtime.common.redaction import hide, without_password
from runtime.common.retrying import retry, within
from runtime.tracking.bounded import bound_answers, endless_answer, is_odd_setting, root_cause
from runtime.tracking.moved import follow

if TYPE_CHECKING:
    from mlflow import MlflowClient

Answer = TypeVar("Answer")
LOCK_SECONDS = 120
PATIENCE_SECONDS = 300.0  # enough for a server to restart or move to another machine
FILE_PATIENCE_SECONDS = 60.0  # for a sqlite file that another process writes
POLL_SECONDS = 5.0
REASON_CHARACTERS = 200
# MLflow's own defaults are 7 retries of 120 s each, after a pause that the server may choose. Its jitter comes from
# Python's global generator, like augmentation, so requests of another thread would change the result of a training.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Else the server hands out addresses of its S3, which only its own network may reach: a download then hangs.
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
}
_FIRST_REQUEST_SECONDS = 10.0
_MOST_SECONDS = 1e9


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or the sqlite file at the root of the checkout.

    Raises:
        AutoFormerError: the path of that file cannot be part of an address.
    """
    if named := os.environ.get("MLFLOW_TRACKING_URI"):
        if (file := sqlite_file(named)) and lasting(file) != file:
            return f"sqlite:///{checkout()}/{named.removeprefix('sqlite:///')}"
        return named
    root = checkout()
    if set(str(root)) & set("%?") or set(str(root)) >= set("'\""):  # MLflow would write beside it, or write wrong SQL
        raise AutoFormerError(
            f"{root}: MLflow takes no path with a '%' or '?', or with both kinds of quotes; rename the folder, or set "
            "MLFLOW_TRACKING_URI"
        )
    try:
        str(root).encode()
    except UnicodeEncodeError:
        raise AutoFormerError(f"{str(root)!a}: a path that is not in UTF-8; rename the folder") from None
    return f"sqlite:///{root / 'mlflow.db'}"


def sqlite_file(uri: str) -> Path | None:
    """The database file of a sqlite address; None for any other."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0]))  # as in SQLAlchemy


def sqlite_uri(file: Path) -> str:
    """The inverse of `sqlite_file`."""
    return f"sqlite:///{quote(str(file.absolute()), safe='/ #@:+,=')}"


def connect() -> "MlflowClient":
    """A client of the store at `tracking_uri`; see `initialise`."""
    return initialise(tracking_uri())


@cache
def initialise(uri: str) -> "MlflowClient":
    """A client of the store at `uri`, which is created if it does not exist. Waits for a locked sqlite file.

    Raises:
        AutoFormerError: the store does not answer, within about 20 seconds; a file stays locked.
    """
    if sqlite_file(uri) is None:
        return _initialise(uri)
    return retry_while_away(lambda: _initialise(uri))


def _initialise(uri: str) -> "MlflowClient":
    """Create the store at `uri` if it does not exist, and return a client.

    The lock protects a new sqlite file: two processes that create its tables at once would break it.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # the address may contain a password
    try:
        import mlflow
    except ValueError as error:  # it reads some of its variables at once
        raise AutoFormerError(f"MLflow cannot be used ({reason(error)}); correct the variable MLFLOW_…") from None
    bound_answers()
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    file = sqlite_file(uri)
    with translate_errors(uri):
        if file is None:
            _check_address(without_password(uri))
        else:
            _check_database(file)
            file.parent.mkdir(parents=True, exist_ok=True)
        with locked(uri), _short_timeout():
            if file is not None and (before := follow(file)):
                print_line(f"tracking: {file} was in {before}; its addresses of artifacts now name this place")
            client = mlflow.MlflowClient(uri, uri)
            client.search_experiments(max_results=1)
            client.search_registered_models(max_results=1)
    return client


def _check_address(address: str) -> None:
    """Refuse a server's address without a host, or with an odd port, which libraries report in words of their own."""
    is_web = address.lower().startswith(("http://", "https://"))
    if "://" in address and not is_sound(address, needs_host=is_web):
        raise AutoFormerError(
            f"MLFLOW_TRACKING_URI={address}: expected the name of a server, and a port from 1 to 65535 if any, as in "
            "http://127.0.0.1:5000"
        )


def _check_database(file: Path) -> None:
    """Refuse a file that SQLite cannot open: MLflow would retry for minutes, with a line for each attempt."""
    if file.exists():
        check_regular(file)
    if file.is_dir() or (file.exists() and not os.access(file, os.R_OK | os.W_OK)):
        what = "a folder" if file.is_dir() else "a file without the permission to write"
        raise AutoFormerError(f"{file}: {what}, not MLflow's database; set MLFLOW_TRACKING_URI to another file")


@contextlib.contextmanager
def _short_timeout() -> Iterator[None]:
    """A shorter timeout for the first requests, which are small."""
    usual = os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]
    seconds = seconds_of("MLFLOW_HTTP_REQUEST_TIMEOUT", usual)
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(max(1, round(min(seconds, _FIRST_REQUEST_SECONDS))))
    try:
        yield
    finally:
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = usual


class NoAnswerError(AutoFormerError):
    """The server does not answer now; a later request may succeed."""

    def __init__(self, uri: str, why: str) -> None:
        address = without_password(uri)
        super().__init__(
            f"MLflow at {address} cannot be used ({why}); see that it is there, or set MLFLOW_TRACKING_URI"
        )
        self.notice = f"MLflow at {address} does not answer ({why})"


@contextlib.contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Translate errors of the store to an `AutoFormerError`, or a `NoAnswerError` if a retry may help."""
    try:
        yield
    except AutoFormerError:
        raise
    except Exception as error:  # MLflow, SQLAlchemy, requests and the file system raise different errors
        from mlflow.exceptions import MlflowException

        if endless := endless_answer(error):
            raise AutoFormerError(f"MLflow at {endless}") from error

        no_answer = NoAnswerError(uri, _without_user(reason(error), uri))
        # waiting does not help if the password is missing
        unauthorised = isinstance(error, MlflowException) and error.get_http_status_code() in (401, 403)
        may_answer = uri.startswith("http") or "database is locked" in str(error)
        if may_answer and not is_refusal(error) and not unauthorised:
            raise no_answer from error
        raise AutoFormerError(str(no_answer)) from error


def _without_user(text: str, uri: str) -> str:
    """Remove the credentials from an address in a library's message, which may quote half a password and the host."""
    host = uri.rpartition("@")[2].partition("/")[0]
    return re.sub(rf"[^\s'\"]*@{re.escape(host)}", host, text) if "@" in uri else text


def patience_seconds() -> float:
    """Seconds that a step waits for an unresponsive store, before its work and after it."""
    text = os.environ.get("AUTOFORMER_TRACKING_PATIENCE", "")
    if not text:
        return PATIENCE_SECONDS if tracking_uri().startswith("http") else FILE_PATIENCE_SECONDS
    return seconds_of("AUTOFORMER_TRACKING_PATIENCE", text)


def seconds_of(name: str, text: str) -> float:
    """The value of an environment variable. Raises `AutoFormerError`."""
    refusal = f"{name}={text[:40]}: expected a number of seconds"
    return max(0.0, number_of(text, -_MOST_SECONDS, _MOST_SECONDS, refusal))


def retry_while_away(call: Callable[[], Answer]) -> Answer:
    """The result of `call`, which is retried for `patience_seconds` while the server does not answer."""
    seconds = patience_seconds()

    def report(error: NoAnswerError, failures: int) -> None:
        if failures == 1:
            print_line(f"tracking: {error.notice}; waiting for it, up to {seconds:.0f} s", sys.stderr)

    return retry(call, NoAnswerError, within(seconds, repeat(POLL_SECONDS)), report)


def is_refusal(error: Exception) -> bool:
    """Whether the store or the disk refused the request, so a retry is useless."""
    from mlflow.exceptions import MlflowException

    if is_odd_setting(root_cause(error)):
        return True
    if isinstance(error, MlflowException):
        return error.error_code in (
            "INVALID_PARAMETER_VALUE",
            "RESOURCE_DOES_NOT_EXIST",
            "RESOURCE_ALREADY_EXISTS",
            "BAD_REQUEST",
            "INVALID_STATE",
        )
    response = getattr(error, "response", None)  # set by requests, which uploads use
    refused = getattr(response, "status_code", None) in (400, 404, 413)
    return refused or isinstance(error, FileNotFoundError | TypeError | KeyError | ImportError)


@contextlib.contextmanager
def locked(uri: str, purpose: str = "", wait_seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold the lock of a store, or its lock for one purpose, between the processes of this machine."""
    database, suffix = sqlite_file(uri), f".{purpose}.lock" if purpose else ".lock"
    if database:
        path = database.with_name(database.name + suffix)
    else:
        digest = hashlib.sha256(uri.encode()).hexdigest()[:16]
        path = Path(tempfile.gettempdir()) / f"mlflow-{os.getuid()}-{digest}{suffix}"
    with _lock_file(path) as file:
        if not lock(file, wait_seconds=wait_seconds):
            raise AutoFormerError(f"{path}: another process has held this lock for {wait_seconds:.0f} s; end it")
        yield


def _lock_file(path: Path) -> IO[bytes]:
    """The open lock file. Links are not followed: any user may create one in the folder for temporary files."""
    try:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600), "ab")
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise AutoFormerError(f"{path}: a link, where a lock file belongs; remove it") from None
        raise


def reason(error: BaseException) -> str:
    """An error as one line of at most 200 characters, without secrets."""
    return shortened(
        hide(" ".join(str(root_cause(error)).split())) or type(root_cause(error)).__name__, REASON_CHARACTERS
    )
