"""The card of a data set, `card.json`: classes, pixels, splits and archives. Torch-free."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from autoformer.errors import AutoFormerError, has_controls, quantity, validated
from autoformer.frozen import Frozen, Name
from autoformer.images.pixel_rule import ON_BLACK, PixelRule
from autoformer.reading import read_json


def check_class_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names. Raises `AutoFormerError` for one that a terminal would interpret."""
    if strange := [name for name in names if has_controls(name)]:
        raise AutoFormerError(f"the class '{strange[0]}' has control characters in its name; rename it")
    return names


ClassNames = Annotated[tuple[str, ...], AfterValidator(check_class_names)]


class DatasetCard(Frozen):
    name: Name
    classes: ClassNames = Field(min_length=2, description="in the order of their labels, from 0")
    image_size: int | None = Field(
        gt=0, description="pixels: raw, in height and in width; image, of the shorter side, null for any size"
    )
    channels: int = Field(gt=0)
    encoding: Literal["raw", "image"] = Field(
        description="raw: C x S x S bytes an image; offsets count in the decompressed archive if it is a .gz. "
        "image: a PNG or JPEG file in an archive that is not compressed"
    )
    mean: tuple[float, ...] = Field(description="by channel, of pixels in [0, 1]: by which they are normalised")
    std: tuple[float, ...] = Field(description="by channel, of pixels in [0, 1]: by which they are normalised")
    counts: dict[str, int] = Field(description="images of each split")
    licence: str
    source: str
    archives: dict[str, str] = Field(description="file name in the data folder -> sha256 of the file; none of `files`")
    files: bool = Field(
        False,
        description="whether each image is a file of its own, which its row names by its path below the data folder; "
        "the checksums are then those of the rows, and each reading is held against them",
    )
    pixels: PixelRule = Field(ON_BLACK, description="how pixels become 8 bits, opaque")
    upright: bool = Field(True, description="whether an image is turned as its camera noted")
    notes: tuple[str, ...] = Field((), description="what a reader of the card should know, a sentence each")
    split_hashes: dict[str, str] = Field(description="split -> hash_split of its rows")
    test_originals: str | None = Field(
        None, description="hash_split of the test images before packing, equal at any size; null if not recorded"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.encoding == "raw" and self.image_size is None:
            raise ValueError("image_size: raw images have one")
        if not len(self.mean) == len(self.std) == self.channels or min(self.std) <= 0:
            raise ValueError(f"mean and std: expected {quantity(self.channels, 'value')} each, the deviations above 0")
        if self.files and (self.archives or self.encoding != "image"):
            raise ValueError("files: image files of their own lie in no archives, and are not raw")
        outside = [name for name in self.archives if Path(name).name != name]
        if outside:
            raise ValueError(f"the archive '{outside[0]}' lies outside the data folder")
        return self


def read_card(path: Path) -> DatasetCard:
    """Raises `AutoFormerError` if the file is missing, damaged or not a card."""
    return validated(DatasetCard, read_json(path), str(path))
