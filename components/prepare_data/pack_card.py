"""The card of a pack, `dataset.json`, and the table of its unreadable files."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from autoformer.errors import validated
from autoformer.frozen import FolderName, Frozen
from autoformer.images.card import ClassNames
from autoformer.images.pixel_rule import ON_BLACK, PixelRule
from autoformer.reading import read_json
from runtime.common.tables import read_table

# 1 rounded the longer side, 2 had black behind transparent pixels, 3 misread some colour keys; all can still be read
FORMAT = 4
CARD = "dataset.json"
INDEX = "index.csv"
UNREADABLE = "unreadable.csv"


class PackCard(Frozen):
    """A pack's content. `hash` covers every input file's bytes, label and split, and the packing settings."""

    format: Literal[1, 2, 3, 4] = 4
    name: FolderName
    hash: str
    layout: str
    classes: ClassNames = Field(min_length=2)
    counts: dict[str, int] = Field(description="readable images of each class")
    splits: dict[str, int] = Field(description="readable images of each split that the source has; '' for none")
    channels: Literal[1, 3]
    shorter_side: int = Field(gt=0, description="pixels")
    median_size: tuple[int, int] = Field(description="width and height of the images as they were, in pixels")
    unreadable: int
    ignored: int = Field(description="files that are no images by their names")
    archives: dict[str, str] = Field(description="file name -> sha256")
    pixels: PixelRule = Field(ON_BLACK, description="how pixels became 8 bits, opaque; the model does the same")
    notes: tuple[str, ...] = Field((), description="what was left out, changed or is odd, a sentence each")


def read_pack(folder: Path) -> PackCard:
    """The card of a pack. Raises `AutoFormerError` if the folder is no pack, or its card is damaged."""
    return validated(PackCard, read_json(folder / CARD), str(folder / CARD))


def unreadable_of(folder: Path) -> list[dict[str, str]]:
    """The unreadable files of a pack, with reasons."""
    return read_table(folder / UNREADABLE)
