"""A cluster's settings, and what they become: the package is read back as KFP reads it."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from compiled import on_a_short_stack, read_all
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2 as kubernetes_pb
from s3_server import S3Server

from autoformer.errors import AutoFormerError
from pipeline.cluster.compile import main, write_manifests, write_package
from pipeline.cluster.settings import ON_GPUS, Cluster, cluster_path, load_cluster
from runtime.common.config import ROOT, STEPS
from runtime.kubernetes.job import SHARED_STEPS
from runtime.kubernetes.settings import VARIABLE, JobSettings
from runtime.storage.artifacts import POINTER, publish

GPU = ROOT / "configs" / "cluster" / "gpu.yaml"
TASKS = ("resolve_config", *STEPS)
SECRETS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"}
OTHER = "registry.company.com/autoformer-training@sha256:" + "1" * 64
SELECTOR = 'steps.train_supernet.node_selector={"example.com/gpu": "large"}'


class Package(NamedTuple):
    """A compiled package, by step."""

    cluster: Cluster
    text: str
    containers: dict[str, dict[str, Any]]
    pods: dict[str, kubernetes_pb.KubernetesExecutorConfig]
    tasks: dict[str, dict[str, Any]]
    whole: dict[str, Any]  # what holds for a whole run

    def environment(self, step: str) -> dict[str, str]:
        return {each["name"]: each.get("value", "") for each in self.containers[step]["env"]}


def package_of(folder: Path, source: str, *overrides: str) -> Package:
    cluster = load_cluster(source, overrides)
    file = folder / "package.yaml"
    on_a_short_stack(write_package, file, cluster)
    text = file.read_text()
    specification, platform = read_all(text)
    kubernetes = platform["platforms"]["kubernetes"]

    def by_step(by_name: dict[str, Any]) -> dict[str, Any]:
        return {name.removeprefix("exec-").replace("-", "_"): value for name, value in by_name.items()}

    pods = {
        step: json_format.ParseDict(pod, kubernetes_pb.KubernetesExecutorConfig())  # raises where KFP knows no such key
        for step, pod in by_step(kubernetes["deploymentSpec"]["executors"]).items()
    }
    containers = by_step(specification["deploymentSpec"]["executors"])
    return Package(
        cluster,
        text,
        {step: executor["container"] for step, executor in containers.items()},
        pods,
        by_step(specification["root"]["dag"]["tasks"]),
        kubernetes["pipelineConfig"],
    )


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return package_of(
        tmp_path_factory.mktemp("gpu"),
        "gpu",
        SELECTOR,
        "images.pull_secrets=[registry]",
        "launcher.deadline_seconds=3600",
    )


@pytest.fixture(scope="module")
def multi_node(tmp_path_factory: pytest.TempPathFactory) -> Package:
    volumes = "volumes=[{claim: autoformer-shared, mount: /shared}, {claim: images, mount: /data, read_only: true}]"
    return package_of(tmp_path_factory.mktemp("multi-node"), "multi-node", volumes)


@pytest.fixture(params=["gpu", "multi_node"])
def package(request: pytest.FixtureRequest) -> Package:
    package: Package = request.getfixturevalue(request.param)
    return package


# --- what each step runs on ---


def test_every_task_has_its_place(package: Package) -> None:
    assert set(package.containers) == set(package.pods) == set(package.tasks) == set(TASKS)
    for step, container in package.containers.items():
        light = step == "resolve_config" or package.cluster.job(step) is not None
        expected = package.cluster.images.launcher if light else package.cluster.images.training
        assert container["image"] == expected and re.search(r"@sha256:[0-9a-f]{64}$", expected), step


def test_gpus_are_asked_for_by_the_gpu_steps_alone(gpu: Package) -> None:
    asked = {step: container["resources"].get("accelerator") for step, container in gpu.containers.items()}
    assert {step for step, accelerator in asked.items() if accelerator} == set(ON_GPUS)
    for step in ON_GPUS:
        count = str(getattr(gpu.cluster.steps, step).gpus)
        assert (asked[step]["resourceType"], asked[step]["resourceCount"]) == ("nvidia.com/gpu", count)
    assert asked["train_supernet"]["resourceCount"] == "8"


def test_the_type_of_a_gpu_is_a_setting(tmp_path: Path) -> None:
    package = package_of(tmp_path, "gpu", "steps.train_supernet.gpu_type=amd.com/gpu", "steps.evaluate_subnet.gpus=0")
    assert package.containers["train_supernet"]["resources"]["accelerator"]["resourceType"] == "amd.com/gpu"
    assert "accelerator" not in package.containers["evaluate_subnet"]["resources"]


def test_cores_and_memory_are_as_said(gpu: Package) -> None:
    for step in STEPS:
        settings = getattr(gpu.cluster.steps, step)
        resources = gpu.containers[step]["resources"]
        assert resources["resourceCpuRequest"] == settings.cpu
        assert resources["resourceMemoryRequest"] == resources["resourceMemoryLimit"] == settings.memory
        assert "resourceCpuLimit" not in resources  # idle cores are for whoever has use for them
    assert gpu.containers["resolve_config"]["resources"]["resourceMemoryLimit"] == gpu.cluster.launcher.memory


def test_shared_memory_is_memory_and_the_rest_may_be_written_to(gpu: Package) -> None:
    """The images' file system may be read-only."""
    for step, pod in gpu.pods.items():
        mounts = {mount.mount_path: mount for mount in pod.empty_dir_mounts}
        settings = getattr(gpu.cluster.steps, step, None)
        shm = settings.shm if settings else None
        assert set(mounts) == {"/scratch", "/tmp", *(["/dev/shm"] if shm else [])}, step
        assert (mounts["/scratch"].medium, mounts["/scratch"].size_limit) == ("", "200Gi")
        assert (mounts["/tmp"].medium, mounts["/tmp"].size_limit) == ("", "200Gi")
        if shm:
            assert (mounts["/dev/shm"].medium, mounts["/dev/shm"].size_limit) == ("Memory", shm)
        environment = gpu.environment(step)
        assert environment["AUTOFORMER_WORK"] == "/scratch/work"
        assert (environment["AUTOFORMER_STAGING"], environment["AUTOFORMER_STAGING_GB"]) == ("/scratch/staged", "107")
    assert {step for step in STEPS if getattr(gpu.cluster.steps, step).shm} == set(ON_GPUS)


def test_run_and_experiment_of_mlflow_belong_to_the_server_that_is_named(gpu: Package, tmp_path: Path) -> None:
    """KFP's MLflow plugin sets all three variables; a run of its server must not be looked for on ours."""
    for step in STEPS:
        environment = gpu.environment(step)
        assert environment["MLFLOW_TRACKING_URI"] == gpu.cluster.env["MLFLOW_TRACKING_URI"]
        assert (environment["MLFLOW_RUN_ID"], environment["MLFLOW_EXPERIMENT_ID"]) == ("", "")
    settings = yaml.safe_load(cluster_path("gpu").read_text())
    del settings["env"]["MLFLOW_TRACKING_URI"]
    (tmp_path / "plugin.yaml").write_text(yaml.safe_dump(settings))
    assert not any(name.startswith("MLFLOW") for name in load_cluster(str(tmp_path / "plugin.yaml")).environment)


def test_nodes_are_selected_where_said(gpu: Package) -> None:
    assert {step for step, pod in gpu.pods.items() if pod.node_selector.labels} == {"train_supernet"}
    assert dict(gpu.pods["train_supernet"].node_selector.labels) == {"example.com/gpu": "large"}
    assert {step for step, pod in gpu.pods.items() if pod.tolerations} == set(ON_GPUS)
    for step in ON_GPUS:
        (toleration,) = gpu.pods[step].tolerations
        assert (toleration.key, toleration.operator, toleration.effect) == ("nvidia.com/gpu", "Exists", "NoSchedule")
        assert not toleration.HasField("toleration_seconds")  # 0 would mean: leave at once


def test_pods_know_themselves_and_run_as_nobody(package: Package) -> None:
    for step, pod in package.pods.items():
        assert {field.name: field.field_path for field in pod.field_path_as_env} == {
            "KFP_RUN_ID": "metadata.labels['pipeline/runid']",
            "KFP_POD_NAME": "metadata.name",
            "KFP_POD_UID": "metadata.uid",
            "KFP_NAMESPACE": "metadata.namespace",
        }
        assert pod.security_context.run_as_non_root and not pod.security_context.HasField("run_as_user")
        assert dict(pod.pod_metadata.labels) == {
            "app.kubernetes.io/name": "autoformer",
            "app.kubernetes.io/component": step,
        }
        assert pod.image_pull_policy == "IfNotPresent"
        assert {mount.mount_path: mount.constant for mount in pod.pvc_mount} == {
            volume.mount: volume.claim for volume in package.cluster.volumes
        }


def test_pull_secrets_users_and_labels_are_passed_on(gpu: Package, tmp_path: Path) -> None:
    assert {step for step, pod in gpu.pods.items() for each in pod.image_pull_secret if each.secret_name == "registry"}
    settings = ("run_as_user=1000", "run_as_group=2000", 'labels={"team": "vision"}')
    for pod in package_of(tmp_path, "gpu", *settings).pods.values():
        assert (pod.security_context.run_as_user, pod.security_context.run_as_group) == (1000, 2000)
        assert pod.pod_metadata.labels["team"] == "vision"
    job = load_cluster("multi-node", [*settings, "images.pull_secrets=[registry]"]).job("train_supernet")
    assert job is not None and (job.run_as_user, job.run_as_group) == (1000, 2000)
    assert (job.labels, job.pull_secrets) == ({"team": "vision"}, ("registry",))


def test_deadlines_and_retries_are_as_said(gpu: Package, multi_node: Package) -> None:
    for step in STEPS:
        settings = getattr(gpu.cluster.steps, step)
        assert gpu.pods[step].active_deadline_seconds == settings.deadline_seconds
        retries = gpu.tasks[step].get("retryPolicy", {}).get("maxRetryCount", 0)
        assert retries == settings.retries.count
    assert gpu.tasks["train_supernet"]["retryPolicy"] == {
        "maxRetryCount": 3, "backoffDuration": "60s", "backoffFactor": 2.0, "backoffMaxDuration": "100000000s",
    }  # fmt: skip
    assert gpu.whole == {"activeDeadlineSeconds": 604800, "resourceTtlOnCompletion": 86400,
                         "resourceTtlOnSuccess": 86400, "resourceTtlOnFailure": 86400}  # fmt: skip
    assert gpu.pods["resolve_config"].active_deadline_seconds == 3600
    assert gpu.tasks["resolve_config"]["retryPolicy"]["maxRetryCount"] == 1
    assert multi_node.pods["train_supernet"].active_deadline_seconds == 0  # a job may wait for its machines


def test_the_window_of_retries_outlasts_all_attempts(gpu: Package, multi_node: Package) -> None:
    """Argo's `maxDuration` counts from the start of the first attempt, and ends every later one."""
    for package in (gpu, multi_node):
        for step in STEPS:
            settings = package.cluster.step(step)
            if settings.retries.count:
                policy = package.tasks[step]["retryPolicy"]
                attempts = (settings.retries.count + 1) * (settings.deadline_seconds or 0)
                assert int(policy["backoffMaxDuration"].removesuffix("s")) > 10 * attempts
                assert float(policy["backoffFactor"]).is_integer()  # Argo reads an integer


# --- several machines ---


def test_a_step_on_several_machines_is_launched_by_a_light_pod(multi_node: Package) -> None:
    for step in TASKS:
        text = multi_node.environment(step).get(VARIABLE)
        assert (text is not None) == (step in SHARED_STEPS)
        if text is None:
            continue
        job = JobSettings.parse(text)
        assert job == multi_node.cluster.job(step)
        assert (job.nodes, job.gpus, job.image) == (4, 8, multi_node.cluster.images.training)
        assert (job.cpu, job.memory, job.shm, job.deadline_seconds) == ("48", "256Gi", "32Gi", 864000)
        assert (job.runtime, job.service_account) == ("autoformer-training", None)
        assert {secret.env: secret.optional for secret in job.secret_env} == {
            name: name.startswith("MLFLOW") for name in SECRETS
        }
        more = {"AUTOFORMER_STAGING_GB": "107", "OMP_WAIT_POLICY": "PASSIVE"}  # half of the scratch
        assert job.env == multi_node.cluster.env | more
        assert [(each.claim, each.mount, each.read_only) for each in job.volumes] == [
            ("autoformer-shared", "/shared", False), ("images", "/data", True),
        ]  # fmt: skip
        assert [toleration.key for toleration in job.tolerations] == ["nvidia.com/gpu"]
        resources, pod = multi_node.containers[step]["resources"], multi_node.pods[step]
        assert "accelerator" not in resources  # those are the job's
        assert resources["resourceMemoryLimit"] == multi_node.cluster.launcher.memory
        assert not pod.tolerations and "/dev/shm" not in {mount.mount_path for mount in pod.empty_dir_mounts}
        assert "{{" not in text and "$(" not in text  # Argo and Kubernetes would put something in their place
    assert "accelerator" in multi_node.containers["evaluate_subnet"]["resources"]


# --- secrets ---


def test_secrets_are_there_by_reference_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever compiles has them in the environment; nothing of it goes into a package."""
    for name in SECRETS:
        monkeypatch.setenv(name, f"planted-{name.lower()}")
    package = package_of(tmp_path, "multi-node")
    on_a_short_stack(write_manifests, tmp_path / "objects.yaml", package.cluster)
    assert "planted" not in package.text + (tmp_path / "objects.yaml").read_text()
    for step, pod in package.pods.items():
        named = {key.env_var: secret.secret_name for secret in pod.secret_as_env for key in secret.key_to_env}
        assert named == dict.fromkeys(SECRETS, "autoformer-s3") | {
            name: "autoformer-mlflow" for name in SECRETS if name.startswith("MLFLOW")
        }
        assert not SECRETS & set(package.environment(step))
        assert package.environment(step).items() >= package.cluster.env.items()


# --- the package ---


def test_a_package_is_the_same_twice(gpu: Package, tmp_path: Path) -> None:
    again = package_of(tmp_path, "gpu", SELECTOR, "images.pull_secrets=[registry]", "launcher.deadline_seconds=3600")
    assert again.text == gpu.text
    other = load_cluster("gpu", ["steps.prepare_data.cpu='9'"])
    versions = [
        on_a_short_stack(write_manifests, tmp_path / f"{number}.yaml", cluster)
        for number, cluster in enumerate((gpu.cluster, gpu.cluster, other))
    ]
    assert versions[0] == versions[1] != versions[2]
    assert (tmp_path / "0.yaml").read_bytes() == (tmp_path / "1.yaml").read_bytes()


def test_kubernetes_objects_are_what_their_definitions_ask_for(gpu: Package, tmp_path: Path) -> None:
    """Keys and required keys of KFP's CustomResourceDefinitions, pipelines.kubeflow.org/v2beta1."""
    name = on_a_short_stack(write_manifests, tmp_path / "objects.yaml", gpu.cluster)
    pipeline, version = read_all((tmp_path / "objects.yaml").read_text())
    for each, kind, keys in (
        (pipeline, "Pipeline", {"description", "displayName"}),
        (version, "PipelineVersion", {"description", "displayName", "pipelineName", "pipelineSpec", "platformSpec"}),
    ):
        assert each.keys() == {"apiVersion", "kind", "metadata", "spec"}
        assert (each["apiVersion"], each["kind"]) == ("pipelines.kubeflow.org/v2beta1", kind)
        assert each["metadata"]["namespace"] == gpu.cluster.namespace
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", each["metadata"]["name"])
        assert each["spec"].keys() <= keys
    assert version["metadata"]["name"] == name
    assert version["spec"]["pipelineName"] == pipeline["metadata"]["name"]
    assert [version["spec"]["pipelineSpec"], version["spec"]["platformSpec"]] == read_all(gpu.text)


def test_compiling_says_on_what_and_what_is_still_an_example(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert on_a_short_stack(main, ["--cluster", "multi-node", "--out", str(tmp_path / "a.yaml")]) == 0
    output = capsys.readouterr().out
    assert "autoformer-training@sha256:" in output and "autoformer-launcher@sha256:" in output
    assert "  train_supernet: 4 machines, each 8 x nvidia.com/gpu, 48 cores, 256Gi\n" in output
    assert "  prepare_data: 8 cores, 16Gi\n" in output
    assert "still the example's" in output and "images.training" in output
    assert on_a_short_stack(main, ["--out", str(tmp_path / "b.yaml")]) == 0
    assert len(read_all((tmp_path / "b.yaml").read_text())) == 1  # for any cluster: no platform's part
    assert capsys.readouterr().out.count("\n") == 1


# --- files that are not what they should be ---


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("namespaces=x", ["unknown key 'namespaces'", "did you mean 'namespace'?"]),
        ("steps.train_supernett={}", ["unknown key 'steps.train_supernett'", "'train_supernet'?"]),
        ("steps.train_supernet.gpu=8", ["unknown key 'steps.train_supernet.gpu'", "'gpus'?"]),
        ("steps.train_supernet.retries.backof_seconds=1", ["backof_seconds'", "'backoff_seconds'?"]),
        ("steps.prepare_data=null", ["steps.prepare_data = None"]),
        ("images.training=registry/autoformer:1.0", ["images.training", "no digest", "allow_tags"]),
        ("images.launcher=registry/autoformer", ["images.launcher", "no digest"]),
        ("images.training=registry/autoformer@sha256:12ab", ["images.training", "64 hexadecimal digits"]),
        ("images.pull_policy=Sometimes", ["images.pull_policy = 'Sometimes'", "IfNotPresent"]),
        ("steps.prepare_data.gpus=1", ["steps.prepare_data.gpus = 1", "uses no GPU"]),
        ("steps.register_model.gpus=1", ["steps.register_model.gpus = 1", "uses no GPU"]),
        ("steps.evaluate_subnet.nodes=2", ["steps.evaluate_subnet.nodes = 2", "one machine does this step"]),
        ("steps.prepare_data.nodes=2", ["steps.prepare_data.nodes = 2", "one machine does this step"]),
        ("steps.train_supernet.nodes=0", ["steps.train_supernet.nodes = 0", "greater than or equal to 1"]),
        ("steps.train_supernet.gpus=some", ["steps.train_supernet.gpus = 'some'", "integer"]),
        ("steps.train_supernet.memory=16GB", ["memory = '16GB'", "16Gi"]),
        ("steps.train_supernet.memory=4", ["memory = 4:", "16Gi"]),
        ("steps.train_supernet.shm=0", ["shm = 0:", "16Gi"]),
        ("steps.train_supernet.memory=99999999999999999999Ti", ["memory = '99999999999999999999Ti'", "16Gi"]),
        ("steps.train_supernet.cpu=99999999999999999999", ["cpu = 99999999999999999999", "500m"]),
        ("steps.train_supernet.memory=64 Gi", ["memory = '64 Gi'", "16Gi"]),
        ("steps.train_supernet.cpu='four'", ["cpu = 'four'", "500m"]),
        ("steps.train_supernet.shm=256Gi", ["shm = 256Gi leaves nothing of memory = 256Gi"]),
        ("steps.train_supernet.gpu_type=nvidia", ["gpu_type = 'nvidia'"]),
        ("steps.train_supernet.deadline_seconds=0", ["deadline_seconds = 0", "greater than 0"]),
        ("steps.train_supernet.retries.count=-1", ["retries.count = -1"]),
        ("steps.train_supernet.tolerations=[{keys: x}]", ["unknown key 'steps.train_supernet.tolerations.0.keys'"]),
        ("steps.train_supernet.node_selector={gpu: true}", ["node_selector.gpu = True", "string"]),
        ("namespace=Vision Team", ["namespace = 'Vision Team'"]),
        ("namespace=vision.team", ["namespace = 'vision.team'"]),
        (f"namespace={'a' * 64}", ["namespace = 'aaa", "63 characters"]),
        ("keep_seconds=86401", ["keep_seconds = 86401", "less than or equal to 86400"]),
        ("images.training=x:y:z", ["images.training = 'x:y:z'", "repository@sha256"]),
        (f"images.training=registry//x@sha256:{'1' * 64}", ["images.training = 'registry//x", "repository@sha256"]),
        ("env.AUTOFORMER_STORE=gs://bucket/store", ["env.AUTOFORMER_STORE = 'gs://bucket/store'", "as s3://"]),
        ("env.AUTOFORMER_STORE=/shared/store", ["env.AUTOFORMER_STORE = '/shared/store'", "as s3://"]),
        ("env.AUTOFORMER_STORE=s3://", ["env.AUTOFORMER_STORE = 's3://'", "as s3://"]),
        ("env.AWS_ENDPOINT_URL=seaweedfs:8333", ["env.AWS_ENDPOINT_URL = 'seaweedfs:8333'", "as http://"]),
        ("env.MLFLOW_TRACKING_URI=mlflow", ["env.MLFLOW_TRACKING_URI = 'mlflow'", "as http://"]),
        ("volumes=[{claim: a, mount: data}]", ["volumes.0.mount = 'data'", "absolute path"]),
        ("volumes=[{claim: a, mount: /x}, {claim: b, mount: /x}]", ["'b' is mounted at /x, where 'a' is"]),
        ("volumes=[{claim: a, mount: /tmp}]", ["'a' is mounted at /tmp, where temporary files is"]),
        ("volumes=[{claim: a.b, mount: /x}]", ["the claim 'a.b' cannot be mounted by KFP"]),
        (f"volumes=[{{claim: {'a' * 64}, mount: /x}}]", ["at most 63 characters"]),
        ("volumes=[{claim: scratch, mount: /x}]", ["the claim 'scratch' cannot be mounted by KFP"]),
        ("volumes=[{claim: gcs-scratch, mount: /x}]", ["the claim 'gcs-scratch' cannot"]),
        ("volumes=[{claim: Images, mount: /x}]", ["volumes.0.claim = 'Images'"]),
        ("volumes=[{claim: a..b, mount: /x}]", ["the claim 'a..b' cannot be mounted by KFP"]),
        ("volumes=[{claim: a, mount: '/x:ro'}]", ["volumes.0.mount = '/x:ro'", "without a colon"]),
        ("volumes=[{claim: a, mount: /}]", ["volumes.0.mount = '/'", "below /"]),
        ("volumes=[{claim: a, mount: /app}]", ["the mount /app would hide /app, which pods need"]),
        ("volumes=[{claim: a, mount: /opt/}]", ["the mount /opt would hide /opt/venv, which pods need"]),
        ("volumes=[{claim: a, mount: /var}]", ["the mount /var would hide /var/run/secrets, which pods need"]),
        ("scratch.mount=/dev", ["the mount /dev would hide /dev, which pods need"]),
        ("volumes=[{claim: a, mount: /minio}]", ["'a' is mounted at /minio, where KFP has its own files"]),
        ("steps.train_supernet.retries.backoff_factor=1.5", ["backoff_factor = 1.5", "integer"]),
        ("steps.train_supernet.retries={count: 20, backoff_seconds: 60}", ["the last pause would be", "86400"]),
        ("env.AUTOFORMER_JOB='{}'", ["AUTOFORMER_JOB is set for each pod"]),
        ("env.KFP_RUN_ID=1", ["KFP_RUN_ID is set for each pod"]),
        ("env.MLFLOW_TRACKING_USERNAME=me", ["MLFLOW_TRACKING_USERNAME is given more than once"]),
        ("env.PET_NNODES=2", ["PET_"]),
        ("env=[]", ["env = []", "expected a mapping"]),
        ("secrets=[{secret: s3, keys: {}}]", ["secrets.0.keys"]),
        ("labels={a b: c}", ["labels.a b"]),
    ],
)
def test_a_bad_value_is_one_line(
    override: str, parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "package.yaml"
    key, _, value = override.partition("=")
    assert main(["--cluster", "gpu", "--set", f"{key}={json.dumps(value)[1:-1]!r}", "--out", str(out)]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"compile: {GPU}: ") and message.count("\n") == 1, message
    assert all(part in message for part in parts), message
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("env", "{AWS_SECRET_ACCESS_KEY: hunter2}"),
        ("env", "{AWS_ACCESS_KEY_ID: hunter2}"),
        ("env", "{MLFLOW_TRACKING_PASSWORD: hunter2}"),
        ("env", "{MLFLOW_TRACKING_TOKEN: [hunter2]}"),
        ("env", "{DB_PASSWD: 5}"),
        ("env", "{MLFLOW_TRACKING_URI: 'https://me:hunter2@mlflow.example.com'}"),
        ("env", "{HEADER: Bearer hunter2}"),
        ("env", "{WHO: AKIAIOSFODNN7HUNTER2}"),
        ("env", "{WHO: 'eyJhbGciOiJIUzI1NiJ9.eyJodW50ZXIyIjoxfQ.hunter2'}"),
        ("labels", "{who: ghp_hunter2hunter2hunter2hunter2}"),
        ("secrets", "[{secret: s3, keys: {AWS_SECRET_ACCESS_KEY: wJalrhunter2}}]"),
        ("images", "{training: 'https://me:hunter2@registry.example.com/x'}"),
    ],
)
def test_a_secret_is_refused_and_not_repeated(
    key: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = yaml.safe_load(GPU.read_text()) | {key: yaml.safe_load(value)}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(data))
    assert main(["--cluster", str(file), "--out", str(tmp_path / "package.yaml")]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"compile: {file}: ") and message.count("\n") == 1
    assert "hunter2" not in message.lower() and ("secret" in message or "never a value" in message), message


def test_what_only_looks_like_a_secret_is_let_through() -> None:
    names = ("AWS_WEB_IDENTITY_TOKEN_FILE", "TOKENIZERS_PARALLELISM", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "CACHE_GB")
    cluster = load_cluster("gpu", [f"env.{name}=/var/run/x" for name in names])
    assert {cluster.env[name] for name in names} == {"/var/run/x"}
    assert load_cluster("gpu", ["env.AUTOFORMER_CACHE_GB=8"]).env["AUTOFORMER_CACHE_GB"] == "8"


def test_machines_of_one_job_need_a_place_to_meet() -> None:
    """Either is enough; of volumes, one that is not for reading alone."""
    read_only, store = "volumes=[{claim: a, mount: /data, read_only: true}]", "env={AUTOFORMER_STORE: s3://a/b}"
    assert load_cluster("multi-node", [read_only, store]).job("train_supernet")
    writable = "volumes=[{claim: a, mount: /data}]"
    assert load_cluster("multi-node", [writable, "env={}"]).job("train_supernet")
    with pytest.raises(AutoFormerError, match=r"nodes = 4: machines of one job need a place .* env.AUTOFORMER_STORE"):
        load_cluster("multi-node", [read_only, "env={}"])


def test_tags_pass_where_the_file_lets_them() -> None:
    cluster = load_cluster("gpu", ["images={training: a/b:dev, launcher: a/c:dev, allow_tags: true}"])
    assert cluster.images.training == "a/b:dev"
    assert "images.training" not in cluster.placeholders()


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for source, message in (
        ("gpus", "no cluster 'gpus' in configs/cluster; did you mean 'gpu'?"),
        ("/nowhere", "in configs/cluster; one of: gpu,"),
        ("configs/cluster/none", "in configs/cluster; one of: gpu,"),
        ("gpu.yaml", "gpu.yaml: no such file; did you mean 'gpu', that of configs/cluster?"),
        (str(tmp_path / "mine.yaml"), "mine.yaml: no such file"),
    ):
        with pytest.raises(AutoFormerError, match=re.escape(message)):
            load_cluster(source)
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(AutoFormerError, match="expected a mapping"):
        load_cluster(str(tmp_path / "list.yaml"))
    assert main(["--set", "namespace=x"]) == 2


@pytest.mark.parametrize("name", ["gpu", "multi-node"])
def test_the_examples_are_to_be_replaced(name: str) -> None:
    examples = load_cluster(name).placeholders()
    assert examples == ["images.training", "images.launcher"]
    profile = "kubeflow-user-example-com"  # KFP's own first profile has that name
    assert load_cluster(name, [f"namespace={profile}", f"images.training={OTHER}"]).placeholders() == examples[1:]
    assert load_cluster(name, ["env.AUTOFORMER_STORE=s3://example-bucket/x"]).placeholders() == [
        "env.AUTOFORMER_STORE", *examples,
    ]  # fmt: skip


# --- who moves what ---


WHO_MOVES_WHAT = (ROOT / "docs" / "who-moves-what.md").read_text()


def test_the_table_of_who_moves_what_has_every_output_of_every_step(gpu: Package) -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| ([^|]+) \|", WHO_MOVES_WHAT, re.MULTILINE)
    components = read_all(gpu.text)[0]["components"]
    outputs = [
        (step, output)
        for step in STEPS
        for output in components[f"comp-{step.replace('_', '-')}"]["outputDefinitions"]["artifacts"]
    ]
    assert sorted((step, output) for step, output, _ in rows) == sorted(outputs)
    by_storage = {(step, output) for step, output, carrier in rows if carrier != "KFP"}
    assert by_storage == {(step, "supernet") for step in STEPS if "publish(" in source(step)}
    assert by_storage == {("train_supernet", "supernet")} and f"`{POINTER}`" in WHO_MOVES_WHAT


def test_the_table_of_who_moves_what_has_the_steps_that_keep_their_work_in_the_store() -> None:
    (row,) = re.findall(r"^\| work in progress of (.*?) \| storage", WHO_MOVES_WHAT, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", row)) == {step for step in STEPS if "has_checkpoints=True" in source(step)}


def test_no_large_file_is_left_to_kfp_where_there_is_a_store(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOFORMER_STORE", s3.uri("who-moves-what"))
    for name in ("weights.safetensors", "ema.safetensors", "supernet.json", "metrics.json"):
        (tmp_path / name).write_text(name)
    publish(tmp_path, "train_supernet")
    assert {file.name for file in tmp_path.iterdir()} == {"supernet.json", "metrics.json", POINTER}
    place = json.loads((tmp_path / POINTER).read_text())["uri"].removeprefix(s3.uri("who-moves-what"))
    (named,) = re.findall(r"`<store>(/artifacts/\S+)/`", WHO_MOVES_WHAT)
    assert re.fullmatch(named.replace("<hash>", "[0-9a-f]{64}"), place)


def source(step: str) -> str:
    return (ROOT / "components" / step / "step.py").read_text()
