"""Bring archives to the local disk in the background, in a process of its own, while a model trains.

    python -m runtime.storage.staging s3://bucket/folder train.tar …

It ends when all of them are there, the disk has no more room for them, another process is at it, or its parent is gone.
"""

import atexit
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Sequence

from autoformer.errors import AutoFormerError
from runtime.storage.archives import S3Archives, in_order
from runtime.storage.copies import Writer

STARTED: list[subprocess.Popen[bytes]] = []


def stage(archives: S3Archives, names: Sequence[str]) -> None:
    """Begin to bring archives to the local disk; reads go there as soon as a piece is. Returns at once."""
    copy = archives.copy
    if copy is None or not copy.missing(names) or Writer.busy():
        return
    command = [sys.executable, "-m", "runtime.storage.staging", str(archives.uri), *names]
    if not STARTED:
        atexit.register(end)
    STARTED.append(subprocess.Popen(command, stdin=subprocess.PIPE))  # which ends with this process, however that ends


def end() -> None:
    """End what this process has started."""
    while STARTED:
        with STARTED.pop() as process:
            process.terminate()


def bring(archives: S3Archives, names: Sequence[str]) -> None:
    """Bring what is missing of some archives, as far as there is room."""
    copy = archives.copy
    writer = Writer.take(copy) if copy else None
    if copy is None or writer is None:
        return
    with contextlib.suppress(AutoFormerError), contextlib.closing(writer):  # who reads the images is told
        for _ in in_order(lambda piece: archives.piece(piece, writer), copy.missing(names)):
            if writer.full:
                break


def main(argv: Sequence[str]) -> int:
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    bring(S3Archives(argv[0]), argv[1:])
    return 0


def _end_with_the_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
