"""The parts of the check, one after the other in a process of their own, within the time there is. Torch-free.

A part is asked to end when its time is nearly up, and is killed when it is: what it had told stays. After a part that
failed or was killed the next one has a new process, since an error of CUDA leaves nothing of the old one usable.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.machine import ROOT

SHARES = {"parity": 45, "speed": 130, "supernet": 60, "compile": 95, "scoring": 40, "epoch": 50, "resume": 60}
"""Seconds of eight minutes; what a part does not use, the others get."""
LAST_SECONDS = 6.0  # of a part's time, in which it is to end by itself
WORKER = (sys.executable, "-m", "benchmarks.gpu.worker")


class Worker:
    """The process that measures, and what it has told."""

    def __init__(self, command: Sequence[str]) -> None:
        passive = {"OMP_WAIT_POLICY": "PASSIVE"}  # threads that spin make a busy machine ten times slower
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=passive | os.environ, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        self._told: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._told.put(json.loads(line))
        self._told.put(None)

    def ask(self, part: str, seconds: float) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its end is heard of in `hear`
            print(json.dumps({"part": part, "seconds": seconds}), file=self.process.stdin, flush=True)

    def hear(self, until: float) -> dict[str, Any] | None:
        """The next thing it tells; None where it has ended. Raises `queue.Empty` at `until`."""
        return self._told.get(timeout=max(0.0, until - time.monotonic()))

    def kill(self) -> None:
        """The process and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Check:
    """A run and its file, which is whole at every moment. `end`: on the monotonic clock."""

    def __init__(self, file: Path, machine: Mapping[str, Any], end: float, command: Sequence[str]) -> None:
        self._file, self._command, self._end = file, command, end
        self._worker: Worker | None = None
        self.result: dict[str, Any] = {"machine": dict(machine), "parts": {}}
        self._save()

    def run(self, parts: Sequence[str]) -> dict[str, Any]:
        """All parts; by part its rows, facts, what was cut, errors and seconds. Prints tables as they come."""
        try:
            for number, part in enumerate(parts):
                found = self._run(part, sum(SHARES.get(later, 60) for later in parts[number:]))
                print(f"\n{part}  ({found['seconds']} s of {found['budget']})\n{show(found)}", flush=True)
        finally:
            if self._worker is not None:
                self._worker.kill()
        return self.result

    def _run(self, part: str, shares_left: float) -> dict[str, Any]:
        found: dict[str, Any] = {"rows": [], "facts": {}, "cut": [], "errors": [], "budget": 0}
        self.result["parts"][part] = found
        start, sound, worker = time.monotonic(), False, self._worker
        try:
            if worker is None:
                worker = self._worker = Worker(self._command)
                self._hear(worker, "ready", found, self._end)
                start = time.monotonic()
            budget = max(0.0, (self._end - start) * SHARES.get(part, 60) / shares_left)
            found["budget"] = round(budget)
            worker.ask(part, max(0.0, budget - LAST_SECONDS))
            sound = bool(self._hear(worker, "done", found, start + budget))
        except queue.Empty:
            found["cut"].append(f"what follows: killed when its {found['budget']} s were over")
        except EOFError:
            found["errors"].append(f"the process ended with code {worker.process.wait()}" if worker else "")
        found["seconds"] = round(time.monotonic() - start, 1)
        self._save()
        if not sound and worker is not None:
            worker.kill()
            self._worker = None
        return found

    def _hear(self, worker: Worker, last: str, found: dict[str, Any], until: float) -> Any:
        """Take what the worker tells, up to the message `last`; what that says."""
        while True:
            told = worker.hear(until)
            if told is None:
                raise EOFError
            ((kind, what),) = told.items()
            if kind == "ready":
                self.result["machine"]["device"] = what
                print(", ".join(f"{key} {value}" for key, value in what.items()), flush=True)
            elif kind == "fact":
                found["facts"][what[0]] = what[1]
            elif kind in ("row", "cut", "error"):
                found[{"row": "rows", "cut": "cut", "error": "errors"}[kind]].append(what)
            self._save()
            if kind == last:
                return what

    def _save(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._file.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.result, indent=1), encoding="utf-8")
        temporary.replace(self._file)


def show(found: Mapping[str, Any]) -> str:
    """A part's rows, a line for each case with its quantities in columns; facts, cuts and errors below."""
    cases: dict[str, dict[str, str]] = {}
    for row in found["rows"]:
        case, _, quantity = row["name"].partition(": ")
        missed = f" MISSED {row['direction']} {row['limit']:.2g}" if row["holds"] is False else ""
        cases.setdefault(case, {})[quantity] = f"{row['value']:.4g} {row['unit']}".strip() + missed
    lines = []
    for quantities in dict.fromkeys(tuple(columns) for columns in cases.values()):
        alike = {case: columns for case, columns in cases.items() if tuple(columns) == quantities}
        table = [["", *quantities], *([case, *columns.values()] for case, columns in alike.items())]
        widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
        ]
    lines += [f"{name}: {text}" for name, text in found["facts"].items()]
    lines += [f"CUT SHORT, no time for: {what}" for what in found["cut"]]
    lines += [f"FAILED: {what}" for what in found["errors"]]
    return "\n".join(lines)


def failed(result: Mapping[str, Any]) -> list[str]:
    """The parts in which something went wrong; a missed goal is no error, nor is a part that was cut short."""
    return [part for part, found in result["parts"].items() if found["errors"]]
