"""Redaction of secrets in text: passwords in addresses, and the values of secret environment variables."""

import os
import re
import sys
import traceback
from types import TracebackType

# SQLAlchemy's rule: a password extends to the @, with any characters. A number before a slash may be a port.
_PASSWORD = re.compile(r"(?<=://)[^/\s@:]*:(?!\d+(?:[/?#'\",;)\s]|$))[^\s@]*@(?:[^/\s'\"]*@)?")
_USER = re.compile(r"(?<=://)[^/\s'\"]+@")
_DATABASE = re.compile(r"(?<=://)[^:/@]*(?::[^@]*)?@(?:[^/?]*@)?", re.DOTALL)
_QUERY = re.compile(
    r"([?&;][^=&;\s'\"]*(?:token|pass|pwd|secret|credential|signature|auth|jwt|odbc_connect|\b[a-z]*[_-]?key\b)[^=&;\s'\"]*=)[^&;\s'\")]+",
    re.IGNORECASE,
)
_SECRET_NAME = re.compile(r"(SECRET|PASSWORD|TOKEN|CREDENTIAL|API_KEY)(?!.*_FILE$)")  # a file's name is no secret
MIN_SECRET_LENGTH = 8  # variables with such names also hold "false" and "none"


def hide(text: str) -> str:
    """The text without secrets, for lines, logs and records."""
    for address in {value for value in os.environ.values() if "://" in value}:
        if address in text:  # replaced as a whole: a password may contain blanks and quotes
            text = text.replace(address, without_password(address))
    text = _QUERY.sub(r"\1***", _USER.sub("", _PASSWORD.sub("", text)))
    secrets = {v for name, v in os.environ.items() if _SECRET_NAME.search(name) and len(v) >= MIN_SECRET_LENGTH}
    secrets |= {repr(secret)[1:-1] for secret in secrets}  # as libraries quote one with a line break
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def without_password(uri: str) -> str:
    """An address without user name, password and query (sqlite's query is kept), for records and messages.

    Database addresses are parsed by SQLAlchemy's rule.
    """
    scheme = uri.partition("://")[0].lower()
    if scheme.startswith("sqlite"):  # the query is part of the file name
        return _QUERY.sub(r"\1***", uri)
    if scheme in ("http", "https", "s3", "ssh", "git"):
        uri = _USER.sub("", _PASSWORD.sub("", uri))
    else:
        uri = _DATABASE.sub("", uri, count=1)
    return re.split(r"[?#]", uri, maxsplit=1)[0]


def hide_in_tracebacks() -> None:
    """Print uncaught errors without secrets: error messages of libraries may contain addresses."""
    sys.excepthook = _print


def _print(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(hide("".join(traceback.format_exception(kind, error, trace))))
