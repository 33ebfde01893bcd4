"""How weights are trained: a value that the training loop and the configuration share. Torch-free."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Augmentation(BaseModel):
    """Augmentations of small images that stay in memory, done on whole batches."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    crop_padding: int = Field(0, ge=0, description="pixels of zero padding around a random crop of the image's size")
    flip: bool = Field(False, description="mirror half of the images")
    erase_probability: float = Field(0.0, ge=0, le=1, description="share of images with a blank rectangle")


class Recipe(BaseModel):
    """The training recipe of a supernet or of a subnet (paper section 4.1 has ImageNet's)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: float = Field(gt=0)
    batch_size: int = Field(gt=0, description="images in one forward pass")
    accumulation: int = Field(1, gt=0, description="forward passes, all of one subnet, to an optimiser step")
    learning_rate: float = Field(gt=0)
    min_learning_rate: float = Field(0.0, ge=0)
    warmup_learning_rate: float = Field(1e-6, ge=0)
    warmup_epochs: float = Field(0.0, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth of the deepest block; linear from 0")
    clip_grad: float | None = Field(None, gt=0, description="largest norm of the gradient; null for none")
    ema_decay: float | None = Field(None, gt=0, lt=1, description="decay of the averaged weights; null for none")
    precision: Literal["float32", "bfloat16", "float16"] = Field("float32", description="of the forward pass")
    init_gain: float | None = Field(
        None, gt=0, description="new linear weights have deviation gain / sqrt(inputs); null for the official 0.02"
    )
    augmentation: Augmentation = Augmentation()

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs:g} leave nothing of epochs {self.epochs:g}")
        return self
