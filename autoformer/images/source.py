"""Where the archives of a data folder lie: in it, or where its `source.yaml` says. Torch-free."""

from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field

from autoformer.errors import AutoFormerError, validated
from autoformer.files import parse_yaml, read_yaml
from autoformer.frozen import Frozen

SOURCE = "source.yaml"
REMOTE = "s3://"  # begins a location that is no folder


class ByteRange(NamedTuple):
    """Where an image file lies."""

    archive: str
    offset: int
    size: int


class SourceArchive(Frozen):
    """What a large archive must be, told before it is read (bytes) and after."""

    md5: str
    bytes: int | None = Field(None, gt=0)


def _location(value: Any) -> Any:
    return Path(value) if isinstance(value, str) and not value.startswith(REMOTE) else value


class Source(Frozen):
    """`source.yaml` of a data folder whose archives are too large to lie in it."""

    location: Annotated[Path | str, BeforeValidator(_location)] = Field(
        description="the folder of the archives, a relative one as seen from the data folder; or s3://bucket/folder"
    )
    archives: dict[str, SourceArchive] = Field({}, description="by file name, where they are published ones")


def archive_folder(data: Path) -> Path:
    """Where the archives of a data folder lie: in it, or where its `source.yaml` says.

    Raises `AutoFormerError` where that is no folder: then a reader of that place has to be given.
    """
    location = read_source(data).location if (data / SOURCE).is_file() else Path()
    if isinstance(location, str):
        raise AutoFormerError(
            f"{data / SOURCE}: the archives lie at {location}, which is no folder; the steps read from there, "
            "for anything else copy them to a disk"
        )
    return data / location


def read_source(data: Path) -> Source:
    """Raises `AutoFormerError` where the data folder has no `source.yaml`, or one that is not as it should be."""
    file = data / SOURCE
    return validated(Source, read_yaml(file), str(file))


def parse_source(text: str, where: str) -> Source:
    """The text of a `source.yaml`. Raises `AutoFormerError`, naming `where` it is from."""
    return validated(Source, parse_yaml(text, where), where)
