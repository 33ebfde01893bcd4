"""The base class of validated values: frozen, no unknown keys, no NaN or infinity, no truth value as a number.

And the two kinds of names in them: names to show, and names that become a part of a path.
"""

import os
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from autoformer.errors import one_line, printable

_LONGEST_FILE_NAME = 255  # bytes, of every usual file system


class Frozen(BaseModel):
    """Wrong values raise an `AutoFormerError` of one line that names the class and the key."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    if not TYPE_CHECKING:  # type checkers know the fields of each class

        def __init__(self, /, **values: Any) -> None:
            with one_line(type(self), type(self).__name__):
                super().__init__(**values)

        __init__.__pydantic_base_init__ = True  # else pydantic calls it for nested values, too, and loses their keys

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """`off` in YAML is false, which pydantic would silently take as 0."""
        is_truth = isinstance(value, bool) or (isinstance(value, list | tuple) and any(type(v) is bool for v in value))
        kind = str(cls.model_fields[str(info.field_name)].annotation) if is_truth else ""
        if is_truth and "bool" not in kind and "Any" not in kind:
            raise ValueError("expected no true or false (yes, no, on and off are these in YAML)")
        return value


def sha256_of(what: str) -> Any:
    """The field beside the name of a file: a run whose file has changed has another configuration."""
    description = f"hash of {what}; filled in when a run is resolved"
    return Field(None, pattern=r"^[0-9a-f]{64}$", description=description)


def check_name(name: str) -> str:
    """The name. Raises `ValueError` for a line break or anything else that a terminal would obey."""
    if printable(name) != name:
        raise ValueError("a name holds no line break and no other control character")
    return name


def check_folder_name(name: str) -> str:
    """The name. Raises `ValueError` unless it is one part of a path."""
    check_name(name)
    if "/" in name or name in ("", ".", ".."):
        raise ValueError("expected the name of a folder, without '/', and neither '.' nor '..'")
    if len(os.fsencode(name)) > _LONGEST_FILE_NAME:
        raise ValueError(f"a name of more than {_LONGEST_FILE_NAME} bytes, the most for a file or folder")
    return name


Name = Annotated[str, AfterValidator(check_name)]
"""A name in messages, tables and MLflow."""
FolderName = Annotated[str, AfterValidator(check_folder_name)]
"""A name that becomes one part of a path: nothing in it leads elsewhere."""
