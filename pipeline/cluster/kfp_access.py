"""How a KFP server is reached: its address, who asks, and what of its answers may be repeated to a person."""

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3

from autoformer.errors import AutoFormerError

PAUSE_SECONDS = 0.3  # before a question is repeated; twice as long each time
REPETITIONS = 3
TOKEN_FILE = "/var/run/secrets/kubeflow/pipelines/token"  # where KFP's documentation projects one into a pod


def address(host: str) -> str:
    """An address as requests are sent to; what a browser shows after `#` is left out."""
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
    """What proves who asks: from `KFP_TOKEN`, the file that `KFP_TOKEN_FILE` names, or the pod's projected token."""
    given, named = os.environ.get("KFP_TOKEN"), os.environ.get("KFP_TOKEN_FILE")
    where = "KFP_TOKEN"
    if not given:
        file = Path(named or TOKEN_FILE)
        where = str(file)
        if not named and not file.exists():
            return None
        try:
            given = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise AutoFormerError(f"{file}: the token cannot be read ({type(error).__name__})") from None
    given = given.strip()
    if not re.fullmatch(r"[\x21-\x7e]+", given):  # the text is not told: it may be a secret all the same
        raise AutoFormerError(f"{where}: not a token: empty, or with characters that no header takes")
    return given


def configuration(host: str) -> Any:
    """For KFP's client: the way there, and how often a question is repeated. Nothing that makes something is."""
    import kfp_server_api as api

    made = api.Configuration(host=host)
    made.retries = urllib3.Retry(
        total=10, connect=REPETITIONS, read=REPETITIONS, status=REPETITIONS, redirect=5, other=0,
        backoff_factor=PAUSE_SECONDS, status_forcelist=(429, 502, 503, 504), allowed_methods=("GET",),
        raise_on_status=False, respect_retry_after_header=False,
    )  # fmt: skip
    made.ssl_ca_cert = os.environ.get("SSL_CERT_FILE")
    parts = urlsplit(host)
    if not proxy_bypass(parts.hostname or ""):
        made.proxy = getproxies().get(parts.scheme)
    if token() is not None:
        made.api_key_prefix["authorization"] = "Bearer"
        made.api_key["authorization"] = ""
        made.refresh_api_key_hook = _renew  # a projected token is replaced every hour
    return made


def _renew(configuration: Any) -> None:
    configuration.api_key["authorization"] = token()


def said(error: Any) -> str:
    """The server's own words, on one line."""
    text = str(error.body or "")
    with contextlib.suppress(ValueError, AttributeError):
        found = json.loads(text)
        text = str(found.get("error_message") or found.get("message") or found.get("error") or text)
    if not text or text.lstrip().startswith("<"):
        text = str(error.reason or "no reason given")
    text = " ".join(text.split())
    with contextlib.suppress(AutoFormerError):
        text = text.replace(token() or "\0", "…")
    return text if len(text) <= 300 else f"{text[:299]}…"
