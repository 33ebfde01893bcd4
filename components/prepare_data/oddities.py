"""Sentences on oddities in a user's images: copies, pictures of one colour, small and dominant classes."""

from collections import Counter
from collections.abc import Mapping, Sequence, Sized
from statistics import median_low

from autoformer.errors import quantity
from components.prepare_data.listing import some

_FEW = 20  # images of a class; with fewer, three or less are for testing
_DOMINANT = 3  # times the size of the median class
_DOMINANT_SHARE = 0.2  # of all images


def oddities(
    rows: Sequence[Mapping[str, str]], plain: Sequence[str], dark: Mapping[str, int], unseen: Sequence[str]
) -> list[str]:
    """Sentences on the rows of a pack's index.

    Args:
        rows: `checksum` (of the packed pixels), `label`, `split` and `source` of each image.
        plain: sources of pictures with one colour.
        dark: source -> brightest value, of pictures that are nearly black.
        unseen: sources of pictures that are transparent everywhere.
    """
    counts = Counter(row["label"] for row in rows)
    return [*_copies(rows), *_plain(plain), *_unseen(unseen), *_dark(dark), *_classes(counts), *_not_in(rows)]


def _copies(rows: Sequence[Mapping[str, str]]) -> list[str]:
    same: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        same.setdefault(row["checksum"], []).append(row)
    groups = [group for group in same.values() if len(group) > 1]
    across = [group for group in groups if len({row["label"] for row in group}) > 1]
    notes = []
    if groups:
        first = " = ".join(row["source"] for row in groups[0][:2])
        count = len(rows) - len(same)
        notes.append(
            f"{quantity(count, 'image repeats', 'images repeat')} the pixels of another, such as {first}: copies stay "
            "in one split"
        )
    if across:
        one = across[0][0]
        other = next(row for row in across[0] if row["label"] != one["label"])
        notes.append(
            f"{quantity(len(across), 'image')} with equal pixels in two classes or more, such as {one['source']} = "
            f"{other['source']}: one of the labels is wrong, remove it"
        )
    return notes


def _plain(plain: Sequence[str]) -> list[str]:
    if not plain:
        return []
    return [
        f"{quantity(len(plain), 'image')} of one colour: {some(plain, 2)}; look at them, and for drawings of that "
        "colour on transparent ground set another prepare_data.background"
    ]


def _unseen(unseen: Sequence[str]) -> list[str]:
    if not unseen:
        return []
    return [
        f"{quantity(len(unseen), 'image')} transparent everywhere, so only the ground is seen: {some(unseen, 2)}; save "
        "them without alpha if their colours are meant"
    ]


def _dark(dark: Mapping[str, int]) -> list[str]:
    if not dark:
        return []
    return [
        f"{quantity(len(dark), 'image')} nearly black, at most {max(dark.values())} of 255: {some(list(dark), 2)}; if "
        "white is a smaller value in their files, scale them to 255 first"
    ]


def _classes(counts: Counter[str]) -> list[str]:
    notes, total = [], counts.total()
    few = sorted((count, label) for label, count in counts.items() if count < _FEW)
    if few:
        names = some([f"{label} {count}" for count, label in few])
        notes.append(
            f"{_some_of(few, counts)} fewer than {_FEW} images: {names}; their accuracy on the few that test says "
            "little: add images, merge the classes or remove them"
        )
    label, largest = counts.most_common(1)[0]
    if largest >= _DOMINANT * median_low(counts.values()) and largest >= _DOMINANT_SHARE * total:
        notes.append(
            f"class '{label}' is {100 * largest / total:.0f} % of all images, which is how often a model is right that "
            "always answers it: compare each class's accuracy in the report, or remove some of its images"
        )
    return notes


def _not_in(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Classes without images in a split of the source."""
    labels: dict[str, set[str]] = {}
    for row in rows:
        labels.setdefault(row["split"], set()).add(row["label"])
    every, notes = set().union(*labels.values()), []
    for split in ("val", "test"):
        if missing := sorted(every - labels.get(split, every)):
            notes.append(
                f"{_some_of(missing, every)} no image in {split}: {some(missing)}; what the model makes of them is not "
                "measured there: add some"
            )
    return notes


def _some_of(some: Sized, every: Sized) -> str:
    """For example "1 of 3 classes has"."""
    return f"{len(some)} of {quantity(len(every), 'class')} {'has' if len(some) == 1 else 'have'}"
