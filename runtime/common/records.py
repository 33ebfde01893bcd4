"""Models of the JSON files that one step or process writes and another reads. The cards are in `autoformer`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, model_validator

from autoformer.errors import AutoFormerError, quantity
from autoformer.reading import read_json_as
from autoformer.space import SubnetField


class Written(BaseModel):
    """Base of files written by this project; a later version may have added keys."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)


class Provenance(Written):
    """`provenance.json`, and the same on the card of a model."""

    config: dict[str, Any] = Field({})
    inputs: dict[str, str] = Field({})
    models: dict[str, str] = Field({})
    test_split: str | None = None

    def section(self, step: str) -> Mapping[str, Any]:
        """A section of the configuration; empty if it is missing."""
        section = self.config.get(step)
        return section if isinstance(section, Mapping) else {}


class Confusion(Written):
    """`confusion.json`. Rows are the actual classes."""

    classes: tuple[str, ...]
    matrix: tuple[tuple[NonNegativeInt, ...], ...]

    @model_validator(mode="after")
    def _square(self) -> Self:
        if {len(self.matrix), *map(len, self.matrix)} != {len(self.classes)}:
            raise ValueError(
                f"expected a matrix of one row and one column for each of {quantity(len(self.classes), 'class')}"
            )
        return self


class Rollback(Written):
    """A row of `rollbacks.json`."""

    step: int
    reason: str
    subnet: SubnetField
    back_to_step: int
    learning_rate_scale: float


class StepRecord(Written):
    """`run.json`."""

    seconds: FiniteFloat = 0.0
    mlflow_parent_run_id: str | None = None


class Registration(Written):
    """`registration.json`. With several budgets: the largest, and each by its label."""

    reason: str
    model_name: str = ""
    version: str | None = None
    budgets: dict[str, "Registration"] = Field({})


class Failure(Written):
    """Why a process ended."""

    step: str
    message: str
    code: int = Field(ge=1, le=255)


class Accumulation(Written):
    """`…-found.json`: number of micro-batches of one optimiser step."""

    accumulation: int = Field(gt=0)


def read_confusion(path: str | Path) -> Confusion:
    return read_json_as(Confusion, Path(path))


def read_metrics(path: Path, *required: str) -> dict[str, float]:
    """Read `metrics.json`. Raises `AutoFormerError` naming the file if a value is missing or not finite."""
    metrics = read_json_as(dict[str, bool | int | FiniteFloat], path)  # integers stay integers
    missing = [name for name in required if name not in metrics]
    if missing:
        raise AutoFormerError(f"{path}: '{missing[0]}' is missing; run the step that makes it again")
    return metrics
