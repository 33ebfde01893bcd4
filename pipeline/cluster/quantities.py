"""Kubernetes notations in the settings of a cluster: cores, bytes, images."""

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

from runtime.kubernetes.settings import as_text


def _form(pattern: str, expected: str) -> AfterValidator:
    """A check against a pattern, with a message that shows the form instead of the pattern."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"expected {expected}")
        return text

    return AfterValidator(check)


_PART = r"[a-z0-9]+((\.|__?|-+)[a-z0-9]+)*"  # of an image's name
Cores = Annotated[
    str, BeforeValidator(as_text), _form(r"[0-9]{1,5}(\.[0-9]{1,3})?|[0-9]{1,8}m", "cores, as 4, 0.5 or 500m")
]
Bytes = Annotated[
    str,
    BeforeValidator(as_text),
    _form(r"[1-9][0-9]{0,6}([KMGT]i|[MGT])", "a quantity of Kubernetes, as 16Gi (2^30 bytes each) or 16G (10^9)"),
]
Image = Annotated[
    str,
    _form(
        rf"([\w.-]+(:[0-9]+)?/)?{_PART}(/{_PART})*(:\w[\w.-]{{0,127}})?(@sha256:[0-9a-f]{{64}})?",
        "repository@sha256:… of 64 hexadecimal digits",
    ),
]


def in_bytes(quantity: str) -> int:
    """The number of bytes of a `Bytes` quantity."""
    number = re.match(r"\d+", quantity)
    assert number is not None
    unit = quantity[number.end() :]
    return int(number[0]) * (1024 if unit.endswith("i") else 1000) ** " KMGT".index(unit[:1])
