"""Run the parts of the check one after the other in a worker process, within the time limit. Torch-free.

A part should end by itself shortly before its time is up, and is killed otherwise; its results so far are kept. After a
failed or killed part the worker is replaced, since a CUDA error leaves a process unusable.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkContext, SpawnContext
from pathlib import Path
from typing import Any

from benchmarks.gpu.machine import ROOT
from benchmarks.rows import aligned

OUT = ROOT / "dist" / "bench" / "gpu.json"
BUDGETS = {"parity": 45, "speed": 130, "supernet": 60, "compile": 95, "scoring": 40, "epoch": 50, "resume": 60}
"""Seconds of eight minutes; time that a part leaves goes to later parts."""
LAST_SECONDS = 6.0  # of a part's time, in which it should end by itself
CONTEXT: SpawnContext | ForkContext = multiprocessing.get_context("spawn")
LISTS = {"row": "rows", "cut": "cut", "error": "errors"}


def start_worker(connection: Connection, device: str, size: str) -> None:
    from benchmarks.gpu.worker import work  # only in the new process: this one stays torch-free

    multiprocessing.set_start_method("fork", force=True)  # for the loader's workers: Linux's default
    work(connection, device, size)


class Check:
    """A run of the check and its JSON file, which is always complete."""

    def __init__(
        self, file: Path, machine: Mapping[str, Any], device: str = "auto", size: str = "auto", minutes: float = 8.0
    ) -> None:
        self._file, self._end, self._arguments = file, time.monotonic() + 60 * minutes, (device, size)
        self._process: multiprocessing.process.BaseProcess | None = None
        self.result: dict[str, Any] = {"machine": dict(machine), "parts": {}}
        self._save()

    def run(self, parts: Sequence[str] = tuple(BUDGETS)) -> dict[str, Any]:
        """Run the parts, print each table as it comes, return the content of the file. SIGTERM ends it as Ctrl-C."""
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads slow a busy machine down tenfold
        former = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            for number, part in enumerate(parts):
                found = self._run(part, sum(BUDGETS.get(later, 60) for later in parts[number:]))
                print(f"\n{part}  ({found['seconds']} s of {found['budget']})\n{show(found)}", flush=True)
        finally:
            self._kill()
            signal.signal(signal.SIGTERM, former)
        return self.result

    def _run(self, part: str, budgets_left: float) -> dict[str, Any]:
        found: dict[str, Any] = {"rows": [], "facts": {}, "cut": [], "errors": [], "budget": 0}
        self.result["parts"][part] = found
        start, sound = time.monotonic(), False
        try:
            if self._process is None:
                self._start()
                self._receive("ready", found, self._end)
                start = time.monotonic()
            budget = max(0.0, (self._end - start) * BUDGETS.get(part, 60) / budgets_left)
            found["budget"] = round(budget)
            self._connection.send((part, max(0.0, budget - LAST_SECONDS)))
            sound = bool(self._receive("done", found, start + budget))
        except TimeoutError:
            found["cut"].append(f"what follows: killed when its {found['budget']} s were over")
        except (EOFError, ConnectionError):
            assert self._process is not None
            self._process.join()
            found["errors"].append(f"the process ended with code {self._process.exitcode}")
        found["seconds"] = round(time.monotonic() - start, 1)
        self._save()
        if not sound:
            self._kill()
        return found

    def _start(self) -> None:
        self._connection, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=start_worker, args=(theirs, *self._arguments))
        self._process.start()
        theirs.close()

    def _receive(self, last: str, found: dict[str, Any], until: float) -> Any:
        """Record what the worker sends up to the message `last`; return its content.

        Raises `TimeoutError` at `until`, `EOFError` or `ConnectionError` where the process has ended.
        """
        assert self._process is not None
        while True:
            ready = wait([self._connection, self._process.sentinel], max(0.0, until - time.monotonic()))
            if not ready:
                raise TimeoutError
            if self._connection not in ready:
                raise EOFError
            kind, content = self._connection.recv()
            if kind == "ready":
                self.result["machine"]["device"] = content
                print(", ".join(f"{key} {value}" for key, value in content.items()), flush=True)
            elif kind == "fact":
                found["facts"] |= [content]
            elif kind in LISTS:
                found[LISTS[kind]].append(content)
            self._save()
            if kind == last:
                return content

    def _kill(self) -> None:
        """Kill the worker and all processes that it has started."""
        if self._process is not None and self._process.pid is not None:
            with contextlib.suppress(ProcessLookupError):  # before `os.setsid` has created its process group
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.join()
            self._process = None

    def _save(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._file.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.result, indent=1), encoding="utf-8")
        temporary.replace(self._file)


def show(found: Mapping[str, Any]) -> str:
    """A part's rows as tables with one line per case; facts, cuts and errors below."""
    cases: dict[str, dict[str, str]] = {}
    for row in found["rows"]:
        case, _, quantity = row["name"].partition(": ")
        missed = f" MISSED {row['direction']} {row['limit']:.2g}" if row["holds"] is False else ""
        cases.setdefault(case, {})[quantity] = f"{row['value']:.4g} {row['unit']}".strip() + missed
    lines = []
    for quantities in dict.fromkeys(tuple(columns) for columns in cases.values()):
        alike = [[case, *columns.values()] for case, columns in cases.items() if tuple(columns) == quantities]
        lines += aligned([["", *quantities], *alike])
    lines += [f"{name}: {text}" for name, text in found["facts"].items()]
    lines += [f"CUT SHORT, no time for: {left_out}" for left_out in found["cut"]]
    return "\n".join([*lines, *(f"FAILED: {error}" for error in found["errors"])])


def failed(result: Mapping[str, Any]) -> list[str]:
    """The parts with an error. Missed goals and parts cut short are not errors."""
    return [part for part, found in result["parts"].items() if found["errors"]]
