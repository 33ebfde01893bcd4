"""The sections of a configuration, one for each step, and their keys."""

import re
import sys
from functools import cache
from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from autoformer.frozen import Frozen, sha256_of
from autoformer.images.pixel_rule import PixelRule
from autoformer.limits import Limits
from autoformer.racing import Racing
from autoformer.recipe import Precision, Recipe
from autoformer.sampling import TEACHER_WEIGHT, Sampling, SubnetSampler, make_sampler
from autoformer.search import EvolutionSettings
from autoformer.space import SearchSpace
from runtime.common.budgets import check_budgets

LONGEST_MODEL_NAME = 250


class PrepareData(Frozen):
    search_images: int | None = Field(
        None, gt=0, description="images held out to score candidates, equally many of each class; null for a percentage"
    )
    search_percent: float = Field(
        15.0, gt=0, lt=50, description="images of each class held out to score candidates, if your images have no val"
    )
    test_percent: float = Field(
        15.0, gt=0, lt=50, description="images of each class held out for the final test, if your images have no test"
    )
    max_unreadable_percent: float = Field(
        5.0, ge=0, le=100, description="maximum share of unreadable images; above it the run does not start"
    )
    background: int = Field(
        128, ge=0, le=255, description="grey level behind transparent pixels of images: 0 black, 255 white"
    )
    white_level: float | None = Field(
        None,
        gt=0,
        description="white of images with more than 8 bits. null: for your own images the smallest of 255, 1023, 4095, "
        "16383 and 65535 that no 16-bit image exceeds, for other data sets 65535; images of 32 bits are refused",
    )

    @property
    def pixel_rule(self) -> PixelRule:
        return PixelRule(background=self.background, white_level=self.white_level)


class TrainingSection(Recipe):
    checkpoint_steps: int = Field(500, gt=0, description="optimiser steps between two checkpoints")
    log_steps: int = Field(50, gt=0, description="optimiser steps between two rows of the history")
    score_steps: int = Field(500, gt=0, description="optimiser steps between two evaluations on the search split")
    score_images: int = Field(2000, gt=0, description="search images per evaluation")
    max_rollbacks: int = Field(
        3, ge=0, description="maximum number of returns to the last checkpoint after NaN or infinity"
    )
    rollback_factor: float = Field(0.5, gt=0, lt=1, description="factor of the learning rates after each return")

    @model_validator(mode="after")
    def _whole_rows(self) -> Self:
        for key in ("checkpoint_steps", "score_steps"):
            if getattr(self, key) % self.log_steps:
                raise ValueError(f"{key} {getattr(self, key)} is not a multiple of log_steps {self.log_steps}")
        return self

    def recipe(self) -> Recipe:
        """The keys that decide the trained weights."""
        return Recipe.model_validate(self.model_dump(include=set(Recipe.model_fields)))


@cache
def _warn_of_old_name(line: str) -> None:
    """Print `line` once per process. The next version will refuse the old name."""
    print(line, file=sys.stderr)


class Adopted(Frozen):
    """An existing supernet, in the layout of the official code or of this one."""

    checkpoint: str = Field(
        min_length=1, description="a .pth or .safetensors file as the steps see it, or s3://bucket/file"
    )
    sha256: str | None = sha256_of("the checkpoint")


class TrainSupernet(TrainingSection):
    adopt: Adopted | None = Field(
        None, description="use this supernet of the same space instead of training one; null to train"
    )
    sampling: Sampling = Field(
        "uniform",
        description="subnets of a step. uniform: one, every choice uniform; sandwich: the largest, which teaches the "
        "smallest and some random ones; uniform_params: one, uniform in its number of parameters",
    )
    sandwich_random: int = Field(
        2, ge=0, description="random subnets of a sandwich; each costs as much as one uniform step"
    )
    sandwich_teacher_weight: float = Field(
        TEACHER_WEIGHT,
        gt=0,
        le=1,
        description="weight of the largest subnet's outputs in the loss of the other subnets of a sandwich; the labels "
        "have the rest; 1 as in BigNAS, for long trainings",
    )

    @field_validator("sampling", mode="before")
    @classmethod
    def _renamed(cls, value: Any) -> Any:
        if value == "fair":
            _warn_of_old_name("train_supernet.sampling = fair is now called uniform_params; change your configuration")
            return "uniform_params"
        return value

    def sampler(self, space: SearchSpace, seed: int) -> SubnetSampler:
        """The function from a step to its subnets."""
        return make_sampler(self.sampling, space, seed, self.sandwich_random, self.sandwich_teacher_weight)


class MeasuredLatency(Frozen):
    """A latency table, made by `make latency` on the target device."""

    table: str = Field(min_length=1, description="a JSON file as the steps see it, or s3://bucket/file")
    sha256: str | None = sha256_of("the table")


class EarlierSearch(Frozen):
    """An earlier search of the same supernet and search split, or the output folder of `make score`."""

    search: str = Field(
        min_length=1, description="a folder with candidates.csv, as the steps see it, or s3://bucket/folder"
    )
    sha256: str | None = sha256_of("its candidates.csv")

    @property
    def table(self) -> str:
        return f"{self.search.rstrip('/')}/candidates.csv"


class SearchSubnet(EvolutionSettings):
    """Evolution (paper section 3.4), or NSGA-II. It scores at most population x (1 + generations) candidates."""

    random_baseline: bool = Field(True, description="score as many random candidates within the limits, for comparison")
    weights: Literal["ema", "raw"] = Field("ema", description="the supernet weights that candidates inherit")
    images: int | None = Field(None, gt=0, description="search images that score a candidate; null for all")
    finalists: int = Field(
        10, gt=0, description="best candidates of both searches, scored on all search images before the choice"
    )
    batch_size: int = Field(500, gt=0, description="images in a forward pass; changes scores by rounding only")
    precision: Precision = "auto"
    racing: Racing | None = Field(
        Racing(),
        description="stop clearly worse candidates early; null scores each on all search images, as method front does",
    )
    limits: Limits = Limits()
    latency: MeasuredLatency | None = Field(
        None, description="a table that predicts the latency of each candidate; null for none"
    )
    warm_start: EarlierSearch | None = Field(
        None, description="an earlier search whose scores are reused; its best candidates enter generation 0"
    )
    budgets: tuple[float, ...] | None = Field(
        None,
        description="maximum parameters in millions, ascending, such as [0.1, 0.25, 0.5]: a subnet is searched, "
        "retrained, tested and registered for each; null for one subnet within the limits",
    )

    @field_validator("budgets", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        if value is not None and not (isinstance(value, list | tuple) and value):
            raise ValueError("expected a list such as [0.1, 0.25, 0.5], or null")
        return value

    @field_validator("budgets")
    @classmethod
    def _budgets_agree(cls, value: tuple[float, ...] | None, info: ValidationInfo) -> tuple[float, ...] | None:
        if value is not None and "limits" in info.data:
            check_budgets(value, info.data["limits"])
        return value

    @model_validator(mode="after")
    def _measured(self) -> Self:
        wanted = "limits on latency need" if self.limits.on_latency else "the objective latency_ms needs"
        if self.latency is None and (self.limits.on_latency or "latency_ms" in self.front_objectives):
            raise ValueError(f"{wanted} a table; make one with `make latency` and set search_subnet.latency.table")
        return self

    @model_validator(mode="before")
    @classmethod
    def _front_without_race(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("method") != "front":
            return data
        if data.get("racing") is not None:
            raise ValueError(
                "racing is for method evolution: it stops candidates that are not among the best, which may be on the "
                "front; set racing=null, or method=evolution"
            )
        return data | {"racing": None}

    @property
    def most_candidates(self) -> int:
        """Candidates to score for each budget, including those of the random baseline."""
        return self.population * (1 + self.generations) * (2 if self.random_baseline else 1)

    def within(self, budget: float) -> Self:
        """The section of a search for this budget alone."""
        limits = self.limits.model_copy(update={"max_params_m": budget})
        return self.model_copy(update={"limits": limits, "budgets": None})


class RetrainSubnet(TrainingSection):
    mode: Literal["best", "scratch", "finetune", "inherited"] = Field(
        "best",
        description="finetune: train from the supernet's weights; inherited: keep these; scratch: train from random "
        "weights; best: fine-tune, and keep the weights that are most accurate on the search split: inherited, "
        "fine-tuned, or those of the reference from scratch",
    )
    split: Literal["train", "train_full"] = Field(
        "train",
        description="images to train on; train_full adds those of the search split, once the choice is made",
    )
    compile: bool = Field(
        False, description="use torch.compile; needs a C++ compiler, and minutes before the first step"
    )
    scratch_reference: bool = Field(
        False,
        description="also train the chosen subnet from random weights: with the supernet's recipe, for the epochs of "
        "supernet and retraining together; for comparison, and in mode best for the choice",
    )

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        if self.mode == "best" and self.split == "train_full":
            raise ValueError(
                "mode best compares on the search split, which split train_full trains on; set split=train or another "
                "mode"
            )
        return self


class EvaluateSubnet(Frozen):
    batch_size: int = Field(500, gt=0, description="images in a forward pass; changes figures by rounding only")
    mistakes: int = Field(24, ge=0, description="wrongly classified images shown in the report")
    decoded_mb: int = Field(
        2000, ge=0, description="memory for decoded test images; a larger split is decoded during the evaluation"
    )


class RegisterModel(Frozen):
    """Names are checked by MLflow's rules here; MLflow itself would check them only after the training."""

    model_name: str = Field(
        min_length=1,
        max_length=LONGEST_MODEL_NAME,
        description="name in MLflow's registry; with search_subnet.budgets, -0.1m and so on is appended",
    )
    alias: str = Field(
        "champion",
        min_length=1,
        max_length=255,
        description="alias of the version to use; moves to each new version",
    )
    min_top1_percent: float = Field(ge=0, le=100, description="minimum test accuracy of a registered model")

    @field_validator("model_name")
    @classmethod
    def _name_of_a_model(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("a model needs a name")
        if value != value.strip() or not value.isprintable() or set(value) & set("/:.%\"'?"):
            raise ValueError(
                "a model's name in MLflow holds none of / : . % \" ' ?, no line break, and no blank at its ends"
            )
        return value

    @field_validator("alias")
    @classmethod
    def _name_of_an_alias(cls, value: str) -> str:
        if not re.fullmatch(r"[\w\-]+", value):
            raise ValueError("an alias in MLflow holds letters, digits, - and _ alone")
        if value.lower() == "latest" or re.fullmatch(r"[vV]\d+", value):
            raise ValueError("MLflow reserves latest and v1, v2, … ; choose another alias, such as champion")
        return value
