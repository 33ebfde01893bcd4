"""The configuration of a run: a preset file and overrides become one frozen `Config`.

`params.yaml` is the `demo` preset; every other preset is a complete file of the same form in `configs/presets/`. A
step reads the shared keys and its own section, under every runner.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import Field, field_validator, model_validator

from autoformer.errors import AutoFormerError, validated
from autoformer.files import canonical_json, hash_file, hash_value
from autoformer.frozen import FolderName, Frozen, Name
from autoformer.named import CONFIGS, load_space, named_file
from autoformer.reading import parse_json_text, read_yaml
from autoformer.space import SearchSpace
from runtime.common.budgets import check_labels
from runtime.common.overrides import apply
from runtime.common.sections import (
    LONGEST_MODEL_NAME,
    EvaluateSubnet,
    PrepareData,
    RegisterModel,
    RetrainSubnet,
    SearchSubnet,
    TrainSupernet,
)

STEPS = ("prepare_data", "train_supernet", "search_subnet", "retrain_subnet", "evaluate_subnet", "register_model")
ROOT = CONFIGS.parent
FILE_KEYS = (
    ("train_supernet", "adopt", "checkpoint"), ("train_supernet", "distillation", "checkpoint"),
    ("retrain_subnet", "distillation", "checkpoint"), ("search_subnet", "latency", "table"),
    ("search_subnet", "warm_start", "search"),
)  # step, section, and its key that names a file or folder  # fmt: skip


def checkout() -> Path:
    """The folder for lasting files: the checkout, also for a copy in which `dvc exp run --temp` or `--queue` works.

    DVC deletes that copy when the experiment ends.
    """
    for folder in ROOT.parents:
        if folder.name == "exps" and folder.parent.name == "tmp" and folder.parent.parent.name == ".dvc":
            return folder.parent.parent.parent
    return ROOT


def lasting(path: Path) -> Path:
    """A path; if it is relative and DVC works in a copy, then in the checkout instead."""
    return path if checkout() == ROOT else checkout() / path


Section = TypeVar("Section", PrepareData, TrainSupernet, SearchSubnet, RetrainSubnet, EvaluateSubnet, RegisterModel)
_STEP_OF: dict[type[Frozen], str] = dict(zip(Section.__constraints__, STEPS, strict=True))


class Config(Frozen):
    """The configuration of a whole run, or of one step: the shared keys and one section."""

    name: Name = Field(min_length=1, max_length=200, description="name of the run in MLflow")
    seed: int = Field(ge=0, lt=2**63, description="seed of all random draws")
    threads: int | None = Field(None, gt=0, le=4096, description="CPU threads of torch; null for one per core")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="auto, cpu, cuda, cuda:N or mps; auto uses a GPU if there is one",
    )
    dataset: FolderName = Field(min_length=1, description="a folder of data/")
    space: SearchSpace = Field(description="the search space; its images must match the data set")
    prepare_data: PrepareData | None = None
    train_supernet: TrainSupernet | None = None
    search_subnet: SearchSubnet | None = None
    retrain_subnet: RetrainSubnet | None = None
    evaluate_subnet: EvaluateSubnet | None = None
    register_model: RegisterModel | None = None

    @field_validator("space", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return load_space(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _names_of_models(self) -> Self:
        if self.search_subnet is not None and self.search_subnet.budgets and self.register_model is not None:
            check_labels(self.search_subnet.budgets, self.register_model.model_name, LONGEST_MODEL_NAME)
        return self

    def section(self, kind: type[Section]) -> Section:
        """The section of one step. Raises `AutoFormerError` if it is missing."""
        step = _STEP_OF[kind]
        section: Section | None = getattr(self, step)
        if section is None:
            raise AutoFormerError(f"the section '{step}' is missing")
        return section

    def for_step(self, step: str) -> dict[str, Any]:
        """The shared keys and the section of one step as plain data; they decide the step's result."""
        keys = {"name", "seed", "threads", "device", "dataset", "space", step}
        return self.model_dump(mode="json", include=keys)

    def step_json(self, step: str) -> str:
        """`for_step` as JSON, for the `--config` of a step."""
        return canonical_json(self.for_step(step))

    def hash(self) -> str:
        return hash_value(self.model_dump(mode="json"))


def load_config(source: str, overrides: Sequence[str] = (), steps: Sequence[str] = STEPS) -> Config:
    """Resolve a preset and overrides to a configuration.

    Args:
        source: a preset's name, the path of a YAML file, or a mapping as JSON text.
        overrides: `section.key=value`, the value as YAML, applied in order.
        steps: the sections that must exist.

    Raises:
        AutoFormerError: one line naming the file or key and what to do.
    """
    data, where = _read(source)
    apply(data, overrides)
    _name_files(data)
    config = validated(Config, data, where)
    for step in steps:
        if getattr(config, step) is None:
            raise AutoFormerError(f"{where}: the section '{step}' is missing")
    return config


def _name_files(data: dict[str, Any]) -> None:
    """Add hashes beside the paths of checkpoints and tables, so a changed file is another configuration."""
    for step, key, path in FILE_KEYS:
        section = data.get(step)
        named = section.get(key) if isinstance(section, dict) else None
        if not isinstance(section, dict) or not isinstance(named, dict):
            continue
        if named.get("sha256") or not isinstance(named.get(path), str):
            continue
        file = Path(named[path])
        where = f"{step}.{key}.{path} = {named[path]}"
        if key != "distillation" and named[path].startswith("s3://"):
            raise AutoFormerError(f"{where}: its sha256 is missing; set {step}.{key}.sha256")
        if key == "warm_start":
            file /= "candidates.csv"
        if not file.is_file():
            raise AutoFormerError(f"{where}: no such file" + (f" as {file}" if key == "warm_start" else ""))
        data[step] = section | {key: named | {"sha256": hash_file(file)}}


def _read(source: str) -> tuple[dict[str, Any], str]:
    if source.lstrip().startswith("{"):
        return parse_json_text(source, "--config"), "--config"
    path = preset_path(source)
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise AutoFormerError(f"{path}: expected sections, found {type(data).__name__}")
    return data, str(path)


def preset_path(source: str) -> Path:
    """The file of a preset, or `source` itself if it is a path."""
    return named_file("presets", source, "no preset '{}' in configs/presets; {}")
