"""Scores of subnets, stored in a file, so a resumed search scores no subnet twice on an image.

A line of the file is the result of one scoring task: the subnet, the images that it was scored on, its correctness
(both one bit per image, as base64), and its losses (float32, as base64).

Letters in shapes: N images of the search, m images of a task.
"""

import base64
import json
from collections.abc import Callable, Iterable, Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np

from autoformer.errors import AutoFormerError, quantity
from autoformer.racing import Flags, Indices, Losses, ScoringResult, ScoringTask
from autoformer.reading import read_json_lines
from autoformer.space import SubnetField, SubnetSpec
from runtime.common.records import Written

_REMEDY = "delete the file to score all candidates again"


class _Line(Written):
    subnet: SubnetField
    images: str
    right: str
    losses: str


class SubnetScores:
    """The results of one subnet so far."""

    def __init__(self, images: int) -> None:
        self.scored: Flags = np.zeros(images, dtype=bool)  # N
        self.correct: Flags = np.zeros(images, dtype=bool)  # N
        self.losses: Losses = np.zeros(images, dtype=np.float32)  # N

    def add(self, images: Indices, result: ScoringResult) -> None:
        self.scored[images], self.correct[images], self.losses[images] = True, result.correct, result.losses

    def on(self, images: Indices) -> ScoringResult:
        """The result on some of the scored images (m,)."""
        return ScoringResult(self.correct[images], self.losses[images])


class ScoreCache:
    """Scores each subnet at most once on each image.

    Args:
        file: the stored results.
        images: N.
        score: runs tasks, and yields results in any order.
        on_store: called after each new line of the file.
    """

    def __init__(
        self,
        file: Path,
        images: int,
        score: Callable[[Sequence[ScoringTask]], Iterable[tuple[ScoringTask, ScoringResult]]],
        on_store: Callable[[], None] = lambda: None,
    ) -> None:
        self._file, self._images, self._score, self._on_store = file, images, score, on_store
        self._subnets: dict[SubnetSpec, SubnetScores] = {}
        self._scored_now: set[SubnetSpec] = set()
        self.images_scored_now = 0  # by this process, summed over subnets
        if file.exists():
            self._read(file)

    def _read(self, file: Path) -> None:
        """Load the results of an earlier run. An incomplete last line is removed from the file."""
        _remove_unfinished_line(file)
        for number, line in enumerate(read_json_lines(file, _Line, _REMEDY), start=1):
            try:
                scored = np.flatnonzero(_unpacked(line.images, self._images))
                result = ScoringResult(_unpacked(line.right, len(scored)), _losses(line.losses, len(scored)))
            except ValueError as error:
                raise AutoFormerError(f"{file}, line {number}: {error}; {_REMEDY}") from None
            self[line.subnet].add(scored, result)

    def __getitem__(self, spec: SubnetSpec) -> SubnetScores:
        return self._subnets.setdefault(spec, SubnetScores(self._images))

    def __len__(self) -> int:
        """Number of subnets that were scored on any image."""
        return sum(bool(scores.scored.any()) for scores in self._subnets.values())

    @property
    def candidates_scored_now(self) -> int:
        """Number of subnets that this process scored on any image."""
        return len(self._scored_now)

    def score(self, specs: Sequence[SubnetSpec], images: Indices, on_score: Callable[[], None]) -> list[ScoringResult]:
        """The result of each subnet on the images (m,). Calls `on_score` after each subnet."""
        missing = {spec: images[~self[spec].scored[images]] for spec in specs}
        tasks = [ScoringTask(spec, rest) for spec, rest in missing.items() if len(rest)]
        for task, result in self._score(tasks):
            self._store(task, result)
            on_score()
        for _ in range(len(missing) - len(tasks)):
            on_score()
        return [self[spec].on(images) for spec in specs]

    def _store(self, task: ScoringTask, result: ScoringResult) -> None:
        scored = np.zeros(self._images, dtype=bool)
        scored[task.images] = True
        self[task.spec].add(task.images, result)
        line: dict[str, Any] = {
            "subnet": task.spec.to_dict(),
            "images": _packed(scored),
            "right": _packed(self[task.spec].correct[scored]),
            "losses": base64.b64encode(self[task.spec].losses[scored].tobytes()).decode(),
        }
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._on_store()
        self._scored_now.add(task.spec)
        self.images_scored_now += len(task.images)


def _packed(bits: Flags) -> str:
    return base64.b64encode(np.packbits(bits).tobytes()).decode()


def _unpacked(text: str, count: int) -> Flags:
    packed = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    if len(packed) != -(-count // 8):
        raise ValueError(f"the bits of {quantity(count, 'image')} are not {quantity(len(packed), 'byte')}")
    return np.unpackbits(packed, count=count).astype(bool)


def _losses(text: str, count: int) -> Losses:
    losses = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.float32)
    if len(losses) != count or not np.isfinite(losses).all():
        raise ValueError(f"expected the losses of {quantity(count, 'image')}, all finite")
    return losses


def _remove_unfinished_line(file: Path) -> None:
    if file.stat().st_size:  # an empty file cannot be mapped
        with file.open("rb+") as opened:
            with mmap(opened.fileno(), 0, access=ACCESS_READ) as content:
                end = content.rfind(b"\n") + 1
            opened.truncate(end)
