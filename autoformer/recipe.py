"""The training recipe, shared by the training loop and the configuration. Torch-free."""

import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from autoformer.frozen import Frozen

# Accepted by timm's rand_augment_transform, which ignores most unknown words.
_RAND_AUGMENT = r"rand(-(m\d+(\.\d+)?|n\d+|p\d+(\.\d+)?|mstd(\d+(\.\d+)?|inf)|mmax\d+|inc[01]))*"
Precision = Literal["auto", "float32", "bfloat16", "float16"]
OptimizerName = Literal["adamw", "nadamw", "lamb", "lion", "muon", "muon_whole"]


class Augmentation(Frozen):
    """Augmentation of training images.

    Padding, crops of the image's own size and flips alone run on whole batches in memory. `crop_scale`,
    `rand_augment` and `color_jitter` run image by image, by timm or `fast`, in worker processes if there are any.
    """

    crop_padding: int = Field(0, ge=0, description="pixels of zero padding around a random crop of the image's size")
    flip: bool = Field(False, description="mirror half of the images")
    crop_scale: tuple[float, float] | None = Field(
        None, description="random resized crop: minimum and maximum fraction of the image's area; null for none"
    )
    rand_augment: str | None = Field(
        None, description="timm's RandAugment, such as rand-m9-mstd0.5-inc1; null for none"
    )
    color_jitter: float = Field(0.0, ge=0, le=1, description="of brightness, contrast and saturation")
    erase_probability: float = Field(0.0, ge=0, le=1, description="share of images with an erased rectangle")
    erase_mode: Literal["const", "rand", "pixel"] = Field(
        "pixel", description="what fills it: zero, one random colour, or random pixels"
    )
    mixup: float = Field(0.0, ge=0, description="alpha of mixup; 0 for none")
    cutmix: float = Field(0.0, ge=0, description="alpha of CutMix; 0 for none")
    mixup_probability: float = Field(1.0, ge=0, le=1, description="share of batches that are mixed at all")
    mixup_switch_probability: float = Field(0.5, ge=0, le=1, description="CutMix rather than mixup where both are on")
    fast: bool = Field(
        False,
        description="crop, flip and RandAugment with the same statistics in less time, other pixels than timm's own; "
        "see autoformer/images/fast_augmentation.py",
    )
    repeats: int = Field(1, gt=0, description="repeated augmentation: copies of an image in one epoch; 1 for none")

    @field_validator("crop_scale")
    @classmethod
    def _fractions(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 < value[0] <= value[1] <= 1:
            raise ValueError("expected two shares of the area, 0 < least <= most <= 1")
        return value

    @field_validator("rand_augment")
    @classmethod
    def _known_to_timm(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(_RAND_AUGMENT, value):
            raise ValueError("expected a RandAugment of timm, such as rand-m9-mstd0.5-inc1")
        return value

    @model_validator(mode="after")
    def _one_crop(self) -> Self:
        if self.crop_scale and self.crop_padding:
            raise ValueError("crop_scale and crop_padding exclude each other: an image is cropped once")
        if self.fast and (not self.crop_scale or self.color_jitter):
            raise ValueError("fast is for a random resized crop (crop_scale) without color_jitter")
        return self

    @property
    def by_image(self) -> bool:
        """Whether images are augmented one by one, not in batches of tensors."""
        return bool(self.crop_scale or self.rand_augment or self.color_jitter)

    @property
    def mixes(self) -> bool:
        return bool(self.mixup or self.cutmix)


class Distillation(Frozen):
    """Distillation from a teacher (DeiT, arXiv 2012.12877, section 4), without a distillation token."""

    teacher: str = Field(min_length=1, description="the name of a model in timm")
    checkpoint: str = Field(min_length=1, description="its weights: safetensors, or a .pth file of tensors alone")
    sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="of the checkpoint; filled in when a run is resolved"
    )
    kind: Literal["hard", "soft"] = Field("hard", description="from the teacher's class, or from its probabilities")
    weight: float = Field(0.5, gt=0, le=1, description="of the teacher's part of the loss")
    temperature: float = Field(1.0, gt=0, description="of both probabilities in soft distillation")
    mean: tuple[float, ...] | None = Field(None, description="of the teacher's pixels; null for timm's of that name")
    std: tuple[float, ...] | None = Field(None, description="of the teacher's pixels; null for timm's of that name")

    @field_validator("std")
    @classmethod
    def _above_zero(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and min(value) <= 0:
            raise ValueError("expected values above 0")
        return value


class Recipe(Frozen):
    """The training recipe of a supernet or a subnet (paper section 4.1 for ImageNet)."""

    epochs: float = Field(gt=0, description="passes over the training images; a fraction is fine")
    batch_size: int = Field(gt=0, description="images of an optimiser step")
    accumulation: int | Literal["auto"] = Field(
        "auto",
        description="forward passes, all of one subnet, to an optimiser step; auto for as few as memory allows. "
        "mixup, CutMix, erasing and stochastic depth draw anew in each",
    )
    optimizer: OptimizerName = Field(
        "adamw",
        description="torch's AdamW; nadamw, lamb and lion of timm; muon for the matrices of blocks, each step on the "
        "slice that its subnet uses (muon_whole: on the whole matrix), and AdamW for the rest",
    )
    learning_rate: float = Field(gt=0, description="of the optimizer at its peak, whatever the batch size")
    min_learning_rate: float = Field(0.0, ge=0, description="at which the cosine ends")
    warmup_learning_rate: float = Field(1e-6, ge=0, description="from which it rises at first, linearly")
    warmup_epochs: float = Field(0.0, ge=0, description="of that rise; part of epochs")
    weight_decay: float = Field(
        0.05, ge=0, description="of the optimizer; norms, biases, tokens, positions and relative tables have none"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="probability spread over all classes")
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth of the deepest block; linear from 0")
    clip_grad: float | None = Field(None, gt=0, description="maximum norm of the gradient; null for none")
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="decay of the averaged weights, after timm's warm-up; null for none"
    )
    precision: Precision = Field(
        "auto", description="of the forward pass; auto for bfloat16 or float16 on a GPU, float32 on a CPU"
    )
    activation_checkpointing: bool = Field(
        False, description="keep only a block's input and recompute the rest: less memory, a slower step"
    )
    init_gain: float | None = Field(
        None, gt=0, description="new linear weights have deviation gain / sqrt(inputs); null for the official 0.02"
    )
    augmentation: Augmentation = Augmentation()
    distillation: Distillation | None = Field(None, description="learn from a teacher too; null for none")

    @field_validator("accumulation")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("expected 1 or more, or auto")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs:g} leave nothing of epochs {self.epochs:g}")
        if isinstance(self.accumulation, int) and self.batch_size % self.accumulation:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulation {self.accumulation}")
        if self.augmentation.mixes and self.forward_images % 2:
            raise ValueError(f"mixup and CutMix work on pairs: {self.forward_images} images in a forward pass are odd")
        return self

    @property
    def forward_images(self) -> int:
        """Images of a forward pass; those of the whole step if accumulation is "auto"."""
        return self.batch_size // (self.accumulation if isinstance(self.accumulation, int) else 1)
