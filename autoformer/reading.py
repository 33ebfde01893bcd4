"""Read YAML, JSON and JSON lines from outside, with bounded size and depth, and one line per error. Torch-free.

Errors are `AutoFormerError`s that name the file. tests/test_doors.py allows no other reader.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter

from autoformer.bounds import BOUNDS
from autoformer.errors import AutoFormerError, shortened, validated
from autoformer.files import check_regular

Kind = TypeVar("Kind")
_AGAIN = "run the step that makes it again"


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file. Raises `AutoFormerError` above `most` bytes, and `OSError`."""
    check_regular(path)
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise AutoFormerError(f"{path}: larger than {most} bytes, the most for a file of this kind")
    return content


def read_json(path: Path, remedy: str = _AGAIN) -> Any:
    """Parse a JSON file. Raises `AutoFormerError` naming the file if it is missing or damaged."""
    try:
        return parse_json(read_bytes(path, BOUNDS.json_bytes))
    except AutoFormerError:
        raise
    except FileNotFoundError:
        raise AutoFormerError(f"{path}: no such file; run the step that makes it") from None
    except Exception as error:
        raise AutoFormerError(f"{path}: not readable as JSON ({in_short(error)}); {remedy}") from None


def read_json_as(kind: type[Kind], path: Path, remedy: str = _AGAIN) -> Kind:
    """Parse a JSON file as a pydantic model, or as a type such as `dict[str, float]`.

    Raises `AutoFormerError` naming the file and the first value that does not fit.
    """
    return as_kind(kind, read_json(path, remedy), str(path), remedy)


def as_kind(kind: type[Kind], value: Any, where: str, remedy: str = _AGAIN) -> Kind:
    """Validate plain data as a type. Raises `AutoFormerError` naming `where` and the first value that does not fit."""
    return validated(TypeAdapter(kind), value, where, remedy)


def parse_json(content: bytes | str) -> Any:
    """Parse JSON text of bounded depth. Raises `ValueError`, `RecursionError`."""
    value = json.loads(content, object_pairs_hook=_unique)
    level: list[Any] = [[value]]
    depth, values = -1, 0
    while level := [item for parent in level for item in _items(parent)]:
        depth += 1
        values += sum(map(len, level))
        if depth > BOUNDS.depth:
            raise ValueError(f"more than {BOUNDS.depth} lists and mappings inside one another")
        if values > BOUNDS.json_values:
            raise ValueError(f"more than {BOUNDS.json_values} values")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping, whose keys differ: of equal ones, Python would silently use the last."""
    mapping: dict[str, Any] = {}
    for key, value in pairs:
        if key in mapping:
            raise ValueError(f"the key '{shortened(key, 80)}' is there twice")
        mapping[key] = value
    return mapping


def parse_json_text(text: str, where: str) -> Any:
    """`parse_json`. Raises `AutoFormerError` naming `where`."""
    try:
        return parse_json(text)
    except (ValueError, RecursionError) as error:
        raise AutoFormerError(f"{where}: not readable as JSON: {in_short(error)}") from None


def _items(value: Any) -> Iterator[Any]:
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (item for item in below if isinstance(item, dict | list))


def lines_of(text: str) -> Iterator[str]:
    """The lines of a text with their ends, for `csv.reader`. `io.StringIO` would take four bytes a letter."""
    return (line[0] for line in re.finditer(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+", text))


def read_json_lines(file: Path, kind: type[Kind], remedy: str) -> Iterator[Kind]:
    """Each line of a file as a type. A last line without a line end is ignored: its writer was killed.

    Raises `AutoFormerError` naming file and line.
    """
    check_regular(file)
    adapter = TypeAdapter(kind)
    with file.open("rb") as lines:
        number = 0
        while line := lines.readline(BOUNDS.line_bytes + 1):
            number += 1
            where = f"{file}, line {number}"
            if len(line) > BOUNDS.line_bytes:
                raise AutoFormerError(f"{where}: longer than {BOUNDS.line_bytes} bytes; {remedy}")
            if not line.endswith(b"\n"):
                return
            try:
                value = parse_json(line)
            except Exception as error:
                raise AutoFormerError(f"{where}: not readable as JSON ({in_short(error)}); {remedy}") from None
            yield validated(adapter, value, where, remedy)


def read_yaml(path: Path) -> Any:
    """Parse a YAML file. Raises `AutoFormerError` naming file and line if it is missing or malformed."""
    return parse_yaml(_yaml_text(path), str(path))


def read_yaml_list(path: Path) -> list[tuple[int, Any]]:
    """The items of a YAML list, each with its line number; any other content is one item. Raises like `read_yaml`."""
    value, node = read_yaml(path), yaml.compose(_yaml_text(path), _Loader)
    if not isinstance(value, list) or node is None:
        return [(1, value)]
    return [(child.start_mark.line + 1, item) for child, item in zip(node.value, value, strict=True)]


def _yaml_text(path: Path) -> str:
    try:
        return read_bytes(path, BOUNDS.yaml_bytes).decode()
    except FileNotFoundError:
        raise AutoFormerError(f"{path}: no such file") from None
    except (OSError, UnicodeError) as error:
        raise _not_yaml(str(path), error) from None


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML text. Raises `AutoFormerError` naming `where` and the line if it is malformed."""
    try:
        if len(text) > BOUNDS.yaml_bytes:
            raise ValueError(f"more than {BOUNDS.yaml_bytes} bytes")
        return yaml.load(text, _Loader)
    except Exception as error:  # PyYAML raises ValueError, KeyError and AttributeError, too, for values of other types
        raise _not_yaml(where, error) from None


class _Loader(yaml.SafeLoader):
    """Refuses duplicate keys, of which PyYAML would silently use the last, excessive depth, and too many values."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._depth, self._values = 0, 0
        self._sizes: dict[int, int] = {}  # values below a node, by its id

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark, before = self.peek_event().start_mark, self._values
        if self._depth >= BOUNDS.depth:
            raise yaml.MarkedYAMLError(problem=f"more than {BOUNDS.depth} levels", problem_mark=mark)
        is_alias = self.check_event(yaml.AliasEvent)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if not is_alias:
            self._sizes[id(node)] = 1 + self._values - before
            self._values += 1
        elif id(node) in self._sizes:
            self._values += self._sizes[id(node)]
        else:
            raise yaml.MarkedYAMLError(problem="an alias inside of what it stands for", problem_mark=mark)
        if self._values > BOUNDS.values:
            raise yaml.MarkedYAMLError(problem=f"more than {BOUNDS.values} values", problem_mark=mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            value = str(getattr(node, "value", ""))[:40]
            problem = f"'{value}' is no {node.tag.rpartition(':')[2]} ({in_short(error)})"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str | int | float | None):
                raise yaml.constructor.ConstructorError(None, None, "a key is neither text nor number", key.start_mark)
            if name in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, f"the key '{name}' is there twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def _not_yaml(where: str, error: Exception) -> AutoFormerError:
    return AutoFormerError(f"{where}: not readable as YAML: {in_short(error)}")


def in_short(error: BaseException) -> str:
    """A library's error message as one printable line, or the error's class name."""
    text = "".join(c for c in " ".join(str(error).split()) if c.isprintable()) or type(error).__name__
    return shortened(text, 300)
