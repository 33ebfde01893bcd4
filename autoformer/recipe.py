"""The training recipe, shared by the training loop and the configuration. Torch-free."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from autoformer.errors import quantity
from autoformer.frozen import Frozen, sha256_of

# Accepted by timm's rand_augment_transform, which ignores most unknown words.
_RAND_AUGMENT = r"rand(-(m\d+(\.\d+)?|n\d+|p\d+(\.\d+)?|mstd(\d+(\.\d+)?|inf)|mmax\d+|inc[01]))*"
Dtype = Literal["float32", "bfloat16", "float16"]
Precision = Annotated[
    Literal["auto", Dtype],
    Field(description="precision of the forward pass; auto: bfloat16 or float16 on a GPU, float32 on a CPU"),
]
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
    color_jitter: float = Field(0.0, ge=0, le=1, description="maximum change of brightness, contrast and saturation")
    erase_probability: float = Field(0.0, ge=0, le=1, description="share of images with an erased rectangle")
    erase_mode: Literal["const", "rand", "pixel"] = Field(
        "pixel", description="content of the rectangle: zero, one random colour, or random pixels"
    )
    mixup: float = Field(0.0, ge=0, description="alpha of mixup; 0 for none")
    cutmix: float = Field(0.0, ge=0, description="alpha of CutMix; 0 for none")
    mixup_probability: float = Field(1.0, ge=0, le=1, description="share of batches that are mixed")
    mixup_switch_probability: float = Field(
        0.5, ge=0, le=1, description="probability of CutMix instead of mixup if both are on"
    )
    fast: bool = Field(
        False,
        description="crop, flip and RandAugment with timm's statistics in less time, but not its exact pixels; "
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

    teacher: str = Field(min_length=1, description="name of a timm model")
    checkpoint: str = Field(
        min_length=1, description="the teacher's weights: safetensors, or a .pth file with tensors only"
    )
    sha256: str | None = sha256_of("the checkpoint")
    kind: Literal["hard", "soft"] = Field(
        "hard", description="learn the teacher's class (hard) or its probabilities (soft)"
    )
    weight: float = Field(0.5, gt=0, le=1, description="weight of the teacher's part of the loss")
    temperature: float = Field(1.0, gt=0, description="softmax temperature of teacher and student in soft distillation")
    mean: tuple[float, ...] | None = Field(None, description="pixel mean of the teacher's input; null for timm's")
    std: tuple[float, ...] | None = Field(None, description="pixel deviation of the teacher's input; null for timm's")

    @field_validator("std")
    @classmethod
    def _above_zero(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and min(value) <= 0:
            raise ValueError("expected values above 0")
        return value


class Recipe(Frozen):
    """The training recipe of a supernet or a subnet (paper section 4.1 for ImageNet)."""

    epochs: float = Field(gt=0, description="passes over the training images; a fraction is fine")
    batch_size: int = Field(gt=0, description="images per optimiser step, over all ranks")
    accumulation: int | Literal["auto"] = Field(
        "auto",
        description="micro-batches per optimiser step and rank, all of one subnet; auto for as few as memory allows. "
        "Each micro-batch has its own draws of mixup, CutMix, erasing and stochastic depth",
    )
    optimizer: OptimizerName = Field(
        "adamw",
        description="torch's AdamW; timm's nadamw, lamb and lion; muon: Muon for the matrices of blocks, AdamW for the "
        "rest; a step of muon changes the slice that its subnet uses, of muon_whole the whole matrix",
    )
    learning_rate: float = Field(gt=0, description="peak learning rate; not scaled by the batch size")
    min_learning_rate: float = Field(0.0, ge=0, description="learning rate at the end of the cosine")
    warmup_learning_rate: float = Field(1e-6, ge=0, description="learning rate at the start of the linear warm-up")
    warmup_epochs: float = Field(0.0, ge=0, description="length of the warm-up; included in epochs")
    weight_decay: float = Field(
        0.05, ge=0, description="decay of weights, but not of norms, biases, tokens, positions and relative tables"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="probability spread over all classes")
    drop_path: float = Field(
        0.0, ge=0, lt=1, description="stochastic depth rate of the last block; rises linearly from 0"
    )
    clip_grad: float | None = Field(None, gt=0, description="maximum norm of the gradient; null for none")
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="decay of the averaged weights, after timm's warm-up; null for none"
    )
    precision: Precision = "auto"
    activation_checkpointing: bool = Field(
        False, description="keep only each block's input and recompute the rest: less memory, slower steps"
    )
    init_gain: float | None = Field(
        None,
        gt=0,
        description="standard deviation of new linear weights times sqrt(inputs); null for the official 0.02",
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
            raise ValueError(
                f"mixup and CutMix work on pairs: {quantity(self.forward_images, 'image')} in a forward pass: an odd "
                "number"
            )
        return self

    @property
    def forward_images(self) -> int:
        """Images per forward pass; `batch_size` if accumulation is "auto"."""
        return self.batch_size // (self.accumulation if isinstance(self.accumulation, int) else 1)
