"""Overrides: `section.key=value` changes one value of a configuration.

One text may contain several, as in KFP's run form or on the command line: `--set "seed=1 name='my run'"`.
"""

import argparse
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from autoformer.errors import AutoFormerError
from autoformer.named import load_space
from autoformer.reading import parse_yaml


class Override(NamedTuple):
    path: tuple[str, ...]  # sections, then key
    value: Any

    @property
    def key(self) -> str:
        """The dotted key."""
        return ".".join(self.path)


def parse(text: str) -> Override:
    """Parse `section.key=value`; the value is YAML. Raises `AutoFormerError`, like all functions here."""
    key, equals, value = text.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        raise AutoFormerError(f"--set {text}: expected key=value, such as seed=1 or train_supernet.epochs=3")
    return Override(path, parse_yaml(value, f"--set {text[:80]}"))


def apply(data: dict[str, Any], overrides: Iterable[str], convert: Callable[[Any], Any] = lambda value: value) -> None:
    """Apply overrides to the plain data of a configuration, in order. `convert` changes each value before.

    A section is copied before it changes: by a YAML alias, two sections of a file may be one object. A named search
    space becomes its content when one of its keys is set.
    """
    for text in overrides:
        override, section = parse(text), data
        for part in override.path[:-1]:
            below = section.setdefault(part, {})
            if part == "space" and isinstance(below, str):
                below = load_space(below).model_dump(mode="json")
            if not isinstance(below, dict):
                raise AutoFormerError(f"--set {text}: '{part}' is a value, not a section")
            section[part] = below = below.copy()
            section = below
        section[override.path[-1]] = convert(override.value)


def dotted(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted key and the value of everything in nested mappings."""
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def split(text: str, option: str = "--set") -> list[str]:
    """Split a text into overrides, at spaces, with the quoting rules of a shell."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise AutoFormerError(f"{option} {text}: {str(error).lower()}; quote values with spaces") from None


def join(overrides: Iterable[str]) -> str:
    """The reverse of `split`."""
    return shlex.join(overrides)


def add_option(parser: argparse.ArgumentParser, metavar: str = "SECTION.KEY=VALUE", help: str | None = None) -> None:
    """Add the repeatable option `--set` with one or more overrides; `overrides` is the list of all."""
    parser.add_argument("--set", action=SplitOption, default=[], metavar=metavar, dest="overrides", help=help)


class SplitOption(argparse.Action):
    """A repeatable option, each time with one or more words."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), *split(str(values), str(option_string))])
