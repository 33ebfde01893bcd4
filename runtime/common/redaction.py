"""Redaction of secrets in text: passwords in addresses, and the values of secret environment variables."""

import os
import re
import sys
import traceback
from types import TracebackType

_ADDRESS = re.compile(r"(?<=://)[^/\s'\"]+@")
_SECRET_NAME = re.compile(r"(SECRET|PASSWORD|TOKEN|CREDENTIAL|API_KEY)(?!.*_FILE$)")  # a file's name is no secret
MIN_SECRET_LENGTH = 8  # variables with such names also hold "false" and "none"


def hide(text: str) -> str:
    """The text without secrets, for lines, logs and records."""
    text = _ADDRESS.sub("", text)
    secrets = {v for name, v in os.environ.items() if _SECRET_NAME.search(name) and len(v) >= MIN_SECRET_LENGTH}
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def hide_in_tracebacks() -> None:
    """Print uncaught errors without secrets: libraries put addresses into their error messages."""
    sys.excepthook = _print


def _print(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(hide("".join(traceback.format_exception(kind, error, trace))))
