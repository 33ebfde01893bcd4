"""Files named in a configuration by path or S3 address, with the hash of their content."""

from pathlib import Path
from tempfile import TemporaryDirectory

from autoformer.errors import AutoFormerError
from autoformer.files import hash_file
from autoformer.latency import LatencyTable, read_latency_table
from autoformer.space import SearchSpace
from runtime.common.sections import MeasuredLatency
from runtime.storage import is_uri
from runtime.storage.downloads import download


def verified_file(named: str, sha256: str | None, folder: Path, key: str) -> Path:
    """The local path of a file with the expected content; an S3 object is downloaded into `folder`.

    Args:
        key: configuration key that names the file.

    Raises:
        AutoFormerError: the file is missing or has changed.
    """
    file = Path(named)
    if is_uri(named):
        file = folder / file.name
        download(named, file, sha256)
    elif not file.is_file():
        raise AutoFormerError(f"{key} = {named}: no such file")
    elif hash_file(file) != sha256:
        raise AutoFormerError(f"{key} = {named}: changed since the run was resolved; start the run again")
    return file


def latency_table(named: MeasuredLatency | None, space: SearchSpace) -> LatencyTable | None:
    """The latency table of a search. Raises `AutoFormerError` if it is damaged, or does not cover the space."""
    if named is None:
        return None
    with TemporaryDirectory() as folder:
        table = read_latency_table(
            verified_file(named.table, named.sha256, Path(folder), "search_subnet.latency.table")
        )
    table.check_fits(space, f"search_subnet.latency.table = {named.table}")
    return table
