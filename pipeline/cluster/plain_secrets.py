"""Refuse plain-text secrets in the settings of a cluster."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from autoformer.errors import AutoFormerError

_SECRET_NAMES = re.compile(
    r"(?!.*_(FILE|PATH|URI|URL)$)"
    r"((.*_)?(SECRET|PASSWORD|PASSWD|PASSPHRASE|TOKEN|CREDENTIALS?|APIKEY)(_.*)?$|.*(ACCESS|API|PRIVATE)_KEY)",
    re.IGNORECASE,
)
_SECRET_VALUES = re.compile(
    r"://[^/@\s]*:[^/@\s]+@"  # a password in a URL
    r"|\b(AKIA|ASIA)[0-9A-Z]{16}\b"  # an AWS key
    r"|\beyJ[\w-]+\.[\w-]+\.[\w-]*"  # a JSON web token
    r"|\b(gh[pousr]_|github_pat_|glpat-|hf_|xox[abpr]-)\w{16,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|^(Bearer|Basic) \S"
)
_VARIABLE_NAME = re.compile(r"^[A-Z][A-Z0-9_]*$")


def refuse_secrets(data: dict[str, Any], where: str) -> None:
    """Raise `AutoFormerError` for a plain-text secret. Runs before validation, whose messages repeat values."""
    advice = "put it into a Secret of the cluster, and name that in secrets"
    for name in data["env"] if isinstance(data.get("env"), dict) else ():
        if _SECRET_NAMES.match(str(name)):
            raise AutoFormerError(f"{where}: env.{name} looks like a secret; {advice}")
    for key, text in texts(data):
        if _SECRET_VALUES.search(text):
            raise AutoFormerError(f"{where}: the value of {key} looks like a secret; {advice}")
        if re.fullmatch(r"secrets\.\d+\.keys\..*", key) and not _VARIABLE_NAME.match(text):
            raise AutoFormerError(f"{where}: {key}: expected the name of a variable, in capitals, never a value")


def texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Each text value in nested data, with its dotted key."""
    if isinstance(value, str):
        yield key, value
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for name, below in items:
        yield from texts(below, f"{key}.{name}" if key else str(name))
