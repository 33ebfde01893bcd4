"""How pixels become 8 bits, opaque: one rule for every image of a data set, in training and in prediction."""

from pydantic import Field

from autoformer.frozen import Frozen


class PixelRule(Frozen):
    """The background is grey by default, on which black, white and coloured drawings are visible."""

    background: int = Field(128, ge=0, le=255, description="grey level behind transparent pixels: 0 black, 255 white")
    white_level: float | None = Field(
        None,
        gt=0,
        description="value that is white in images of more than 8 bits; null: 65535 of 16 bits, 32 are refused",
    )


ON_BLACK = PixelRule(background=0)
"""Of data sets and models that were made before the rule was on their cards."""
