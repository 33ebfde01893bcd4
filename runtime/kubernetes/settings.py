"""The settings of a TrainJob, passed as JSON in `AUTOFORMER_JOB`, and the parts shared with a cluster's settings.

`pipeline.cluster.settings` sets the variable for each task with more than one machine; the task's pod then launches a
TrainJob instead of the step. It contains names of secrets, but no secrets.
"""

import os
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from autoformer.errors import validated
from autoformer.files import canonical_json
from autoformer.frozen import Frozen
from autoformer.reading import parse_json_text

VARIABLE = "AUTOFORMER_JOB"
RESERVED = "PET_"  # Trainer sets these for torchrun, and refuses a job that does


def _absolute(path: str) -> str:
    pure = PurePosixPath(path)
    if not re.fullmatch(r"/+[^/:\x00-\x1f][^:\x00-\x1f]*", path) or ".." in pure.parts or not pure.parts[1:]:
        raise ValueError("expected an absolute path below /, without a colon")  # as Kubernetes has it
    return str(PurePosixPath("/", *pure.parts[1:]))


def _not_reserved(name: str) -> str:
    if name.startswith(RESERVED):
        raise ValueError(f"names that begin with {RESERVED} are Trainer's own")
    return name


def as_text(value: Any) -> Any:
    """A YAML number as text, for an environment variable."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
Namespace = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-+[a-z0-9]+)*$", max_length=63)]
Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|[MGTPE]i?)?$")]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$"), AfterValidator(_not_reserved)]
Text = Annotated[str, BeforeValidator(as_text)]
Path = Annotated[str, AfterValidator(_absolute)]
Label = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")]
LabelKey = Annotated[
    str, StringConstraints(pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$")
]
GpuType = Annotated[str, Field(pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$", description="the resource that a GPU is")]


class Volume(Frozen):
    claim: Name = Field(description="a PersistentVolumeClaim; of access mode ReadWriteMany where several pods write")
    mount: Path = Field(description="its path in the pods")
    read_only: bool = Field(False, description="read-only in the pods of jobs; KFP mounts all claims writable")


class Toleration(Frozen):
    key: str | None = Field(None, description="key of the taint; null with operator Exists for any taint")
    operator: Literal["Exists", "Equal"] = Field("Equal", description="Equal compares the value, Exists does not")
    value: str | None = Field(None, description="value of the taint, for operator Equal")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(None, description="null for any")
    toleration_seconds: int | None = Field(
        None, ge=0, description="time that a pod stays after NoExecute; null for ever"
    )

    def manifest(self) -> dict[str, Any]:
        """The toleration as Kubernetes expects it."""
        values = self.model_dump(exclude_none=True)
        seconds = values.pop("toleration_seconds", None)
        return values if seconds is None else values | {"tolerationSeconds": seconds}


class Placement(Frozen):
    """The nodes that a pod may run on."""

    node_selector: dict[LabelKey, Label] = Field({}, description="labels that a node must have")
    tolerations: tuple[Toleration, ...] = Field((), description="taints that a node may have")


class EveryPod(Frozen):
    """The settings of all pods of a run, of tasks and of jobs."""

    service_account: Name | None = Field(None, description="service account of the pods; null for KFP's own")
    runtime: Name = Field("autoformer-training", description="the TrainingRuntime of jobs of several machines")
    run_as_user: int | None = Field(
        None, gt=0, description="user id of the pods; null for the image's, which is not root"
    )
    run_as_group: int | None = Field(None, gt=0, description="group id of the pods, for volumes that belong to a group")
    labels: dict[LabelKey, Label] = Field({}, description="labels of every pod, besides our own")
    env: dict[Variable, Text] = Field(
        {}, description="variables of every pod, nothing secret: where S3, MLflow and the store of large files are"
    )
    volumes: tuple[Volume, ...] = Field((), description="claims, for every pod")


class SecretVariable(Frozen):
    secret: Name = Field(description="name of the secret")
    key: str = Field(min_length=1, description="key in the secret")
    env: Variable = Field(description="variable that gets its value")
    optional: bool = Field(False, description="start pods even if the secret is missing")


class JobSettings(EveryPod, Placement):
    """The machines of one step."""

    nodes: int = Field(ge=1, description="machines")
    gpus: int = Field(ge=0, description="GPUs of each machine, one process each; 0 for one process on its CPUs")
    image: str = Field(min_length=1, description="image of the steps, by digest")
    deadline_seconds: int = Field(86_400, gt=0, lt=2**31, description="time limit of the job")
    cpu: Quantity | None = Field(None, description="requested cores of each machine")
    memory: Quantity | None = Field(None, description="memory of each machine, request and limit")
    gpu_type: GpuType = "nvidia.com/gpu"
    secret_env: tuple[SecretVariable, ...] = Field((), description="variables that come from secrets")
    shm: Quantity = Field("16Gi", description="size of /dev/shm on each machine, part of its memory")
    pull_secrets: tuple[Name, ...] = Field((), description="secrets with which nodes fetch the image")
    shared: Path | None = Field(
        None, description="folder on a volume that all see; null for the first volume that is not read-only"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        mounts = [volume.mount for volume in self.volumes]
        twice = {mount for mount in mounts if mounts.count(mount) > 1}
        if twice:
            raise ValueError(f"two volumes are mounted at {min(twice)}")
        both = {secret.env for secret in self.secret_env} & set(self.env)
        if both:
            raise ValueError(f"the variable {min(both)} is given by env and by secret_env")
        return self

    @property
    def processes(self) -> int:
        """Processes on each machine."""
        return max(1, self.gpus)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text of `to_json`. Raises `AutoFormerError` naming the key."""
        return validated(cls, parse_json_text(text, VARIABLE), VARIABLE)

    def to_json(self) -> str:
        """The settings as one line of canonical JSON, without defaults."""
        return canonical_json(self.model_dump(mode="json", exclude_defaults=True))


def job_settings(environment: Mapping[str, str] = os.environ) -> JobSettings | None:
    """The settings of this task's job; None if the step runs in the task's own pod."""
    text = environment.get(VARIABLE)
    return JobSettings.parse(text) if text else None
