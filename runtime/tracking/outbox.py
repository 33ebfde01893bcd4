"""The queue of a step's messages to MLflow: an outage of the store neither stops training nor loses messages.

A thread sends them, so a hanging server or a slow upload delays neither the training nor the other ranks. The thread
draws no random numbers (see `store.ENVIRONMENT`), so it changes no result.

MLflow's asynchronous logging is no replacement: its queue drops messages that it cannot send, does not accept files,
and is only in memory.
"""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from autoformer.errors import quantity
from autoformer.files import write_json
from runtime.common.console import print_line
from runtime.tracking.operations import UPLOADS, Operation, read_operations
from runtime.tracking.store import is_refusal, reason

RETRY_SECONDS = 15.0  # between two attempts while the step works
FINAL_RETRY_SECONDS = 1.0  # and when it ends
BUSY_SECONDS = 5.0  # minimum time for one operation at the end, unless the store has failed
NOTICE_SECONDS = 3.0  # of waiting at the end, after which a line explains it


class Outbox:
    """Operations, sent in order when the store accepts them. Later operations overtake a failed upload.

    Args:
        send: sends one operation; raises if that fails.
        backlog: file for undelivered operations at the end. Those of an earlier attempt are sent first.
    """

    def __init__(self, send: Callable[[Operation], None], backlog: Path) -> None:
        self._send, self._backlog = send, backlog
        self._waiting: deque[Operation] = deque(read_backlog(backlog))
        self._failed_uploads: deque[Operation] = deque()
        self._refused: list[Operation] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._sending: Operation | None = None
        self._accepted_at = 0.0
        self._due = False
        self._away = False
        self._closing = False
        self._closed = False

    def put(self, operation: Operation) -> None:
        """Queue an operation; consecutive metrics of one run become one operation."""
        with self._changed:
            last = self._waiting[-1] if self._waiting and self._waiting[-1] is not self._sending else None
            if last and last["kind"] == operation["kind"] == "metrics" and last["run_id"] == operation["run_id"]:
                last["metrics"] += operation["metrics"]
            else:
                self._waiting.append(operation)

    def flush(self, wait_seconds: float = 0.0) -> None:
        """Start to send the queue, and wait up to `wait_seconds` until it is empty. Does not raise."""
        with self._changed:
            if self._is_empty():
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
                self._thread.start()
            self._due = True
            self._changed.notify_all()
            self._changed.wait_for(self._is_empty, wait_seconds)

    def close(self, patience_seconds: float) -> None:
        """Send the rest, until the store accepts nothing for `patience_seconds`; then write the backlog file."""
        try:
            self.flush()
            with self._changed:
                self._closing = True
                self._changed.notify_all()
                self._wait(patience_seconds)
        finally:  # also if a signal interrupts the wait
            with self._changed:
                self._closed = True
                self._changed.notify_all()
                left = [*self._refused, *self._waiting, *self._failed_uploads]
            self._write_backlog(left)

    def _is_empty(self) -> bool:
        return not self._waiting and not self._failed_uploads

    def _wait(self, patience_seconds: float) -> None:
        since, noticed = time.monotonic(), False
        while not self._is_empty():
            patience = patience_seconds if self._away else max(patience_seconds, BUSY_SECONDS)
            idle = time.monotonic() - max(since, self._accepted_at)
            if idle >= patience:
                return
            if not noticed and idle >= NOTICE_SECONDS:
                noticed = True
                print_line(f"tracking: waiting for MLflow to take what is left, up to {patience:.0f} s", sys.stderr)
            self._changed.wait(min(patience - idle, NOTICE_SECONDS))

    def _write_backlog(self, left: list[Operation]) -> None:
        if not left:
            self._backlog.unlink(missing_ok=True)
            return
        write_json(self._backlog, left)
        print_line(
            f"tracking: {quantity(len(left), 'message')} to MLflow not delivered, but saved in {self._backlog}: send "
            f"with `python -m runtime.tracking {self._backlog}`",
            sys.stderr,
        )

    def _work(self) -> None:
        """The thread: send one operation after another, with a pause after a failure."""
        while (operation := self._next()) is not None:
            error: Exception | None = None
            try:
                self._send(operation)
            except Exception as raised:  # any failure: the step continues
                error = raised
            with self._changed:
                self._sending = None
                if self._closed:  # the operation is in the backlog file
                    return
                self._settle(operation, error)
                self._changed.notify_all()

    def _next(self) -> Operation | None:
        """Wait for an operation to send; None when the outbox is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._due)
            if self._closed:
                return None
            self._sending = self._waiting[0] if self._waiting else self._failed_uploads[0]
            return self._sending

    def _settle(self, operation: Operation, error: Exception | None) -> None:
        """Remove a sent operation from its queue, or leave it there and pause. The caller holds the lock."""
        queue = self._waiting if self._waiting and self._waiting[0] is operation else self._failed_uploads
        if error is not None and not is_refusal(error):
            self._report_away(operation, error)
            if operation["kind"] in UPLOADS:
                self._failed_uploads.append(queue.popleft())
            if operation["kind"] not in UPLOADS or queue is self._failed_uploads:
                self._pause()
            return
        queue.popleft()
        self._accepted_at = time.monotonic()
        if error is not None:
            self._refused.append(operation | {"refused": reason(error)})
            print_line(f"tracking: MLflow refused {operation['kind']}: {reason(error)}", sys.stderr)
        elif self._away and self._is_empty():
            self._away = False
            print_line("tracking: MLflow answers again, and has all that was kept", sys.stderr)
        self._due = not self._is_empty()

    def _pause(self) -> None:
        since = time.monotonic()
        while not self._closed:
            seconds = since + (FINAL_RETRY_SECONDS if self._closing else RETRY_SECONDS) - time.monotonic()
            if seconds <= 0:
                return
            self._changed.wait(seconds)

    def _report_away(self, operation: Operation, error: Exception) -> None:
        if not self._away:
            self._away = True
            what = f"takes no {operation['kind']}" if operation["kind"] in UPLOADS else "does not answer"
            print_line(f"tracking: MLflow {what} ({reason(error)}); kept, and tried again later", sys.stderr)


def read_backlog(backlog: Path) -> list[Operation]:
    """The undelivered operations of an earlier attempt at the same run, without those about its end."""
    if not backlog.is_file():
        return []
    return [
        operation
        for operation in read_operations(backlog)
        if operation["kind"] != "status" and "error" not in operation.get("tags", ())
    ]


def last_steps(backlog: Path) -> dict[str, int]:
    """Metric -> its last step in the backlog file."""
    points = [point for operation in read_backlog(backlog) for point in operation.get("metrics", ())]
    return {point[0]: point[3] for point in points}
