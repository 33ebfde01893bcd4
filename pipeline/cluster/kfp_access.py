"""The address and the token of a KFP server, and its errors."""

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from autoformer.errors import AutoFormerError

OLDEST = (2, 17)  # version of the KFP SDK that compiles our package
TOKEN_FILE = "/var/run/secrets/kubeflow/pipelines/token"  # where KFP's documentation projects one into a pod


class NoAnswerError(AutoFormerError):
    """The server does not answer, or reports an internal error."""


class MissingError(AutoFormerError):
    """The server has no such object (404)."""


class TakenError(AutoFormerError):
    """The server has an object of that name (409)."""


def address(host: str) -> str:
    """The base URL of requests, without a fragment after `#`."""
    try:
        parts = urlsplit(host.strip().partition("#")[0])
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise AutoFormerError(f"HOST={host}: expected http://… or https://…, as in HOST=http://127.0.0.1:8080")
    if parts.username or parts.password or parts.query:
        raise AutoFormerError("HOST: an address without user, password and query; a token comes by KFP_TOKEN")
    return f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")


def token() -> str | None:
    """The bearer token: from `KFP_TOKEN`, the file that `KFP_TOKEN_FILE` names, or the pod's projected token."""
    text, named = os.environ.get("KFP_TOKEN"), os.environ.get("KFP_TOKEN_FILE")
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
