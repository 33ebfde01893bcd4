"""Say where the files of a large data set are, which stay there: write `source.yaml` into a data folder.

ImageNet's archives are named in it by their published md5, so that DVC has what the data set is made of without a copy
of it. Names and sizes are seen to now; the bytes are, by prepare_data, which reads all of them. Class folders and
WebDataset shards have no published sums: the rows that prepare_data writes are what later readings are held against.
"""

from pathlib import Path

import yaml

from autoformer.errors import AutoFormerError
from autoformer.files import write_text
from autoformer.images.source import SOURCE, Source
from components.prepare_data import imagenet
from runtime.storage import is_uri
from runtime.storage.archives import S3Archives
from runtime.storage.data import ArchiveFolder


def located(archives: str | Path) -> ArchiveFolder:
    """The place that a command line names."""
    return S3Archives(str(archives)) if is_uri(archives) else Path(archives).expanduser().resolve()


def _text(location: ArchiveFolder) -> Path | str:
    return location if isinstance(location, Path) else str(location)


def link(archives: str | Path, data: Path, published: imagenet.Published = imagenet.PUBLISHED) -> None:
    """Write the `source.yaml` of `data`. Raises `AutoFormerError` where an archive is missing or of another size."""
    location = located(archives)
    if isinstance(location, Path) and not location.is_dir():
        raise AutoFormerError(f"{archives}: no such folder; name the one that holds {', '.join(published.archives)}")
    imagenet.check_sizes(location, published.archives, published)
    source = Source(location=_text(location), archives=dict(published.archives))
    text = yaml.safe_dump(source.model_dump(mode="json", exclude_none=True), sort_keys=False)
    write_text(data / SOURCE, f"# Where the archives of {imagenet.TITLE} are, and what they must be.\n{text}")


def link_folder(folder: str | Path, data: Path) -> None:
    """Write the `source.yaml` of a folder of class folders or of WebDataset shards."""
    source = Source(location=_text(located(folder)))
    text = yaml.safe_dump(source.model_dump(mode="json", exclude_defaults=True), sort_keys=False)
    write_text(data / SOURCE, f"# Where the images are: in train/<class>/ and so on, or in WebDataset shards.\n{text}")
