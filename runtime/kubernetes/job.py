"""The manifest of a step's `TrainJob`, a pure function of settings, step and arguments."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from autoformer.files import hash_value
from runtime.kubernetes.settings import JobSettings

SHARED_STEPS = ("train_supernet", "search_subnet", "retrain_subnet")  # the steps that several machines can share
GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
MANAGER = "autoformer/launcher"  # of our runtime patch; other managers, such as Kueue, have their own
CONTAINER, REPLICATED = "node", "node"  # Trainer's names
RUN, STEP, ATTEMPT = "autoformer/run", "autoformer/step", "autoformer/attempt"
POD_JOB, POD_INDEX = "jobset.sigs.k8s.io/jobset-name", "batch.kubernetes.io/job-completion-index"


class Launch(NamedTuple):
    """A step to launch, and its launching pod."""

    step: str
    argv: Sequence[str]
    run: str = "by-hand"  # id of the KFP run, or any name
    pod: str = ""  # empty for a manual launch, like its uid
    pod_uid: str = ""
    inputs: str = ""  # hash of the step's inputs other than configuration and data

    def work(self, settings: JobSettings) -> str:
        """The first ten letters of a hash of run, step, image, machines, configuration, data and inputs.

        Paths of inputs are not included: KFP changes them when it retries a task.
        """
        values = dict(zip(self.argv[::2], self.argv[1::2], strict=False))
        arguments = {name: values.get(name) for name in ("--config", "--data")}
        machines = [settings.image, settings.nodes, settings.gpus]
        return hash_value([self.run, self.step, *machines, arguments, self.inputs])[:10]

    def name(self, settings: JobSettings, attempt: int) -> str:
        """The job's name: a DNS label that begins with a letter, short enough for the pod names."""
        return f"{self.step.replace('_', '-')}-{self.work(settings)}-{attempt}"

    def labels(self, settings: JobSettings) -> dict[str, str]:
        """The labels of all attempts at the same work."""
        return {RUN: label(self.run), STEP: self.step, "autoformer/work": self.work(settings)}


def label(text: str) -> str:
    """The value of a label for a text: the text itself, or its hash if Kubernetes does not allow it."""
    plain = text.replace("-", "").replace("_", "").replace(".", "")
    ends = text[:1].isalnum() and text[-1:].isalnum()
    return text if plain.isalnum() and plain.isascii() and ends and len(text) <= 63 else hash_value(text)[:16]


def manifest(
    launch: Launch,
    settings: JobSettings,
    attempt: int,
    folder: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
) -> dict[str, Any]:
    """The manifest of a TrainJob.

    Args:
        launch: the step, and the launching pod.
        settings: the machines.
        attempt: number from 1, part of the job's name.
        folder: the root of the job's `runtime.kubernetes.job_folder.JobFolder`.
        arguments: arguments of the step, with paths in that folder.
        environment: variables inherited from the launching pod; those of the settings override them.
    """
    name = launch.name(settings, attempt)
    labels = {
        "app.kubernetes.io/name": "autoformer",
        "app.kubernetes.io/managed-by": "autoformer",
        **launch.labels(settings),
        ATTEMPT: str(attempt),
    }
    command = ["python", "-m", "runtime.steps.job_node", "--job", name, "--place", folder, launch.step, *arguments]
    metadata: dict[str, Any] = {"name": name, "labels": labels}
    if launch.pod_uid:
        metadata["ownerReferences"] = owners(launch)
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": metadata,
        "spec": {
            "runtimeRef": {"apiGroup": GROUP, "kind": "TrainingRuntime", "name": settings.runtime},
            "activeDeadlineSeconds": settings.deadline_seconds,
            "trainer": {
                "image": settings.image,
                "command": command,
                "numNodes": settings.nodes,
                "numProcPerNode": settings.processes,
                "resourcesPerNode": _resources(settings),
                "env": _variables(settings, environment),
            },
            "runtimePatches": [{"manager": MANAGER, "trainingRuntimeSpec": _runtime_patch(settings, labels)}],
        },
    }


def owners(launch: Launch) -> list[dict[str, Any]]:
    """The owner reference with which a job is deleted together with its launching pod, without blocking that."""
    return [{"apiVersion": "v1", "kind": "Pod", "name": launch.pod, "uid": launch.pod_uid, "blockOwnerDeletion": False}]


def _resources(settings: JobSettings) -> dict[str, Any]:
    gpus = {settings.gpu_type: str(settings.gpus)} if settings.gpus else {}
    limits = _present({"memory": settings.memory}) | gpus
    return _present({"requests": _present({"cpu": settings.cpu}) | limits, "limits": limits})


def _variables(settings: JobSettings, environment: Mapping[str, str]) -> list[dict[str, Any]]:
    secret = {
        each.env: {"secretKeyRef": _present({"name": each.secret, "key": each.key, "optional": each.optional})}
        for each in settings.secret_env
    }
    plain = {name: value for name, value in {**environment, **settings.env}.items() if name not in secret}
    return [
        *({"name": name, "value": value} for name, value in sorted(plain.items())),
        *({"name": name, "valueFrom": source} for name, source in sorted(secret.items())),
    ]


def _runtime_patch(settings: JobSettings, labels: Mapping[str, str]) -> dict[str, Any]:
    """The job's patch of the runtime: nodes, volumes, identity, and the size of /dev/shm."""
    claims = list(dict.fromkeys((volume.claim, volume.read_only) for volume in settings.volumes))
    names = {claim: f"volume-{number}" for number, claim in enumerate(claims)}
    volumes = [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": settings.shm}},
        *(
            {"name": name, "persistentVolumeClaim": {"claimName": claim, "readOnly": read_only}}
            for (claim, read_only), name in names.items()
        ),
    ]
    mounts = [
        {"name": names[volume.claim, volume.read_only], "mountPath": volume.mount, "readOnly": volume.read_only}
        for volume in settings.volumes
    ]
    group = settings.run_as_group
    spec = {
        "volumes": volumes,
        "containers": [{"name": CONTAINER, "volumeMounts": mounts}] if mounts else None,
        "nodeSelector": dict(settings.node_selector),
        "tolerations": [toleration.manifest() for toleration in settings.tolerations],
        "serviceAccountName": settings.service_account,
        "imagePullSecrets": [{"name": name} for name in settings.pull_secrets],
        "securityContext": _present({"runAsUser": settings.run_as_user, "runAsGroup": group, "fsGroup": group}),
    }
    pods = {"metadata": {"labels": {**settings.labels, **labels}}, "spec": _present(spec)}
    return {"template": {"spec": {"replicatedJobs": [{"name": REPLICATED, "template": {"spec": {"template": pods}}}]}}}


def _present(values: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping without empty values."""
    return {name: value for name, value in values.items() if value}
