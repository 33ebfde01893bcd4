"""Answers of an MLflow server, with limits of size, time and count, of which MLflow sets none; requests never sent."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from autoformer.bounds import BOUNDS
from autoformer.errors import AutoFormerError, UnavailableError
from runtime.common.answers import EndlessAnswerError, close_unread, pieces
from runtime.common.redaction import without_password


def bound_answers() -> None:
    """Let MLflow's adapter of requests read answers with limits: those of the API whole, those of files in pieces."""
    from mlflow.utils.request_utils import TCPKeepAliveHTTPAdapter as Adapter

    if "send" in vars(Adapter):
        return
    close_unread()

    def send(self: Any, request: Any, stream: bool = False, **options: Any) -> Any:
        answer = super(Adapter, self).send(request, stream=stream, **options)
        address = urlsplit(without_password(request.url))
        most, server = BOUNDS.model_bytes if stream else BOUNDS.answer_bytes, f"{address.scheme}://{address.netloc}"

        def iterate(chunk_size: int | None = 1, decode_unicode: bool = False) -> Iterator[bytes]:
            return pieces(lambda size: answer.raw.read1(size, decode_content=True), server, most)

        answer.iter_content = iterate  # `content`, `text` and `json()` call it, too
        return answer

    Adapter.send = send


def endless_answer(error: BaseException | None) -> EndlessAnswerError | None:
    """The error of this kind behind one of MLflow."""
    while error is not None and not isinstance(error, EndlessAnswerError):
        error = error.__cause__ or error.__context__
    return error


def root_cause(error: BaseException) -> BaseException:
    """The cause that MLflow's wrapper hides behind a quote of the request."""
    if str(error).startswith(("API request to http", "Invalid url: ")):
        while (cause := error.__cause__ or error.__context__) is not None:
            error = cause
    return error


def is_odd_setting(error: BaseException) -> bool:
    """Whether a request was never sent: an address, a variable or a header that requests or MLflow refuse."""
    is_parsing = isinstance(error, json.JSONDecodeError | UnicodeDecodeError | UnavailableError)  # of an answer
    no_file = type(error) is OSError and error.errno is None  # of certificates
    return no_file or (isinstance(error, ValueError) and not is_parsing)


def check_listing(uri: str) -> None:
    """Refuse a folder of artifacts that MLflow would download for ever, as one that lists itself."""
    from mlflow.artifacts import list_artifacts

    folders, count = [uri], 0
    while folders:
        folder = folders.pop()
        found = list_artifacts(artifact_uri=folder)
        count += len(found)
        folders += [f"{folder}/{file.path.rpartition('/')[2]}" for file in found if file.is_dir]
        if count > BOUNDS.model_files:
            raise AutoFormerError(f"{uri}: MLflow lists more than {BOUNDS.model_files} files of this model")
