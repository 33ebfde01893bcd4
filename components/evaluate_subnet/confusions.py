"""The confusion matrix as the KFP UI can show it."""

from typing import Any

LARGEST_MATRIX = 50  # classes; beyond it a matrix is unreadable, and the top confusions say more


def matrix_for_kfp(counted: dict[str, Any]) -> list[list[int]] | None:
    """The matrix of `confusion.json`, rows the true classes; None where there are too many classes."""
    return counted["matrix"] if len(counted["classes"]) <= LARGEST_MATRIX else None


def top_confusions_markdown(counted: dict[str, Any], most: int = 20) -> str:
    """A table of the pairs of classes that are confused most often."""
    classes, matrix = counted["classes"], counted["matrix"]
    pairs = [
        (count, true, predicted, sum(row))
        for true, row in enumerate(matrix)
        for predicted, count in enumerate(row)
        if true != predicted and count
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    lines = ["| true class | taken for | images | of the class |", "|---|---|---:|---:|"]
    for count, true, predicted, images in pairs[:most]:
        lines.append(
            f"| {_cell(classes[true])} | {_cell(classes[predicted])} | {count} | {100 * count / images:.1f} % |"
        )
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
