"""The rule that decides whether a model is registered."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from autoformer.files import hash_value

Outcome = Literal["registered", "unchanged", "refused"]
# names of tags of a model version
TOP1, TEST_SPLIT, WEIGHTS, CLASSES = "test_top1_percent", "test_split", "weights", "classes"
_TAGS = {
    "weights": WEIGHTS, "test_split": TEST_SPLIT, "top1_percent": TOP1, "classes": CLASSES,
    "originals": "test_originals", "side": "test_shorter_side",
}  # field of `Measured` -> name  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """A model's test result; unknown values are None. Weights, test split, classes and originals are hashes."""

    weights: str | None
    test_split: str | None
    top1_percent: float | None
    classes: str | None = None
    originals: str | None = None  # the test images before packing
    side: str | None = None  # pixels of the shorter side of the packed test images

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> "Measured":
        """The champion, from the tags of its version; a version registered by hand may have none."""
        values: dict[str, Any] = {field: tags.get(name) for field, name in _TAGS.items()}
        try:
            values["top1_percent"] = float(tags[TOP1])
        except (KeyError, ValueError):
            values["top1_percent"] = None
        return cls(**values)

    @property
    def tags(self) -> dict[str, str]:
        """The inverse of `from_tags`."""
        values = ((name, getattr(self, field)) for field, name in _TAGS.items())
        return {name: str(value) for name, value in values if value is not None}


def hash_classes(names: Iterable[str]) -> str:
    """Of a model's classes; their order is the model's own matter."""
    return hash_value(sorted(names))


class Decision(NamedTuple):
    outcome: Outcome
    reason: str


def decide(challenger: Measured, min_top1_percent: float, champion: Measured | None) -> Decision:
    """Register a model that reaches the minimum and, on the same test images, is not worse than the champion.

    The same images packed at another size are the same test images; the reason names both sizes.
    A champion of other classes is never replaced, because its users expect its classes.
    """
    top1 = challenger.top1_percent
    if top1 is None or not top1 >= min_top1_percent:  # "not >=" refuses NaN too
        return Decision("refused", f"test accuracy {_percent(top1)} is below min_top1_percent {min_top1_percent:g}")
    reached = f"test accuracy {_percent(top1)} reaches min_top1_percent {min_top1_percent:g}"
    if champion is None:
        return Decision("registered", f"{reached}; there is no champion yet")
    if champion.weights == challenger.weights:
        return Decision("unchanged", "the very same weights are the champion already")
    if champion.classes and challenger.classes and champion.classes != challenger.classes:
        return Decision("refused", "the champion has other classes; give this model another register_model.model_name")
    if champion.test_split is None or champion.top1_percent is None:
        return Decision("registered", f"{reached}; not compared: the champion does not record how it was tested")
    theirs = _percent(champion.top1_percent)
    if champion.test_split != challenger.test_split:
        unknown = champion.originals is None or challenger.originals is None
        if unknown or champion.originals != challenger.originals:
            why = "; whether of the same images is not recorded" if unknown else ""
            return Decision(
                "registered", f"{reached}; not compared: the champion was tested on another test split{why}"
            )
        theirs += f" on the same images, packed {_sizes(champion.side, challenger.side)}"
    if top1 < champion.top1_percent:
        return Decision("refused", f"test accuracy {_percent(top1)} is below the champion's {theirs}")
    return Decision("registered", f"{reached}; the champion has {theirs}")


def _sizes(champion: str | None, challenger: str | None) -> str:
    if champion == challenger:
        return "otherwise"
    return f"at {champion or 'unknown'} instead of {challenger or 'unknown'} pixels"


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f} %"
