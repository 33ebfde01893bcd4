"""Errors of input and of unavailable servers, and validation that reports the first problem in one line."""

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

_MOST_CHARACTERS = 1000
_MOST_PROBLEMS = 10_000
# Pydantic names Python's types, and the classes here.
_EXPECTED = dict.fromkeys(("model_type", "dict_type"), "expected a mapping of keys to values")
_EXPECTED |= dict.fromkeys(("tuple_type", "list_type"), "expected a list")
# A terminal interprets them, turns the text around, or cannot show them: half of a pair, as of a name not in UTF-8.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with escapes for what a terminal would obey."""
    return _CONTROL.sub(lambda control: ascii(control[0])[1:-1], text)


def has_controls(name: str) -> bool:
    """Whether a name holds such characters, besides a line break, which the name of a class may have."""
    return _CONTROL.search(name.replace("\n", " ")) is not None


def shortened(text: str, most: int) -> str:
    """The text with at most `most` characters, the last one an ellipsis if some are left out."""
    return text if len(text) <= most else text[: most - 1] + "…"


def quantity(count: float, one: str, many: str = "") -> str:
    """A number with its noun: "1 block", "1,200 classes". `many`: the words after other numbers, if not the plural."""
    number = f"{int(count):,}" if count == int(count) else f"{count:,g}"
    if count == 1:
        return f"{number} {one}"
    ies = one.endswith("y") and not one.endswith(("ay", "ey", "oy", "uy"))
    plural = f"{one[:-1]}ies" if ies else one + ("es" if one.endswith(("s", "x", "sh", "tch")) else "s")
    return f"{number} {many or plural}"


class AutoFormerError(ValueError):
    """Bad input. The message is one line: what is wrong, where, and what to do."""

    def __init__(self, message: str) -> None:
        line = printable(" ".join(message.splitlines()))  # of paths and of libraries' messages
        super().__init__(shortened(line, _MOST_CHARACTERS))

    def __reduce__(self) -> tuple[Any, ...]:
        """Support pickling: subclasses take other arguments than `args`."""
        return type(self).__new__, (type(self), *self.args), self.__dict__


class UnavailableError(AutoFormerError):
    """A server does not answer; the same command may succeed later."""


Kind = TypeVar("Kind")


def validated(kind: type[Kind] | TypeAdapter[Kind], data: Any, where: str, remedy: str = "") -> Kind:
    """Validate plain data as a pydantic model, or as the type of a `TypeAdapter`.

    Args:
        where: the source of the data, for the message.
        remedy: what to do, for the message.

    Raises:
        AutoFormerError: the first problem in one line, with the key, and the nearest known key for an unknown one.
    """
    model = None if isinstance(kind, TypeAdapter) else kind
    remedy = remedy and f"; {remedy}"
    if model and not isinstance(data, Mapping):
        raise AutoFormerError(f"{where}: expected a mapping of keys to values, found {type(data).__name__}{remedy}")
    with one_line(model, where, remedy):
        return (kind if isinstance(kind, TypeAdapter) else TypeAdapter(kind)).validate_python(data)


@contextlib.contextmanager
def one_line(model: Any, where: str, remedy: str = "") -> Iterator[None]:
    """Turn pydantic's error of several lines into an `AutoFormerError`; see `validated`.

    Args:
        model: the class that is validated, or None.
        remedy: end of the message.
    """
    try:
        yield
    except ValidationError as error:
        raise AutoFormerError(f"{where}: {_first_problem(model, error)}{remedy}") from None
    except (ArithmeticError, RecursionError) as error:  # a validator's, for numbers beyond floats and for deep values
        raise AutoFormerError(f"{where}: a value is too large or too deep ({error}){remedy}") from None


def nearest(word: str, choices: Iterable[str]) -> str:
    """A hint for a misspelt `word`: "did you mean 'x'?", or "one of: ..."."""
    choices = sorted(choices)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return (
        f"did you mean '{close[0]}'?"
        if close
        else f"one of: {', '.join(choices[:20])}{', …' if len(choices) > 20 else ''}"
    )


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise `AutoFormerError` unless an argument is one of its choices. Python does not check a `Literal`."""
    if value not in choices:
        raise AutoFormerError(f"{name} = {short_repr(value)}: expected one of {', '.join(map(repr, choices))}")


def _first_problem(model: Any, error: ValidationError) -> str:
    if error.error_count() > _MOST_PROBLEMS:  # each would be an object
        return f"{error.error_count()} keys and values that do not belong there"
    problems = error.errors(include_url=False)
    # a misspelt key that is required is also a missing one
    problem = next((one for one in problems if one["type"] == "extra_forbidden"), problems[0])
    path = [str(part)[:80] for part in problem["loc"]]
    name = ".".join(path)
    if problem["type"] == "extra_forbidden":
        keys = _keys_at(model, path[:-1])
        return f"unknown key '{name}'; {nearest(path[-1], keys)}" if keys else f"unknown key '{name}'"
    if problem["type"] == "missing":
        return f"'{name}' is missing"
    kind, comma, own = problem["msg"].partition(", ")
    if comma and kind in ("Value error", "Assertion failed"):
        message = own  # of a validator here, as it is: it may begin with a name
        if name and isinstance(problem["input"], Mapping):  # its keys contradict each other, and the message names them
            return f"{name}: {message}"
    else:
        message = _EXPECTED.get(problem["type"]) or problem["msg"][:1].lower() + problem["msg"][1:]
    if not name:
        return message
    return f"{name} = {short_repr(problem['input'])}: {message}"


def short_repr(value: Any) -> str:
    try:
        return shortened(repr(value), 80)
    except (ValueError, RecursionError):  # Python prints no integer of more than 4300 digits
        return "a value that is too long to show"


def _keys_at(model: Any, path: list[str]) -> list[str]:
    """Field names of the nested model at `path`; none if there is no model."""
    current: Any = model
    for part in path:
        field = current.model_fields.get(part) if hasattr(current, "model_fields") else None
        if field is None:
            return []
        kinds = (field.annotation, *getattr(field.annotation, "__args__", ()))
        current = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)
    return list(current.model_fields) if hasattr(current, "model_fields") else []
