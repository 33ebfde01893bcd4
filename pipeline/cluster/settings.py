"""The settings of a cluster: one validated file of `configs/cluster/` with images, machines and volumes of each step.

No setting changes a result. No setting holds a secret: it names one, and Kubernetes passes its value to the pods.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from autoformer.errors import validated
from autoformer.frozen import Frozen
from autoformer.named import named_file
from autoformer.reading import read_yaml
from pipeline.cluster.plain_secrets import refuse_secrets, texts
from pipeline.cluster.quantities import Bytes, Cores, Image, in_bytes
from runtime.common.config import STEPS
from runtime.common.overrides import apply
from runtime.kubernetes.job import SHARED_STEPS
from runtime.kubernetes.settings import (
    VARIABLE,
    EveryPod,
    GpuType,
    JobSettings,
    Name,
    Namespace,
    Placement,
    SecretVariable,
    Variable,
)
from runtime.kubernetes.settings import Path as Mount

ON_GPUS = (*SHARED_STEPS, "evaluate_subnet")
WORK, STORE = "AUTOFORMER_WORK", "AUTOFORMER_STORE"
POD = {  # variables that describe the pod to itself: name -> field of the pod
    "KFP_RUN_ID": "metadata.labels['pipeline/runid']",
    "KFP_POD_NAME": "metadata.name",
    "KFP_POD_UID": "metadata.uid",
    "KFP_NAMESPACE": "metadata.namespace",
}

_LONGEST_PAUSE = 86_400  # seconds between two attempts
# KFP names the volume of a claim after the claim; these names are taken by KFP, Argo and us.
_VOLUMES = ("shm", "scratch", "temporary", "kfp-launcher", "gcs-scratch", "s3-scratch", "minio-scratch",
            "dot-local-scratch", "dot-cache-scratch", "dot-config-scratch", "var-run-argo",
            "tmp-dir-argo", "ca-bundle")  # fmt: skip
_MOUNTS = ("/gcs", "/s3", "/minio", "/.local", "/.cache", "/.config", "/kfp-launcher", "/var/run/argo")
_OF_THE_IMAGE = ("/app", "/opt/venv", "/bin", "/dev", "/etc", "/lib", "/proc", "/sys", "/usr", "/var/run/secrets")
# Variables whose wrong form a step would notice late, or never: MLflow takes `mlflow` for a folder of the pod.
_ADDRESSES = (
    (STORE, r"s3://[^/]", "s3://autoformer/store"),
    ("AWS_ENDPOINT_URL", r"https?://[^/]", "http://seaweedfs.kubeflow.svc.cluster.local:8333"),
    ("AWS_ENDPOINT_URL_S3", r"https?://[^/]", "http://seaweedfs.kubeflow.svc.cluster.local:8333"),
    ("MLFLOW_TRACKING_URI", r"\w+://|databricks", "http://mlflow.kubeflow.svc.cluster.local:5000"),
)
_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
_EXAMPLE = re.compile(r"(^|/)example-|\.example\.|0{64}")


class ImageSettings(Frozen):
    training: Image = Field(description="image of the steps, by digest: it is in the cache key, and a tag can move")
    launcher: Image = Field(description="light image of `resolve_config` and of pods that launch a TrainJob")
    allow_tags: bool = Field(
        False, description="accept tags, on a development cluster: a rebuilt image may get an old one's cached results"
    )
    pull_policy: Literal["IfNotPresent", "Always", "Never"] = Field(
        "IfNotPresent", description="when a node fetches an image"
    )
    pull_secrets: tuple[Name, ...] = Field((), description="secrets with which nodes fetch them")


class Retries(Frozen):
    count: int = Field(0, ge=0, le=20, description="number of restarts of a failed task; a step resumes where it was")
    backoff_seconds: int = Field(60, ge=0, description="pause before the first restart")
    backoff_factor: int = Field(2, ge=1, le=10, strict=True, description="factor from one pause to the next; integer")

    @model_validator(mode="after")
    def _check_pauses(self) -> Self:
        longest = self.backoff_seconds * self.backoff_factor ** max(0, self.count - 1)
        if longest > _LONGEST_PAUSE:
            raise ValueError(f"the last pause would be {longest} seconds; the limit is {_LONGEST_PAUSE}")
        return self


class Pod(Placement):
    cpu: Cores = Field(description="requested cores; a pod may use more")
    memory: Bytes = Field(description="request and limit")
    deadline_seconds: int | None = Field(
        None,
        gt=0,
        le=10**8,
        description="time limit of each attempt of the pod, or of the job of several machines",
    )
    retries: Retries = Retries()


class Step(Pod):
    gpus: int = Field(0, ge=0, le=64, description="GPUs of each machine")
    gpu_type: GpuType = "nvidia.com/gpu"
    shm: Bytes | None = Field(None, description="size of /dev/shm, part of the memory; workers pass batches through it")
    nodes: int = Field(1, ge=1, le=1024, description="machines; more than one run as a TrainJob")


class Steps(Frozen):
    prepare_data: Step = Field(description="reads every image once")
    train_supernet: Step = Field(description="the long one")
    search_subnet: Step = Field(description="scores candidates")
    retrain_subnet: Step = Field(description="as the supernet's, for one subnet")
    evaluate_subnet: Step = Field(description="once over the test images")
    register_model: Step = Field(description="measures latency on its cores")


class Scratch(Frozen):
    """The writable folder of each pod: the image's own file system may be read-only."""

    mount: Mount = Field("/scratch", description="an empty folder of each pod; work in progress lies in its `work`")
    size: Bytes = Field("50Gi", description="size limit of the folder, and of /tmp; a pod that writes more is ended")


class Secret(Frozen):
    secret: Name = Field(description="name of the secret, in the namespace")
    keys: dict[str, Variable] = Field(min_length=1, description="key in the secret -> variable that gets its value")
    optional: bool = Field(False, description="start pods even if the secret is missing")


class Cluster(EveryPod):
    """A cluster that the pipeline runs on."""

    namespace: Namespace = Field(description="namespace of the runs")
    deadline_seconds: int | None = Field(None, gt=0, le=10**8, description="time limit of a whole run; null for none")
    keep_seconds: int | None = Field(
        None,
        gt=0,
        le=86_400,
        description="time until the pods of a finished run are deleted, at most a day; null for KFP's default, an hour",
    )
    secrets: tuple[Secret, ...] = Field((), description="secrets whose values every pod gets as variables")
    scratch: Scratch = Scratch()
    images: ImageSettings
    launcher: Pod = Pod(cpu="500m", memory="1Gi", retries=Retries(count=1, backoff_seconds=10))
    steps: Steps

    @model_validator(mode="after")
    def _check_images(self) -> Self:
        for name in ("training", "launcher"):
            image = getattr(self.images, name)
            if not self.images.allow_tags and not _DIGEST.search(image):
                raise ValueError(
                    f"images.{name} = '{image}' has no digest; name it repository@sha256:…, "
                    "or set images.allow_tags on a cluster of development"
                )
        return self

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        for name in STEPS:
            step, key = self.step(name), f"steps.{name}"
            if step.gpus and name not in ON_GPUS:
                raise ValueError(f"{key}.gpus = {step.gpus}: this step uses no GPU; leave the key out")
            if step.nodes > 1 and name not in SHARED_STEPS:
                raise ValueError(
                    f"{key}.nodes = {step.nodes}: one machine does this step; several share {', '.join(SHARED_STEPS)}"
                )
            if step.nodes > 1 and STORE not in self.env and all(volume.read_only for volume in self.volumes):
                raise ValueError(
                    f"{key}.nodes = {step.nodes}: machines of one job need a place that all of them see; "
                    f"set env.{STORE}, or give a volume that all may write to"
                )
            if step.shm and in_bytes(step.shm) >= in_bytes(step.memory):
                raise ValueError(f"{key}.shm = {step.shm} leaves nothing of memory = {step.memory}")
        return self

    @model_validator(mode="after")
    def _check_mounts(self) -> Self:
        for mount in (self.scratch.mount, *(volume.mount for volume in self.volumes)):
            hidden = [each for each in _OF_THE_IMAGE if Path(each).is_relative_to(mount)]
            if hidden:
                raise ValueError(f"the mount {mount} would hide {hidden[0]}, which pods need")
        taken = {"/dev/shm": "shared memory", "/tmp": "temporary files", self.scratch.mount: "scratch"}
        for volume in self.volumes:
            if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", volume.claim) or volume.claim in _VOLUMES:
                raise ValueError(
                    f"volumes: the claim '{volume.claim}' cannot be mounted by KFP, which names a volume after it: "
                    f"at most 63 characters of a-z, 0-9 and -, and none of {', '.join(_VOLUMES)}"
                )
            if volume.mount in _MOUNTS:
                raise ValueError(f"volumes: '{volume.claim}' is mounted at {volume.mount}, where KFP has its own files")
            if volume.mount in taken:
                raise ValueError(
                    f"volumes: '{volume.claim}' is mounted at {volume.mount}, where {taken[volume.mount]} is"
                )
            taken[volume.mount] = f"'{volume.claim}'"
        return self

    @model_validator(mode="after")
    def _check_variables(self) -> Self:
        names = [*self.env, *(variable for secret in self.secrets for variable in secret.keys.values())]
        for name in names:
            if name in (VARIABLE, *POD):
                raise ValueError(f"the variable {name} is set for each pod; leave it out")
            if names.count(name) > 1:
                raise ValueError(f"the variable {name} is given more than once, in env or by secrets")
        for name, form, example in _ADDRESSES:
            if not re.match(form, value := self.env.get(name) or example):
                raise ValueError(f"env.{name} = '{value}': expected an address, as {example}")
        return self

    def step(self, name: str) -> Step:
        step: Step = getattr(self.steps, name)
        return step

    @property
    def environment(self) -> dict[str, str]:
        """The plain variables of a pod. Staged data are in its own scratch folder, even with a shared work folder."""
        scratch = self.scratch
        staging = {
            "AUTOFORMER_STAGING": f"{scratch.mount}/staged",
            "AUTOFORMER_STAGING_GB": str(in_bytes(scratch.size) // 2 // 10**9),  # the other half: work folder
        }
        waiting = {"OMP_WAIT_POLICY": "PASSIVE"}  # pods share cores: a thread that waits must not spin
        return {WORK: f"{scratch.mount}/work"} | waiting | staging | self._without_plugin() | self.env

    def _without_plugin(self) -> dict[str, str]:
        """Empty run and experiment ids if these settings name an MLflow server: KFP's MLflow plugin sets its own."""
        ours = {*self.env, *(variable for secret in self.secrets for variable in secret.keys.values())}
        return {"MLFLOW_RUN_ID": "", "MLFLOW_EXPERIMENT_ID": ""} if "MLFLOW_TRACKING_URI" in ours else {}

    def job(self, name: str) -> JobSettings | None:
        """The settings of a step's TrainJob; None if the step runs in one pod."""
        step = self.step(name)
        if step.nodes == 1:
            return None
        return JobSettings(
            **self.model_dump(include=EveryPod.model_fields.keys() - {"env"}),
            **step.model_dump(include=set(JobSettings.model_fields), exclude_none=True),
            image=self.images.training,
            env={name: self.environment[name] for name in ("AUTOFORMER_STAGING_GB", "OMP_WAIT_POLICY")} | self.env,
            secret_env=tuple(
                SecretVariable(secret=secret.secret, key=key, env=variable, optional=secret.optional)
                for secret in self.secrets
                for key, variable in secret.keys.items()
            ),
            pull_secrets=self.images.pull_secrets,
        )

    def placeholders(self) -> list[str]:
        """The keys that still have the value of an example."""
        return [key for key, value in texts(self.model_dump(mode="json")) if _EXAMPLE.search(value)]


def load_cluster(source: str, overrides: Sequence[str] = ()) -> Cluster:
    """Read the settings of a cluster.

    Args:
        source: the name of a file of configs/cluster/, or the path of one.
        overrides: `key=value`, applied in order.

    Raises:
        AutoFormerError: one line with the file and the key, without values that may be secret.
    """
    path = cluster_path(source)
    data = read_yaml(path)
    if isinstance(data, dict):
        apply(data, overrides)
        refuse_secrets(data, str(path))
    return validated(Cluster, data, str(path))


def cluster_path(source: str) -> Path:
    """The path of a file of configs/cluster/ by its name, or `source` itself if it is a path."""
    return named_file("cluster", source, "no cluster '{}' in configs/cluster; {}")
