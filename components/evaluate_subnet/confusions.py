"""The most frequent confusions, for the report and for the KFP UI."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autoformer.errors import quantity
from runtime.common import records

LARGEST_MATRIX = 50  # classes; a larger matrix is unreadable


class Confusion(NamedTuple):
    actual: str
    predicted: str
    errors: int
    images: int  # images of the actual class


def top_confusions(classes: Sequence[str], matrix: npt.ArrayLike, most: int) -> list[Confusion]:
    """The most frequent errors of a matrix (K, K), rows are actual classes; ties in label order."""
    counts = np.array(matrix)
    images = counts.sum(axis=1)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:most]
    return [
        Confusion(classes[actual], classes[predicted], int(counts[actual, predicted]), int(images[actual]))
        for actual, predicted in zip(*np.unravel_index(order, counts.shape), strict=True)
        if counts[actual, predicted]
    ]


def top_confusions_markdown(counted: records.Confusion, most: int = 20) -> str:
    """The most frequent errors of `confusion.json` under a title.

    A list, since the KFP UI sets a table's columns without space between them.
    """
    found = top_confusions(counted.classes, counted.matrix, most)
    if not found:
        return "No image of the test split was misclassified.\n"
    lines = [
        f"- **{_escaped(actual)}** taken for **{_escaped(predicted)}**: {errors:,} of {quantity(images, 'image')} "
        f"({100 * errors / images:.1f} %)"
        for actual, predicted, errors, images in found
    ]
    return "\n".join(["### The most frequent confusions on the test split", "", *lines, ""])


def _escaped(text: str) -> str:
    """A name whose characters mean nothing in Markdown."""
    return re.sub(r"([\\`*_~\[\]<>|])", r"\\\1", text)
