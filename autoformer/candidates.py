"""What a search says of a candidate, and its row in candidates.csv: written and read here alone. Torch-free."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Self, get_args

from autoformer.search import Candidate, Origin
from autoformer.subnet_text import CELLS, from_cells, to_cells

COLUMNS = ("id", "origin", "generation", "parents", *CELLS, "params", "macs", "top1_percent", "loss", "images")
_BETWEEN_PARENTS = ";"


class Outcome(NamedTuple):
    """What a candidate has come to: its score on all images, or, where it was stopped after fewer, an estimate."""

    candidate: Candidate
    top1_percent: float
    loss: float | None  # None where it was stopped
    images: int

    @property
    def complete(self) -> bool:
        return self.loss is not None

    @property
    def is_baseline(self) -> bool:
        """Whether it is of random search."""
        return self.candidate.origin == "baseline"

    def to_row(self) -> dict[str, Any]:
        """Column of `COLUMNS` -> value, for `csv`; `from_row` of what is read back is equal."""
        candidate = self.candidate
        return {
            "id": candidate.id,
            "origin": candidate.origin,
            "generation": candidate.generation,
            "parents": _BETWEEN_PARENTS.join(map(str, candidate.parents)),
            **to_cells(candidate.spec),
            "params": candidate.params,
            "macs": candidate.macs,
            "top1_percent": self.top1_percent,
            "loss": "" if self.loss is None else self.loss,
            "images": self.images,
        }

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> Self:
        """Read a row that has all `COLUMNS`. Raises `ValueError` that says which value is no good."""
        candidate = Candidate(
            id=int(row["id"]),
            spec=from_cells(row),
            origin=_origin(row["origin"]),
            generation=int(row["generation"]),
            parents=tuple(int(parent) for parent in row["parents"].split(_BETWEEN_PARENTS) if parent),
            params=int(row["params"]),
            macs=int(row["macs"]),
        )
        loss = _finite("loss", row["loss"]) if row["loss"] else None
        return cls(candidate, _finite("top1_percent", row["top1_percent"]), loss, int(row["images"]))


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
