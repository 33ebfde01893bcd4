"""Spellings of class names: those that are one class, and those that a person should look at."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping

from autoformer.errors import printable, quantity
from components.prepare_data.listing import alike, some

_LETTERS = 2  # class names up to this length may differ only by case: a and A, Co and CO
_BETWEEN = re.compile(r"[\s_\-'\"\u2018-\u201f\u00ab\u00bb]+")
_UNSEEN = re.compile("[\u00ad\u200b\u200e\u200f\u2060-\u2064\ufeff]")  # and of no meaning, unlike joiners
# Letters of other alphabets that look like Latin ones.
_LATIN = str.maketrans("аеорсухіјѕԁһοαυνκρτ", "aeopcyxijsdhoauvkpt")
_MISSING = frozenset(("nan", "null", "n/a", "<na>", "#n/a", "nat"))  # as pandas and spreadsheets write an empty cell


def one_spelling(counts: Mapping[str, int]) -> tuple[dict[str, str], list[str]]:
    """Label -> class name: of spellings of one class the most frequent one, in composed Unicode; and notes."""
    spellings: dict[str, Counter[str]] = {}
    for label, count in counts.items():
        name = unicodedata.normalize("NFC", label)
        spellings.setdefault(name if len(name) <= _LETTERS else alike(name), Counter())[label] += count
    name_of: dict[str, str] = {}
    notes: list[str] = []
    for labels in spellings.values():
        best = unicodedata.normalize("NFC", min(labels, key=lambda label: (-labels[label], label)))
        best = _UNSEEN.sub("", best) or best
        name_of |= dict.fromkeys(labels, best)
        composed = {unicodedata.normalize("NFC", label) for label in labels}
        if len(labels) > 1:
            how = "Unicode" if len(composed) == 1 or not _by_case(composed) else "case or spaces"
            number = quantity(len(labels), "spelling")
            notes.append(f"{number} of '{printable(best)}' differ by {how} alone, and are one class")
    return name_of, sorted(notes)


def _by_case(names: Collection[str]) -> bool:
    return len({" ".join(name.split()).casefold() for name in names}) == 1


def doubtful_classes(classes: Iterable[str]) -> list[str]:
    """Notes on classes that may be one, several or none."""
    classes = sorted(classes)
    near: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        near[_look(name)].append(name)
    notes = [
        f"the classes {', '.join(repr(name) for name in names[:3])} differ by little: if they are one, give it one name"
        for names in near.values()
        if len(names) > 1
    ]
    if missing := [name for name in classes if alike(name) in _MISSING]:
        notes.append(
            f"the class '{missing[0]}' is called as programs write a missing label: if it is one, remove its images"
        )
    several = [name for name in classes if len(parts := _parts(name)) > 1 and parts <= set(classes)]
    if several:
        notes.append(
            f"classes that seem to be several labels of an image: {some(several)}; an image has one class here"
        )
    return notes


def meant(label: str, classes: Iterable[str]) -> str:
    """A hint at the class that differs by little from an unknown one; "" if there is none."""
    same = sorted(name for name in classes if _look(name) == _look(label))
    return f"; '{same[0]}' differs by little: give it one name" if same else ""


def _look(name: str) -> str:
    """A form that is equal for names which a person may take for one; numbers by their value."""
    plain = alike(name) if len(name) > _LETTERS else name
    if re.fullmatch(r"[0-9.]{1,20}", plain) and plain.count(".") < 2 and plain != ".":
        return repr(float(plain))
    return _BETWEEN.sub("", plain).translate(_LATIN) or plain


def _parts(name: str) -> set[str]:
    return {part.strip() for part in re.split(r"[|;,+&]", name)}
