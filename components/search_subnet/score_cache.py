"""What subnets have answered so far, kept in a file, and the processes that answer.

A line of the file is what one subnet has answered at once: which images, in which of them it was right (a bit an
image, as base64), and the sum of its losses. A search that was killed finds them again, and scores nothing twice.
"""

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autoformer.distributed import World
from autoformer.files import write_text
from autoformer.racing import Flags, Indices, ScoringResult, ScoringTask
from autoformer.space import SubnetSpec

_TURN_IMAGES = 4000  # a rank answers for about so many, and at least one task, before all is written down


class Known:
    """What one subnet has answered of the N images, and the sum of its losses."""

    def __init__(self, images: int) -> None:
        self.answered: Flags = np.zeros(images, dtype=bool)
        self.right: Flags = np.zeros(images, dtype=bool)
        self.loss_sum = 0.0

    def add(self, images: Indices, answers: ScoringResult) -> None:
        self.answered[images], self.right[images] = True, answers.right
        self.loss_sum += answers.loss_sum


class ScoreCache:
    """Asks each subnet about each image once, and remembers the answers.

    Args:
        file: of the answers.
        images: N.
        score: answers tasks, in any order.
        kept: is called after each line.
    """

    def __init__(
        self,
        file: Path,
        images: int,
        score: Callable[[Sequence[ScoringTask]], Iterable[tuple[ScoringTask, ScoringResult]]],
        kept: Callable[[], None] = lambda: None,
    ) -> None:
        self._file, self._images, self._score, self._kept = file, images, score, kept
        self._known: dict[SubnetSpec, Known] = {}
        self._scored_specs: set[SubnetSpec] = set()
        self.images_scored_now = 0  # that this process has scored, over all subnets
        for line in _read_lines(file):
            spec, images_of_line, answers = _parsed(line, images)
            self[spec].add(images_of_line, answers)

    def __getitem__(self, spec: SubnetSpec) -> Known:
        return self._known.setdefault(spec, Known(self._images))

    def __len__(self) -> int:
        """How many subnets have answered anything."""
        return sum(bool(known.answered.any()) for known in self._known.values())

    @property
    def candidates_scored_now(self) -> int:
        """How many subnets this process has scored on anything."""
        return len(self._scored_specs)

    def ask(self, specs: Sequence[SubnetSpec], images: Indices, told: Callable[[], None]) -> list[Flags]:
        """Which of the images (m,) each subnet has right; `told` is called for each as soon as it is known."""
        missing = {spec: images[~self[spec].answered[images]] for spec in specs}
        for task, answers in self._score([ScoringTask(spec, rest) for spec, rest in missing.items() if len(rest)]):
            self._store(task, answers)
            told()
        for _ in range(sum(not len(rest) for rest in missing.values())):
            told()
        return [self[spec].right[images] for spec in specs]

    def _store(self, task: ScoringTask, answers: ScoringResult) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_line(task, answers, self._images)) + "\n")
        self._kept()
        self[task.spec].add(task.images, answers)
        self._scored_specs.add(task.spec)
        self.images_scored_now += len(task.images)


def _line(task: ScoringTask, answers: ScoringResult, images: int) -> dict[str, Any]:
    here, right = np.zeros(images, dtype=bool), np.zeros(images, dtype=bool)
    here[task.images], right[task.images] = True, answers.right
    return {
        "subnet": task.spec.to_dict(),
        "images": _packed(here),
        "right": _packed(right[here]),
        "loss_sum": answers.loss_sum,
    }


def _parsed(line: dict[str, Any], images: int) -> tuple[SubnetSpec, Indices, ScoringResult]:
    here = np.flatnonzero(_unpacked(line["images"], images))
    answers = ScoringResult(_unpacked(line["right"], len(here)), line["loss_sum"])
    return SubnetSpec.from_dict(line["subnet"]), here, answers


def _packed(bits: Flags) -> str:
    return base64.b64encode(np.packbits(bits).tobytes()).decode()


def _unpacked(text: str, count: int) -> Flags:
    packed = np.frombuffer(base64.b64decode(text), dtype=np.uint8)
    return np.unpackbits(packed, count=count).astype(bool)


def _read_lines(file: Path) -> list[dict[str, Any]]:
    """What an earlier try has left. A last line that a kill cut off is dropped, from the file too."""
    if not file.exists():
        return []
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_text(file, whole)
    return [json.loads(line) for line in whole.splitlines()]


class Crew:
    """The ranks that answer tasks together. Rank 0 deals them and hears all answers; the others `work` until the end.

    Tasks are sorted by cost and dealt in turn, so that the ranks are busy equally long.

    Args:
        world: which of them this is.
        score: answers tasks in their order, on this rank's device.
        cost: of a task, in any unit.
    """

    def __init__(
        self,
        world: World,
        score: Callable[[Iterable[ScoringTask]], Iterator[ScoringResult]],
        cost: Callable[[ScoringTask], float],
    ) -> None:
        self.world, self.score, self.cost = world, score, cost

    def __call__(self, tasks: Sequence[ScoringTask]) -> Iterator[tuple[ScoringTask, ScoringResult]]:
        """Tasks with their answers, for rank 0. Alone, as soon as there is one."""
        if self.world.size == 1:
            yield from zip(tasks, self.score(tasks), strict=True)
            return
        left = sorted(tasks, key=lambda task: -self.cost(task))
        while left:
            turn = self.world.size * max(1, _TURN_IMAGES // len(left[0].images))
            dealt, left = left[:turn], left[turn:]
            self.world.broadcast(dealt)
            for rank, answers in enumerate(self._answered(dealt)):
                yield from zip(dealt[rank :: self.world.size], answers, strict=True)

    def work(self) -> None:
        """Answer what rank 0 deals, until it has nothing more."""
        nothing: list[ScoringTask] = []
        while dealt := self.world.broadcast(nothing):
            self._answered(dealt)

    def dismiss(self) -> None:
        """Let the other ranks go."""
        if self.world.size > 1:
            self.world.broadcast([])

    def _answered(self, dealt: Sequence[ScoringTask]) -> list[list[ScoringResult]]:
        return self.world.all_gather(list(self.score(self.world.shard(dealt))))
