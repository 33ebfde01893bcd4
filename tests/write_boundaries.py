"""The moments at which a process changes files or a database: counted, and a process killed at the n-th.

Python reports each to an audit hook before it happens: files opened for writing, renames, deletions, new folders. What
C++ and Rust write is not reported, but the rename that publishes it is. SQLAlchemy reports the statements. A process
that is killed runs no clean-up, so the harness kills a forked step instead of raising.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC
STATEMENTS = ("INSERT", "UPDATE", "DELETE")


class Boundaries:
    """Counts in this process, and not in those that it forks. The arguments are those of `at_boundary`."""

    def __init__(self, number: int, root: str, log: str, torn: bool) -> None:
        self.number, self.root, self.log, self.torn = number, root, log, torn
        self.process, self.count = os.getpid(), 0
        self.lines = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def on_audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            flags = arguments[2] or 0
            if flags & WRITING:
                self.passed("append" if flags & os.O_APPEND else "open", arguments[0])
        elif event in CHANGES:
            self.passed(event, arguments[0])

    def on_statement(self, *arguments: Any) -> None:
        if arguments[2].lstrip().upper().startswith(STATEMENTS):
            self.passed("sql", f"{self.root}: {arguments[2].split('(')[0].strip()}")

    def on_commit(self, connection: Any) -> None:
        self.passed("sql", f"{self.root}: COMMIT")

    def passed(self, event: str, path: Any) -> None:
        name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        if os.getpid() != self.process or not name.startswith(self.root) or name == self.log:
            return
        self.count += 1
        os.write(self.lines, f"{event} {name}\n".encode())
        if self.count == self.number:
            self.process = 0  # what follows is not the step's
            if self.torn:
                tear(event, name)
            os.kill(os.getpid(), signal.SIGKILL)


def at_boundary(number: int, root: str, log: str, torn: bool = False, database: bool = False) -> None:
    """Count the boundaries below `root` in this process, a line of `log` for each, and kill it at the n-th.

    Args:
        number: from 1; 0 counts only.
        torn: what was being written is cut in half first: the file that the killed rename would have published, or
            a line at the end of the file that it would have appended to.
        database: also count writing SQL statements and commits.
    """
    counted = Boundaries(number, root, log, torn)
    if database:
        from sqlalchemy import event
        from sqlalchemy.engine import Engine

        event.listen(Engine, "before_cursor_execute", counted.on_statement)
        event.listen(Engine, "commit", counted.on_commit)
    sys.addaudithook(counted.on_audit)


def tear(event: str, path: str) -> None:
    if event == "os.rename" and os.path.isfile(path):  # noqa: PTH113
        os.truncate(path, os.path.getsize(path) // 2)  # noqa: PTH202
    elif event == "append":
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, b'{"subnet": {"depth": 2, "embe')


def boundaries(log: Path) -> list[str]:
    """The counted events, as `event path`."""
    return log.read_text(encoding="utf-8").splitlines()
