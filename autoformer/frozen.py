"""The base of every value that is validated: frozen, without unknown keys, without NaN or infinity."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Subclasses add fields; a wrong, missing or unknown one raises pydantic's `ValidationError`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
