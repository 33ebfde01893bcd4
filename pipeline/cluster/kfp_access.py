"""The address and the token of a KFP server, its errors and their reasons."""

import contextlib
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from autoformer.errors import AutoFormerError
from autoformer.reading import parse_json
from runtime.common.addresses import is_sound
from runtime.common.answers import SlowAnswerError, whole

OLDEST = (2, 17)  # version of the KFP SDK that compiles our package
ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")  # states of runs and tasks
LONGEST_MESSAGE = 300  # of the server, in characters
# KFP wraps an error many times: its reason is the last of them.
_DENIED = re.compile(
    r"User '(?P<user>[^']+)' is not authorized .*Namespace:(?P<namespace>[^,]*),Verb:(?P<verb>\w+),"
    r"Group:(?P<group>[^,]*),.*Resource:(?P<resource>[^,]*),"
)
_REJECTED = re.compile(r"Review\.Status\.Authenticated is false\. Error \[?(.+?)\]?: Failed to authenticate token")
_ANONYMOUS = "there is no user identity header"
TOKEN_PATH = "KF_PIPELINES_SA_TOKEN_PATH"  # the variable that KFP's SDK reads
TOKEN_FILE = "/var/run/secrets/kubeflow/pipelines/token"  # where KFP's documentation projects one into a pod


class NoAnswerError(AutoFormerError):
    """The server does not answer, or reports an internal error."""


class MissingError(AutoFormerError):
    """The server has no such object (404)."""


class TakenError(AutoFormerError):
    """The server has an object of that name (409)."""


def address(host: str) -> str:
    """The base URL of requests, without a fragment after `#`."""
    text = host.strip().partition("#")[0]
    parts = urlsplit(text) if is_sound(text) else None
    if parts is None or parts.scheme not in ("http", "https"):
        raise AutoFormerError(f"HOST={host}: expected http://… or https://…, as in HOST=http://127.0.0.1:8080")
    if parts.username or parts.password or parts.query:
        raise AutoFormerError("HOST: an address without user, password and query; a token comes by KFP_TOKEN")
    return f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")


def token() -> str | None:
    """The bearer token: from `KFP_TOKEN`, the file that `KFP_TOKEN_FILE` names, or the pod's projected token."""
    text, named = os.environ.get("KFP_TOKEN"), os.environ.get("KFP_TOKEN_FILE") or os.environ.get(TOKEN_PATH)
    source = "KFP_TOKEN"
    if not text:
        file = Path(named or TOKEN_FILE)
        source = str(file)
        if not named and not file.exists():
            return None
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise AutoFormerError(f"{file}: the token cannot be read ({type(error).__name__})") from None
    text = text.strip()
    if not re.fullmatch(r"[\x21-\x7e]+", text):  # the message omits the text, which may be a secret
        raise AutoFormerError(f"{source}: not a token: empty, or with characters that no header takes")
    return text


def server_message(body: str | None, reason: str | None) -> str:
    """A refusal's message on one line, without the token; of an authorization error the last reason alone.

    Args:
        body: of the answer.
        reason: of its status line, for a body that holds no message.
    """
    text = str(body or "")
    with contextlib.suppress(ValueError, AttributeError, RecursionError):
        status = parse_json(text)
        text = str(status.get("error_message") or status.get("message") or status.get("error") or text)
    if not text or text.lstrip().startswith("<"):
        text = str(reason or "no reason given")
    text = " ".join(text.split())
    denied, rejected = _DENIED.search(text), _REJECTED.search(text)
    if denied:
        text = "{user} may not {verb} {resource}.{group} in the namespace '{namespace}'".format(**denied.groupdict())
    elif rejected:
        text = rejected[1]
    elif _ANONYMOUS in text:
        text = _ANONYMOUS
    with contextlib.suppress(AutoFormerError):
        text = text.replace(token() or "\0", "…")
    half = LONGEST_MESSAGE // 2
    return text if len(text) <= LONGEST_MESSAGE else f"{text[: half - 1]}…{text[-half:]}"


def bounded(send: Callable[..., Any], host: str, retries: int) -> Callable[..., Any]:
    """`urllib3.PoolManager.request` with limits of size and time for an answer that it reads, which urllib3 lacks.

    Args:
        retries: of a GET whose answer breaks off.
    """
    import urllib3

    def request(method: str, url: str, preload_content: bool = True, **options: Any) -> Any:
        tries_left = retries if method == "GET" else 0
        while True:
            response = send(method, url, preload_content=False, **options)
            if not preload_content:
                return response
            try:
                body = whole(response.read1, host)
            except urllib3.exceptions.ProtocolError:
                tries_left -= 1
                if tries_left < 0:
                    raise
                continue
            except SlowAnswerError as error:
                raise NoAnswerError(str(error)) from None
            finally:
                response.close()
            names = {"status": response.status, "reason": response.reason, "headers": response.headers}
            return urllib3.HTTPResponse(io.BytesIO(body), **names, decode_content=False)

    return request
