"""Refuse a user's images if too many of them are unreadable."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from autoformer.errors import AutoFormerError, quantity
from autoformer.images.pixels import image_size
from components.prepare_data.listing import NOT_READ
from components.prepare_data.sources import Source
from runtime.common.tables import write_table


def refuse_by_names(source: Source, report: Path, max_percent: float) -> None:
    """Refuse a source, before packing, if too many files are of an unsupported format by their suffix and header."""
    endings = tuple(NOT_READ)  # most paths have none of them, and need no parsing
    candidates = [image for image in source.images if str(image.path).lower().endswith(endings)]
    named = [image for image in candidates if image.path.suffix.lower() in NOT_READ]
    if 100 * len(named) <= max_percent * len(source.images):
        return
    refused = []
    for image in named:
        try:
            image_size(image.path)
        except AutoFormerError as error:
            refused.append({"source": source.name_of(image), "reason": str(error).removeprefix(f"{image.path}: ")})
    check_unreadable(source, max_percent, len(refused), len(source.images), report, refused)


def check_unreadable(
    source: Source,
    max_percent: float,
    unreadable: int,
    seen: int,
    report: Path,
    refused: Sequence[Mapping[str, str]] = (),
) -> None:
    """Refuse a source with too many unreadable images, after `seen` have been tried.

    `refused`: rows to write into `report`; empty if it has them already.
    """
    total = len(source.images)
    percent = 100 * unreadable / total
    if percent > max_percent:
        if refused:
            write_table(report, ("source", "reason"), refused)
        so_far = "" if seen == total else " so far"
        reasons = Counter(row["reason"] for row in refused).most_common(1)
        most = f", most of them: {reasons[0][0]}" if reasons and reasons[0][1] > 1 else ""
        raise AutoFormerError(
            f"{source.root}: {unreadable} of {quantity(total, 'image')} cannot be read{so_far} ({percent:.1f} "
            f"%){most}; more than prepare_data.max_unreadable_percent = {max_percent:g} allows; {report} names each "
            "with its reason: repair or remove them, or raise the share"
        )
