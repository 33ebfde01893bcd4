"""Candidates of a search, their scores, and their rows in candidates.csv. Torch-free."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self, get_args

from autoformer.complexity import count_macs, count_params
from autoformer.errors import AutoFormerError
from autoformer.latency import LatencyTable
from autoformer.racing import Objective, ScoringResult
from autoformer.space import SearchSpace, SubnetSpec
from autoformer.subnet_text import CELLS, from_cells, to_cells

Origin = Literal["initial", "mutation", "crossover", "fill", "baseline", "earlier", "listed"]
COLUMNS = ("id", "origin", "generation", "parents", *CELLS, "params", "macs", "top1_percent", "loss", "images")
LATENCY = "latency_ms"  # an extra column if the search had a latency table
_PARENT_SEPARATOR = ";"


@dataclass(frozen=True)
class Candidate:
    """A subnet to score, and its origin.

    `parents` are ids of candidates; `macs` leave out relative position.
    """

    id: int
    spec: SubnetSpec
    origin: Origin
    generation: int
    parents: tuple[int, ...]
    params: int
    macs: int
    latency_ms: float | None = None  # predicted; None without a table

    @classmethod
    def counted(
        cls, space: SearchSpace, table: LatencyTable | None, number: int, spec: SubnetSpec, origin: Origin,
        generation: int = 0, parents: Sequence[int] = (),
    ) -> Self:  # fmt: skip
        """A candidate with the id `number`, and the costs of its subnet."""
        params, macs = count_params(space, spec), count_macs(space, spec)
        latency = table.predict(spec) if table else None
        return cls(number, spec, origin, generation, tuple(parents), params, macs, latency)


class ScoredCandidate(NamedTuple):
    """A candidate and its score: measured on all images, or estimated where the race stopped it early."""

    candidate: Candidate
    top1_percent: float
    loss: float | None  # mean cross entropy in nats; None where the race stopped the candidate
    images: int

    @classmethod
    def measured(cls, candidate: Candidate, result: ScoringResult) -> Self:
        """The score on all images of a result."""
        images = len(result.correct)
        loss = float(result.losses.sum(dtype="float64")) / images
        return cls(candidate, 100.0 * int(result.correct.sum()) / images, loss, images)

    @property
    def complete(self) -> bool:
        return self.loss is not None

    @property
    def is_baseline(self) -> bool:
        """Whether random search drew it."""
        return self.candidate.origin == "baseline"

    def score(self, objective: Objective) -> float:
        """The objective of a complete candidate, greater is better: the mean of `ScoringResult.values`."""
        assert self.loss is not None
        return self.top1_percent / 100 if objective == "accuracy" else -self.loss

    def rank(self, objective: Objective = "accuracy") -> tuple[bool, float, float, int, int]:
        """Sort key, best first: complete, the objective, the other measure, fewer parameters, lower id."""
        scores = -self.top1_percent, self.loss or 0.0
        if objective == "loss":
            scores = scores[1], scores[0]
        return not self.complete, *scores, self.candidate.params, self.candidate.id

    def to_row(self) -> dict[str, Any]:
        """Column -> value, for `COLUMNS`, and `LATENCY` if known. `from_row` restores an equal candidate."""
        candidate = self.candidate
        latency = {} if candidate.latency_ms is None else {LATENCY: candidate.latency_ms}
        return {
            "id": candidate.id,
            "origin": candidate.origin,
            "generation": candidate.generation,
            "parents": _PARENT_SEPARATOR.join(map(str, candidate.parents)),
            **to_cells(candidate.spec),
            "params": candidate.params,
            "macs": candidate.macs,
            "top1_percent": self.top1_percent,
            "loss": "" if self.loss is None else self.loss,
            "images": self.images,
            **latency,
        }

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> Self:
        """Read a row with all `COLUMNS`. Raises `ValueError` naming the wrong value."""
        candidate = Candidate(
            id=int(row["id"]),
            spec=from_cells(row),
            origin=_origin(row["origin"]),
            generation=int(row["generation"]),
            parents=tuple(int(parent) for parent in row["parents"].split(_PARENT_SEPARATOR) if parent),
            params=int(row["params"]),
            macs=int(row["macs"]),
            latency_ms=_finite(LATENCY, row[LATENCY]) if LATENCY in row else None,
        )
        loss = _finite("loss", row["loss"]) if row["loss"] else None
        return cls(candidate, _finite("top1_percent", row["top1_percent"]), loss, int(row["images"]))


def check_finite(scored: Sequence[ScoredCandidate]) -> None:
    """Raise `AutoFormerError` for a score of NaN or infinity, which has no rank."""
    for one in scored:
        if not math.isfinite(one.top1_percent) or not math.isfinite(one.loss or 0.0):
            raise AutoFormerError(
                f"candidate {one.candidate.id}: top1_percent {one.top1_percent}, loss {one.loss}: a score that is not "
                "finite has no rank; set search_subnet.precision=float32"
            )


def _origin(text: str) -> Origin:
    for origin in get_args(Origin):
        if text == origin:
            return origin
    raise ValueError(f"origin = {text!r}: expected one of {', '.join(get_args(Origin))}")


def _finite(column: str, text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{column} = {text}: expected a finite number")
    return number
