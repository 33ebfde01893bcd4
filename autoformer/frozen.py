"""The base class of validated values: frozen, no unknown keys, no NaN or infinity."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def sha256_of(what: str) -> Any:
    """The field beside the name of a file: a run whose file has changed has another configuration."""
    description = f"hash of {what}; filled in when a run is resolved"
    return Field(None, pattern=r"^[0-9a-f]{64}$", description=description)
