"""The `TrainJob` of a step: settings, step and arguments -> manifest. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from autoformer.files import hash_value
from runtime.kubernetes.settings import JobSettings, SecretVariable

STEPS = ("train_supernet", "search_subnet", "retrain_subnet")  # those that several ranks do together
GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
MANAGER = "autoformer/launcher"  # of our patch of the runtime; other managers, as Kueue, have theirs
CONTAINER, REPLICATED = "node", "node"  # Trainer's names
RUN, STEP, ATTEMPT = "autoformer/run", "autoformer/step", "autoformer/attempt"
POD_JOB, POD_INDEX = "jobset.sigs.k8s.io/jobset-name", "batch.kubernetes.io/job-completion-index"


class Launch(NamedTuple):
    """What is launched, by which pod.

    `run`: of KFP, or a word of the person who launches by hand. `pod`, `pod_uid`: the launching pod; empty by hand.
    `read`: a hash of what the step reads besides configuration and data.
    """

    step: str
    argv: Sequence[str]
    run: str = "by-hand"
    pod: str = ""
    pod_uid: str = ""
    read: str = ""

    def work(self, settings: JobSettings) -> str:
        """The same ten letters for the same work: run, step, image, and what the arguments say and name.

        Paths of inputs are left out, not what they hold: KFP gives a task that it tries again others.
        """
        said = dict(zip(self.argv[::2], self.argv[1::2], strict=False))
        decides = {name: said.get(name) for name in ("--config", "--data")}
        machines = [settings.image, settings.nodes, settings.gpus]
        return hash_value([self.run, self.step, *machines, decides, self.read])[:10]

    def name(self, settings: JobSettings, attempt: int) -> str:
        """A DNS label that begins with a letter, short enough for the names that pods make of it."""
        return f"{self.step.replace('_', '-')}-{self.work(settings)}-{attempt}"

    def labels(self, settings: JobSettings) -> dict[str, str]:
        """What all attempts at the same work carry."""
        return {RUN: label(self.run), STEP: self.step, "autoformer/work": self.work(settings)}


def label(text: str) -> str:
    """A text as the value of a label: what is not allowed there becomes a hash."""
    plain = text.replace("-", "").replace("_", "").replace(".", "")
    ends = text[:1].isalnum() and text[-1:].isalnum()
    return text if plain.isalnum() and plain.isascii() and ends and len(text) <= 63 else hash_value(text)[:16]


def manifest(
    launch: Launch,
    settings: JobSettings,
    attempt: int,
    place: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
) -> dict[str, Any]:
    """The job's manifest.

    Args:
        launch: what is launched.
        settings: on which machines.
        attempt: from 1; each has a name of its own.
        place: what all pods see; see `runtime.kubernetes.job_folder`.
        arguments: of the step, with paths of that place.
        environment: of the launching pod, what the step shall have of it too; those of the settings come first.
    """
    name = launch.name(settings, attempt)
    labels = {
        "app.kubernetes.io/name": "autoformer",
        "app.kubernetes.io/managed-by": "autoformer",
        **launch.labels(settings),
        ATTEMPT: str(attempt),
    }
    command = ["python", "-m", "runtime.steps.job_node", "--job", name, "--place", place, launch.step, *arguments]
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
            "runtimePatches": [{"manager": MANAGER, "trainingRuntimeSpec": _patch(settings, labels)}],
        },
    }


def owners(launch: Launch) -> list[dict[str, Any]]:
    """The launching pod owns the job: with the pod it goes. Without its blessing the pod may be deleted, too."""
    return [{"apiVersion": "v1", "kind": "Pod", "name": launch.pod, "uid": launch.pod_uid, "blockOwnerDeletion": False}]


def _resources(settings: JobSettings) -> dict[str, dict[str, str]]:
    gpus = {settings.gpu_type: str(settings.gpus)} if settings.gpus else {}
    memory = {"memory": settings.memory} if settings.memory else {}
    cpu = {"cpu": settings.cpu} if settings.cpu else {}
    parts = {"requests": cpu | memory | gpus, "limits": memory | gpus}
    return {name: part for name, part in parts.items() if part}


def _variables(settings: JobSettings, environment: Mapping[str, str]) -> list[dict[str, Any]]:
    secret = {one.env: {"secretKeyRef": _key(one)} for one in settings.secret_env}
    plain = {name: value for name, value in {**environment, **settings.env}.items() if name not in secret}
    return [
        *({"name": name, "value": value} for name, value in sorted(plain.items())),
        *({"name": name, "valueFrom": source} for name, source in sorted(secret.items())),
    ]


def _key(one: SecretVariable) -> dict[str, Any]:
    return {"name": one.secret, "key": one.key} | ({"optional": True} if one.optional else {})


def _patch(settings: JobSettings, labels: Mapping[str, str]) -> dict[str, Any]:
    """What the runtime leaves to the job: where its pods run, what they mount, how much of /dev/shm they have."""
    claims = list(dict.fromkeys((volume.claim, volume.read_only) for volume in settings.volumes))
    names = {claim: f"volume-{number}" for number, claim in enumerate(claims)}
    spec: dict[str, Any] = {
        "volumes": [
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": settings.shm}},
            *(
                {"name": name, "persistentVolumeClaim": {"claimName": claim, "readOnly": read_only}}
                for (claim, read_only), name in names.items()
            ),
        ]
    }
    if settings.volumes:
        mounts = [
            {
                "name": names[volume.claim, volume.read_only],
                "mountPath": volume.mount,
                "readOnly": volume.read_only,
            }
            for volume in settings.volumes
        ]
        spec["containers"] = [{"name": CONTAINER, "volumeMounts": mounts}]
    if settings.node_selector:
        spec["nodeSelector"] = dict(settings.node_selector)
    if settings.tolerations:
        spec["tolerations"] = [toleration.manifest() for toleration in settings.tolerations]
    if settings.service_account:
        spec["serviceAccountName"] = settings.service_account
    if settings.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in settings.pull_secrets]
    ids = {"runAsUser": settings.run_as_user, "runAsGroup": settings.run_as_group, "fsGroup": settings.run_as_group}
    if set(ids.values()) != {None}:
        spec["securityContext"] = {name: number for name, number in ids.items() if number is not None}
    pods = {"metadata": {"labels": {**settings.labels, **labels}}, "spec": spec}
    return {"template": {"spec": {"replicatedJobs": [{"name": REPLICATED, "template": {"spec": {"template": pods}}}]}}}
