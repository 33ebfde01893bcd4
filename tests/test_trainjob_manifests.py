"""What is applied to a cluster for jobs on several machines, against the schemas that the API servers hold."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainer_schema import manifests, problems

from autoformer.errors import AutoFormerError
from runtime.common.config import ROOT
from runtime.kubernetes.job import Launch, manifest
from runtime.kubernetes.settings import JobSettings, job_settings

FOLDER = ROOT / "pipeline" / "manifests" / "training"
SHIPPED = {found["kind"]: found for found in manifests(FOLDER)}
IMAGE = "registry.example/autoformer-training@sha256:" + "0" * 64
PLAIN = {"nodes": 2, "gpus": 8, "image": IMAGE}
EVERYTHING: dict[str, Any] = PLAIN | {
    "nodes": 4, "runtime": "another", "deadline_seconds": 3600, "cpu": "16", "memory": "64Gi",
    "gpu_type": "amd.com/gpu",
    "node_selector": {"pool": "a100"}, "shm": "32Gi", "service_account": "trainer", "labels": {"team": "vision"},
    "tolerations": [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "spot", "value": "yes", "effect": "NoExecute", "toleration_seconds": 60},
    ],
    "volumes": [
        {"claim": "shared", "mount": "/shared"}, {"claim": "data", "mount": "/data", "read_only": True},
        {"claim": "shared", "mount": "/work"},
    ],
    "env": {"NCCL_DEBUG": "WARN", "MLFLOW_TRACKING_URI": "http://other:5000"},
    "secret_env": [
        {"secret": "s3", "key": "id", "env": "AWS_ACCESS_KEY_ID"},
        {"secret": "mlflow", "key": "user", "env": "MLFLOW_TRACKING_USERNAME", "optional": True},
    ],
    "pull_secrets": ["registry"], "run_as_user": 1000, "run_as_group": 2000,
}  # fmt: skip


def made(settings: dict[str, Any], **launch: Any) -> dict[str, Any]:
    launched = Launch("train_supernet", ["--config", "{}", "--out", "/kfp/out"], **launch)
    environment = {"MLFLOW_TRACKING_URI": "http://mlflow:5000", "MLFLOW_RUN_ID": "abc", "AWS_ACCESS_KEY_ID": "no"}
    words = ["--config", "{}", "--out", "/shared/jobs/x/outputs/out"]
    return manifest(launched, JobSettings.model_validate(settings), 1, "/shared/jobs/x", words, environment)


def test_what_is_shipped_suits_the_schemas() -> None:
    assert set(SHIPPED) == {"Kustomization", "Role", "RoleBinding", "TrainingRuntime"}
    for found in SHIPPED.values():
        assert problems(found) == [], found["kind"]
    listed = set(SHIPPED["Kustomization"]["resources"]) | {"kustomization.yaml"}
    assert listed == {file.name for file in FOLDER.iterdir()}


def test_the_schemas_tell_what_is_wrong() -> None:
    job = made(PLAIN)
    job["spec"]["trainer"]["numNode"] = 2
    job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["backoffLimit"] = 0
    assert sorted(problems(job)) == [
        "TrainJob.spec.runtimePatches[0].trainingRuntimeSpec.template.spec.backoffLimit: no such field",
        "TrainJob.spec.trainer.numNode: no such field",
    ]
    assert problems(SHIPPED["Role"] | {"rule": []}) != []
    job["spec"]["trainer"] = {"numNodes": "two"}
    assert "valid integer" in problems(job)[0]


def test_the_launcher_may_do_what_it_does_and_nothing_else() -> None:
    rules = {
        (group, resource): set(rule["verbs"])
        for rule in SHIPPED["Role"]["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    # Each was removed in turn on a Kubernetes 1.36, which then refused one kind of request of the launcher.
    assert rules == {
        ("trainer.kubeflow.org", "trainjobs"): {"create", "get", "list", "patch", "delete"},
        ("", "pods"): {"list"},
        ("", "events"): {"list"},
        ("", "pods/log"): {"get"},
    }
    assert SHIPPED["RoleBinding"]["roleRef"]["name"] == SHIPPED["Role"]["metadata"]["name"]
    assert [subject["name"] for subject in SHIPPED["RoleBinding"]["subjects"]] == ["pipeline-runner"]


def test_the_runtime_starts_all_machines_together_or_none() -> None:
    assert SHIPPED["TrainingRuntime"]["metadata"]["name"] == JobSettings.model_validate(PLAIN).runtime
    template = SHIPPED["TrainingRuntime"]["spec"]["template"]["spec"]
    (node,) = template["replicatedJobs"]
    job, pod = node["template"]["spec"], node["template"]["spec"]["template"]["spec"]
    assert (job["backoffLimit"], pod["restartPolicy"], template["failurePolicy"]["maxRestarts"]) == (0, "Never", 3)
    assert "ttlSecondsAfterFinished" not in template, "Trainer would make the JobSet of a failed job again"
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2]
    assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
    (container,) = pod["containers"]
    assert container["name"] == "node" and container["securityContext"]["readOnlyRootFilesystem"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume["emptyDir"] for volume in pod["volumes"]}
    assert volumes[mounts["/dev/shm"]]["medium"] == "Memory"
    assert volumes[mounts["/tmp"]] == volumes[mounts["/scratch"]] == {}


def test_a_job_of_defaults() -> None:
    job = made(PLAIN)
    assert problems(job) == []
    assert "ownerReferences" not in job["metadata"]
    trainer = job["spec"]["trainer"]
    assert job["spec"]["runtimeRef"] == {
        "apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": "autoformer-training",
    }  # fmt: skip
    assert (trainer["image"], trainer["numNodes"], trainer["numProcPerNode"]) == (IMAGE, 2, 8)
    assert trainer["resourcesPerNode"] == {
        "requests": {"nvidia.com/gpu": "8"}, "limits": {"nvidia.com/gpu": "8"},
    }  # fmt: skip
    name = job["metadata"]["name"]
    assert trainer["command"] == [
        "python", "-m", "runtime.steps.job_node", "--job", name, "--place", "/shared/jobs/x", "train_supernet",
        "--config", "{}", "--out", "/shared/jobs/x/outputs/out",
    ]  # fmt: skip


def test_a_job_without_gpus_is_one_process_a_machine() -> None:
    trainer = made(PLAIN | {"gpus": 0})["spec"]["trainer"]
    assert trainer["numProcPerNode"] == 1 and trainer["resourcesPerNode"] == {}


def test_a_job_with_everything() -> None:
    job = made(EVERYTHING, run="a-run", pod="launcher", pod_uid="uid")
    assert problems(job) == []
    assert job["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Pod", "name": "launcher", "uid": "uid", "blockOwnerDeletion": False}
    ]
    assert job["metadata"]["labels"]["autoformer/run"] == "a-run"
    assert job["spec"]["trainer"]["resourcesPerNode"] == {
        "requests": {"cpu": "16", "memory": "64Gi", "amd.com/gpu": "8"},
        "limits": {"memory": "64Gi", "amd.com/gpu": "8"},
    }
    assert job["spec"]["trainer"]["env"] == [
        {"name": "MLFLOW_RUN_ID", "value": "abc"},
        {"name": "MLFLOW_TRACKING_URI", "value": "http://other:5000"},
        {"name": "NCCL_DEBUG", "value": "WARN"},
        {"name": "AWS_ACCESS_KEY_ID", "valueFrom": {"secretKeyRef": {"name": "s3", "key": "id"}}},
        {
            "name": "MLFLOW_TRACKING_USERNAME",
            "valueFrom": {"secretKeyRef": {"name": "mlflow", "key": "user", "optional": True}},
        },
    ]
    (patch,) = job["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert (patch["manager"], node["name"]) == ("autoformer/launcher", "node")
    pods = node["template"]["spec"]["template"]
    assert pods["metadata"]["labels"]["team"] == "vision"
    assert pods["spec"] == {
        "volumes": [
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "32Gi"}},
            {"name": "volume-0", "persistentVolumeClaim": {"claimName": "shared", "readOnly": False}},
            {"name": "volume-1", "persistentVolumeClaim": {"claimName": "data", "readOnly": True}},
        ],
        "containers": [
            {
                "name": "node",
                "volumeMounts": [
                    {"name": "volume-0", "mountPath": "/shared", "readOnly": False},
                    {"name": "volume-1", "mountPath": "/data", "readOnly": True},
                    {"name": "volume-0", "mountPath": "/work", "readOnly": False},
                ],
            }
        ],
        "nodeSelector": {"pool": "a100"},
        "tolerations": [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
            {"key": "spot", "operator": "Equal", "value": "yes", "effect": "NoExecute", "tolerationSeconds": 60},
        ],
        "serviceAccountName": "trainer",
        "imagePullSecrets": [{"name": "registry"}],
        "securityContext": {"runAsUser": 1000, "runAsGroup": 2000, "fsGroup": 2000},
    }


@given(st.text(min_size=1), st.sampled_from(["train_supernet", "search_subnet", "retrain_subnet"]), st.integers(1, 999))
def test_names_and_labels_are_such_that_kubernetes_takes_them(run: str, step: str, attempt: int) -> None:
    """A pod's name is the job's with "-node-0-31-abcde", and is at most 63 characters long."""
    settings = JobSettings.model_validate(PLAIN)
    launch = Launch(step, ["--config", "{}"], run)
    name = launch.name(settings, attempt)
    assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name) and len(name) <= 63 - len("-node-0-9999-abcde")
    for value in launch.labels(settings).values():
        assert re.fullmatch("[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", value)


def test_a_name_says_what_is_done_and_not_where() -> None:
    """KFP gives a task that it tries again other paths; other work is another job."""
    settings = JobSettings.model_validate(PLAIN)

    def name(run: str = "r", settings: JobSettings = settings, attempt: int = 1, **given: str) -> str:
        words = {"config": "{}", "data": "/data", "out": "/kfp/1/out"} | given
        argv = [part for key, value in words.items() for part in (f"--{key}", value)]
        return Launch("train_supernet", argv, run).name(settings, attempt)

    assert name() == name(out="/kfp/2/out")
    other_image = JobSettings.model_validate(PLAIN | {"image": "other"})
    others = [
        name(run="s"),
        name(other_image and "r", other_image),
        name(attempt=2),
        name(config="[]"),
        name(data="/x"),
    ]
    assert len({name(), *others}) == 6


# --- settings ---


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"gpu": 1}, "unknown key 'gpu'; did you mean 'gpus'?"),
        ({"nodes": 0}, "nodes = 0: input should be greater than or equal to 1"),
        ({"env": {"PET_NNODES": "3"}}, "names that begin with PET_ are Trainer's own"),
        ({"memory": "64 GB"}, "memory = '64 GB': string should match pattern"),
        ({"volumes": [{"claim": "a", "mount": "work"}]}, "volumes.0.mount = 'work': expected an absolute path below /"),
        ({"volumes": [{"claim": "a", "mount": "/w"}, {"claim": "b", "mount": "/w/"}]}, "two volumes are mounted at /w"),
        ({"env": {"A": "1"}, "secret_env": [{"secret": "s", "key": "k", "env": "A"}]},
         "the variable A is given by env and by secret_env"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused_in_one_line(change: dict[str, Any], line: str) -> None:
    with pytest.raises(AutoFormerError) as refused:
        job_settings({"AUTOFORMER_JOB": json.dumps(PLAIN | change)})
    assert str(refused.value).startswith("AUTOFORMER_JOB: ") and line in str(refused.value)


def test_settings_come_back_from_their_line() -> None:
    settings = JobSettings.model_validate(EVERYTHING)
    assert job_settings({"AUTOFORMER_JOB": settings.to_json()}) == settings
    assert "\n" not in settings.to_json()
    assert job_settings({}) is None and job_settings({"AUTOFORMER_JOB": ""}) is None
    with pytest.raises(AutoFormerError, match="AUTOFORMER_JOB: not readable as JSON"):
        job_settings({"AUTOFORMER_JOB": "{"})
