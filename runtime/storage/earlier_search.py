"""The scores of an earlier search of the same supernet and search split."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from autoformer.candidates import COLUMNS, ScoredCandidate
from autoformer.errors import AutoFormerError, validated
from autoformer.files import hash_path
from autoformer.reading import read_json_as
from autoformer.space import SearchSpace
from runtime.common.config import Config
from runtime.common.records import Provenance
from runtime.common.sections import SearchSubnet
from runtime.common.tables import read_numbered_rows
from runtime.storage import is_uri
from runtime.storage.downloads import download
from runtime.storage.named_files import verified_file

_PROVENANCE = "provenance.json"
_MADE_OF = {"supernet": "supernet", "search_split": "search split", "card": "data set's card"}


def earlier_scores(
    config: Config, inputs: Mapping[str, Path] | None = None, split_images: int | None = None
) -> list[ScoredCandidate]:
    """The complete scores for `search_subnet.warm_start`, each subnet once; empty if it is not set.

    Args:
        inputs: card, search split and supernet of this search, to check; None while they do not exist.
        split_images: size of the search split; None if unknown.

    Raises:
        AutoFormerError: the search is damaged, has changed, or differs; the message names the difference.
    """
    section = config.section(SearchSubnet)
    named = section.warm_start
    if named is None:
        return []
    folder = named.search.rstrip("/")
    with TemporaryDirectory() as temporary:
        local = Path(temporary) if is_uri(folder) else Path(folder)
        table = verified_file(named.table, named.sha256, local, "search_subnet.warm_start.search")
        if is_uri(folder):
            download(f"{folder}/{_PROVENANCE}", local / _PROVENANCE)
        try:
            _check_same(config, read_json_as(Provenance, local / _PROVENANCE), inputs, split_images)
            found = _read(table, config.space)
        except AutoFormerError as error:
            raise AutoFormerError(str(error).replace(f"{local}/", f"{folder}/")) from None
    by_spec: dict[object, ScoredCandidate] = {}
    for one in found:
        if one.complete and one.images == (section.images or split_images or one.images):
            by_spec.setdefault(one.candidate.spec, one)
    if not by_spec:
        raise AutoFormerError(f"{named.table}: holds no complete score; choose another search, or none")
    return list(by_spec.values())


def _check_same(
    config: Config, earlier: Provenance, inputs: Mapping[str, Path] | None, split_images: int | None
) -> None:
    """Raise `AutoFormerError` if the earlier search has another space, other weights or other images."""
    section, theirs = config.section(SearchSubnet), earlier.section("search_subnet")
    where = f"search_subnet.warm_start.search = {section.warm_start.search if section.warm_start else ''}"
    space = validated(SearchSpace, earlier.config.get("space"), f"{where}, {_PROVENANCE}")
    pairs: list[tuple[str, Any, Any]] = [
        (key, theirs.get(key), getattr(section, key)) for key in ("weights", "precision")
    ]
    counts = theirs.get("images") or split_images, section.images or split_images
    if None not in counts:  # None: all images of a split of unknown size
        pairs.append(("number of images", *counts))
    for key, path in (inputs or {}).items():
        pairs.append((_MADE_OF[key], earlier.inputs.get(key, "none")[:12], hash_path(path)[:12]))
    different = [f"{what} ({there}, here {here})" for what, there, here in pairs if there != here]
    if space != config.space:  # the names may be equal
        different.insert(0, f"space ('{space.name}', here '{config.space.name}')")
    if different:
        raise AutoFormerError(f"{where}: its scores cannot be taken over; they differ in {', '.join(different)}")


def _read(table: Path, space: SearchSpace) -> list[ScoredCandidate]:
    found = []
    for line, row in read_numbered_rows(table, COLUMNS):
        try:
            found.append(ScoredCandidate.from_row(row))
            space.check(found[-1].candidate.spec)
        except ValueError as error:
            raise AutoFormerError(f"{table}, line {line}: {error}; choose another search, or none") from None
    return found
