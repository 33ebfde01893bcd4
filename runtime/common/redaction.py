"""What must not be said: passwords in addresses, and the values of the environment's secrets."""

import os
import re
import sys
import traceback
from types import TracebackType

_ADDRESS = re.compile(r"(?<=://)[^/\s'\"]+@")
_SECRET_NAME = re.compile(r"(SECRET|PASSWORD|TOKEN|CREDENTIAL|API_KEY)(?!.*_FILE$)")  # a file's name is none
SHORTEST = 8  # characters of a secret; "false" and "none" are values of variables that have such names


def hide(text: str) -> str:
    """The text without what is secret in it, fit for lines, logs and records."""
    text = _ADDRESS.sub("", text)
    secrets = {value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= SHORTEST}
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def hide_in_tracebacks() -> None:
    """Let an error that nobody has caught be printed without secrets: libraries put addresses into their errors."""
    sys.excepthook = _print


def _print(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(hide("".join(traceback.format_exception(kind, error, trace))))
