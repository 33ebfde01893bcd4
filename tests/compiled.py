"""The pipeline, compiled in a test."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import yaml


def on_a_short_stack(function: Callable[..., Any], *arguments: Any) -> Any:
    """KFP looks at the whole stack for each setting of a task, and pytest's is deep: in a thread it is not."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *arguments).result()


def read_all(text: str) -> list[Any]:
    return list(yaml.load_all(text, yaml.CSafeLoader))
