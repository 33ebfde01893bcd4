"""The exceptions that this project raises for what a person can mend, or wait out."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError


class AutoFormerError(ValueError):
    """Bad input. The message is one line: what is wrong, where, and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))  # a path or a library's message may hold several

    def __reduce__(self) -> tuple[Any, ...]:
        """Come from a worker process as the same kind; kinds are made of other arguments than the message."""
        return _as_it_was, (type(self), self.args, self.__dict__)


def _as_it_was(kind: type[AutoFormerError], arguments: tuple[Any, ...], state: dict[str, Any]) -> AutoFormerError:
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(state)
    return error


class UnavailableError(AutoFormerError):
    """No fault of the input: a server does not answer, and the same command may succeed another time."""


Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], data: Any, where: str) -> Model:
    """Validate `data` as `model`; raise `AutoFormerError` with one line that names `where`.

    An unknown key is answered with the nearest key that the model has.
    """
    if not isinstance(data, Mapping):
        raise AutoFormerError(f"{where}: expected a mapping of keys to values, found {type(data).__name__}")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise AutoFormerError(f"{where}: {_first_problem(model, error)}") from None


def nearest(word: str, choices: Iterable[str]) -> str:
    """Say which of `choices` was perhaps meant by `word`: "did you mean 'x'?", or the choices."""
    choices = sorted(choices)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return (
        f"did you mean '{close[0]}'?"
        if close
        else f"one of: {', '.join(choices[:20])}{', …' if len(choices) > 20 else ''}"
    )


def _first_problem(model: type[BaseModel], error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    path = [str(part) for part in problem["loc"]]
    name = ".".join(path)
    if problem["type"] == "extra_forbidden":
        keys = _keys_at(model, path[:-1])
        return f"unknown key '{name}'; {nearest(path[-1], keys)}" if keys else f"unknown key '{name}'"
    if problem["type"] == "missing":
        return f"'{name}' is missing"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = message[:1].lower() + message[1:]
    if not name:
        return message
    return f"{name} = {_short(problem['input'])}: {message}"


def _keys_at(model: type[BaseModel], path: list[str]) -> list[str]:
    """The field names of the model that lies at `path` below `model`; empty where there is none."""
    current: Any = model
    for part in path:
        field = current.model_fields.get(part) if hasattr(current, "model_fields") else None
        if field is None:
            return []
        current = next((kind for kind in _kinds(field.annotation) if hasattr(kind, "model_fields")), None)
    return list(current.model_fields) if hasattr(current, "model_fields") else []


def _kinds(annotation: Any) -> list[Any]:
    return [annotation, *getattr(annotation, "__args__", ())]


def _short(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
