"""Show the steps' own lines of a local run, and write all that KFP prints to a log file."""

import logging
import re
import sys
from pathlib import Path
from typing import Any, Self, TextIO

from runtime.common.console import print_line

_TASK = re.compile(
    r"Executing task .*?'([a-z0-9-]+)'|Task .*?'([a-z0-9-]+)'.* finished with status .*?(SUCCESS|FAILURE)"
)
_CACHED = re.compile(r"Task ([a-z0-9-]+) cache hit")
_STREAMED = "    "  # kfp.local indents what a step prints


class KfpOutput:
    """A context in which stdout is replaced: all output is logged, and only the steps' own lines are shown."""

    def __init__(self, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log.open("w", encoding="utf-8", errors="backslashreplace")
        self._shown: TextIO = sys.stdout
        self._line = ""
        self._inside_dump = False
        self._inside_outputs = False
        # KFP has its own handler while a task runs; this one gets the messages between tasks, about the cache
        self._handler = logging.StreamHandler(self)
        self._level = logging.WARNING

    def __enter__(self) -> Self:
        self._shown, sys.stdout = sys.stdout, self
        root = logging.getLogger()
        self._level = root.level
        root.addHandler(self._handler)
        root.setLevel(logging.INFO)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self._handler)
        logging.getLogger().setLevel(self._level)
        sys.stdout = self._shown
        self._log.close()

    def write(self, text: str) -> int:
        self._log.write(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            shown = self._visible(line)
            if shown is not None:
                print_line(shown, self._shown)  # the run continues where nobody reads
        return len(text)

    def flush(self) -> None:
        self._log.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shown, name)

    def _visible(self, line: str) -> str | None:
        """The line to show; None for a line of KFP."""
        if not line.startswith(_STREAMED):
            self._inside_outputs = line.endswith(" outputs:")  # KFP lists them after a task, indented like step output
            return self._task_line(line)
        content = line[len(_STREAMED) :]
        if "[KFP Executor" in content:
            self._inside_dump = content.endswith("Got executor_input:")
            return None
        if self._inside_dump:  # a task's input as JSON, up to an unindented brace
            self._inside_dump = content != "}"
            return None
        return f"  {content}" if content.strip() and not self._inside_outputs else None

    def _task_line(self, line: str) -> str | None:
        found = _TASK.search(line)
        if found is None:
            cached = _CACHED.search(line)
            return f"{cached[1]}: taken from the cache" if cached else None
        started, ended, status = found.groups()
        if started:
            return str(started)
        return f"{ended}: failed" if status == "FAILURE" else None
