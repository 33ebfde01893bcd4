"""The location of a data folder's archives: the folder itself, or the one in its `source.yaml`. Torch-free."""

from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field

from autoformer.errors import AutoFormerError, validated
from autoformer.frozen import Frozen
from autoformer.reading import parse_yaml, read_yaml

SOURCE = "source.yaml"
REMOTE = "s3://"


class ByteRange(NamedTuple):
    """The position of an image file in an archive."""

    archive: str
    offset: int
    size: int


class SourceArchive(Frozen):
    """Expected md5 and size of a large archive."""

    md5: str
    bytes: int | None = Field(None, gt=0)


def _location(value: Any) -> Any:
    return Path(value) if isinstance(value, str) and not value.startswith(REMOTE) else value


class Source(Frozen):
    """`source.yaml` of a data folder whose archives are elsewhere."""

    location: Annotated[Path | str, BeforeValidator(_location)] = Field(
        description="the folder of the archives, a relative one as seen from the data folder; or s3://bucket/folder"
    )
    archives: dict[str, SourceArchive] = Field({}, description="by file name, where they are published ones")


def archive_folder(data: Path) -> Path:
    """The folder of the archives of a data folder. Raises `AutoFormerError` if they are remote: give a reader then."""
    location = read_source(data).location if (data / SOURCE).is_file() else Path()
    if isinstance(location, str):
        raise AutoFormerError(
            f"{data / SOURCE}: the archives lie at {location}, which is no folder; the steps read from there, "
            "for anything else copy them to a disk"
        )
    return data / location


def read_source(data: Path) -> Source:
    """Raises `AutoFormerError` if the data folder has no valid `source.yaml`."""
    file = data / SOURCE
    return validated(Source, read_yaml(file), str(file))


def parse_source(text: str, where: str) -> Source:
    """Parse the text of a `source.yaml`. Raises `AutoFormerError` that names `where`."""
    return validated(Source, parse_yaml(text, where), where)
