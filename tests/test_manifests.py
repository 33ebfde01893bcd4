"""The manifests of a cluster from nothing, without a cluster: what they list is there, pinned, and fits together."""

import fnmatch
import importlib.util
import json
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import kubernetes_validate
import pytest
import yaml
from s3_server import S3Server

from autoformer.errors import AutoFormerError
from pipeline.cluster.new_secrets import MANIFESTS, main, write_secrets
from pipeline.cluster.settings import load_cluster
from pipeline.images import LEFT_OUT, image_files
from runtime.common.config import ROOT
from runtime.storage import connect

RELEASES = {"kubeflow/pipelines": "2.17.2", "kubeflow/trainer": "v2.3.0"}
PODS = {"Deployment", "StatefulSet", "Job"}
OLDEST_KUBERNETES = "1.31"  # that Trainer asks for
Object = dict[str, Any]


class Kustomization(NamedTuple):
    folder: Path
    content: Object
    remote: list[str]
    folders: list[Path]
    files: list[Path]

    @property
    def objects(self) -> list[Object]:
        return [each for file in self.files for each in yaml.safe_load_all(file.read_text())]

    def generated(self, kind: str) -> dict[str, set[str]]:
        """Name -> keys of the secrets or config maps that are made from files and literals."""
        found = {}
        for each in self.content.get(f"{kind}Generator", []):
            lines = [*each.get("literals", [])]
            for name in each.get("envs", []):
                lines += (self.folder / f"{name.removeprefix('.')}.example").read_text().split()
            found[each["name"]] = {line.partition("=")[0] for line in lines}
        return found


def read(folder: Path) -> Kustomization:
    """What a kustomization lists, each of which is there."""
    content = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert (content["apiVersion"], content["kind"]) == ("kustomize.config.k8s.io/v1beta1", "Kustomization")
    resources = content["resources"]
    remote = [each for each in resources if "://" in each]
    local = [folder / each for each in resources if "://" not in each]
    assert all(each.exists() for each in local), local
    return Kustomization(
        folder, content, remote, [each for each in local if each.is_dir()], [each for each in local if each.is_file()]
    )


ALL = [read(file.parent) for file in sorted(MANIFESTS.rglob("kustomization.yaml"))]
OBJECTS = [each for kustomization in ALL for each in kustomization.objects]
OURS = {each.folder.name: each for each in ALL}


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Name and specification of every pod that an object makes."""
    for each in objects:
        if each["kind"] in PODS:
            yield each["metadata"]["name"], each["spec"]["template"]["spec"]


def containers(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    for name, pod in pods(objects):
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            yield f"{name}/{container['name']}", container


def references(value: Any) -> Iterator[tuple[str, str, str]]:
    """Every reference to a secret or config map: its kind, its name and the key, or "" for all."""
    if isinstance(value, dict):
        for key, below in value.items():
            if key in ("secretKeyRef", "configMapKeyRef"):
                yield key.removesuffix("KeyRef"), below["name"], below["key"]
            elif key in ("secretRef", "configMapRef"):
                yield key.removesuffix("Ref"), below["name"], ""
            else:
                yield from references(below)
    elif isinstance(value, list):
        for below in value:
            yield from references(below)


def test_every_file_belongs_to_a_kustomization() -> None:
    listed = {file for each in ALL for file in (*each.files, each.folder / "kustomization.yaml")}
    assert listed == set(MANIFESTS.rglob("*.yaml"))
    assert len(ALL) >= 4 and len(OBJECTS) >= 8


def test_what_comes_from_elsewhere_is_pinned_to_a_release() -> None:
    found = [url for each in ALL for url in each.remote]
    assert len(found) == 3
    for url in found:
        match = re.fullmatch(r"https://github\.com/([\w-]+/[\w-]+)//manifests/[\w/-]+\?timeout=5m&ref=(v?[\d.]+)", url)
        assert match is not None and RELEASES[match[1]] == match[2], url


def test_the_releases_are_those_of_our_packages() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    kfp, trainer = (re.search(rf"^{name}==(\d+\.\d+)", lock, re.M) for name in ("kfp", "kubeflow-trainer-api"))
    assert kfp is not None and RELEASES["kubeflow/pipelines"].startswith(f"{kfp[1]}.")
    assert trainer is not None and RELEASES["kubeflow/trainer"].startswith(f"v{trainer[1]}.")
    images = {container["image"] for _, container in containers(OURS["mlflow"].objects)}
    mlflow = re.search(r"^mlflow==(\d+\.\d+)", lock, re.M)
    assert mlflow is not None and any(f"mlflow:v{mlflow[1]}." in image for image in images)


@pytest.mark.parametrize("version", [OLDEST_KUBERNETES, kubernetes_validate.latest_version()])
def test_objects_are_as_kubernetes_has_them(version: str) -> None:
    checked = [each for each in OBJECTS if "kubeflow.org/" not in each["apiVersion"]]
    assert len(checked) >= 8
    for each in checked:
        kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize(("name", "container"), containers(OBJECTS))
def test_containers_are_pinned_bounded_and_unprivileged(name: str, container: Object) -> None:
    tag = container["image"].rpartition("/")[2].partition(":")[2]
    assert re.search(r"\d+\.\d+", tag) or "@sha256:" in tag, container["image"]
    assert set(container["resources"]["requests"]) == {"cpu", "memory"} and "memory" in container["resources"]["limits"]
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
    assert security["capabilities"]["drop"] == ["ALL"]


@pytest.mark.parametrize(("name", "pod"), pods(OBJECTS))
def test_pods_are_nobodys_and_hold_no_token(name: str, pod: Object) -> None:
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    mounted = {mount["name"] for container in pod["containers"] for mount in container.get("volumeMounts", [])}
    assert volumes <= mounted


def test_servers_are_probed_three_ways() -> None:
    servers = {name: c for name, c in containers([each for each in OBJECTS if each["kind"] != "Job"])}
    assert set(servers) == {"mlflow/mlflow", "autoformer-postgres/postgres"}
    for container in servers.values():
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)
        names = {port["name"] for port in container["ports"]}
        probed = {container[f"{kind}Probe"].get("httpGet", {}).get("port") for kind in ("startup", "readiness")}
        assert probed <= {*names, None}


def test_postgres_is_ready_once_its_database_is_there() -> None:
    """pg_isready passes on a server whose first start was interrupted: it is up, for ever without a database."""
    (postgres,) = (each for name, each in containers(OBJECTS) if name == "autoformer-postgres/postgres")
    (name,) = (each["value"] for each in postgres["env"] if each["name"] == "POSTGRES_DB")
    for kind in ("startup", "readiness"):
        command = postgres[f"{kind}Probe"]["exec"]["command"]
        assert command[0] == "psql" and {"--host=127.0.0.1", f"--dbname={name}"} <= set(command)
    assert postgres["livenessProbe"]["exec"]["command"][0] == "pg_isready"


def test_services_policies_and_claims_find_their_pods() -> None:
    objects = OURS["mlflow"].objects
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in objects if each["kind"] in PODS]
    by_kind = {
        kind: [each["spec"] for each in objects if each["kind"] == kind] for kind in ("Service", "NetworkPolicy")
    }
    selectors = [each["selector"] for each in by_kind["Service"]]
    selectors += [each["podSelector"]["matchLabels"] for each in by_kind["NetworkPolicy"]]
    assert len(selectors) == 4
    for selector in selectors:
        assert sum(selector.items() <= each.items() for each in labels) == 1
    ports = {port["name"]: port["containerPort"] for _, c in containers(objects) for port in c.get("ports", [])}
    for service in by_kind["Service"]:
        assert all(ports[port["targetPort"]] == port["port"] for port in service["ports"])


def test_secrets_are_only_referred_to() -> None:
    assert "Secret" not in {each["kind"] for each in OBJECTS}
    for kustomization in ALL:
        secrets, maps = kustomization.generated("secret"), kustomization.generated("configMap")
        for kind, name, key in references(kustomization.objects):
            keys = (secrets if kind == "secret" else maps)[name]
            assert not key or key in keys, f"{name}: no {key}"
    texts = [file.read_text() for file in MANIFESTS.rglob("*") if file.is_file() and not file.name.startswith(".")]
    assert not [text for text in texts if re.search(r"(?i)(password|secret_?key)[=:][ \t]*\w", text)]


def test_kfps_storage_gets_the_secret_of_its_users() -> None:
    """SeaweedFS of KFP reads `accesskey` and `secretkey`; what uses it reads the same password by other names."""
    assert OURS["kfp"].generated("secret") == {"mlpipeline-minio-artifact": {"accesskey", "secretkey"}}
    assert OURS["mlflow"].generated("secret")["autoformer-s3"] == {"access_key", "secret_key"}
    generator = OURS["kfp"].content["secretGenerator"][0]
    assert (generator["behavior"], generator["namespace"]) == ("replace", "kubeflow")


def test_kfp_is_made_to_try_failed_steps_again() -> None:
    """KFP's defaults retry errors of Kubernetes alone (`retryPolicy: OnError`)."""
    (patch,) = (yaml.safe_load(each["patch"]) for each in OURS["kfp"].content["patches"]
                if each["target"]["name"] == "ml-pipeline")  # fmt: skip
    (container,) = patch["spec"]["template"]["spec"]["containers"]
    (variable,) = container["env"]
    assert (container["name"], variable["name"]) == ("ml-pipeline-api-server", "COMPILED_PIPELINE_SPEC_PATCH")
    assert json.loads(variable["value"]) == {
        "templateDefaults": {"retryStrategy": {"limit": "0", "retryPolicy": "Always"}}
    }


def test_kfps_storage_has_volumes_for_ten_buckets_and_asks_for_the_memory_that_it_takes() -> None:
    """Seen on SeaweedFS 4.34: seven volumes a bucket, seven of its own; Go keeps its memory below GOMEMLIMIT."""
    patches = [each["patch"] for each in OURS["kfp"].content["patches"] if each["target"]["name"] == "seaweedfs"]
    arguments, pod = (yaml.safe_load(each) for each in patches)
    values = dict(each["value"].removeprefix("-").split("=") for each in arguments)
    assert int(values["volume.max"]) >= 7 * (10 + 1)
    (container,) = pod["spec"]["template"]["spec"]["containers"]
    assert container["env"] == [{"name": "GOMEMLIMIT", "value": "768MiB"}]
    assert container["resources"]["requests"] == {"memory": "1Gi"}


def mlflow_server() -> list[str]:
    (command,) = (each["command"] for name, each in containers(OURS["mlflow"].objects) if name == "mlflow/mlflow")
    return list(command)


def test_mlflow_is_found_by_the_names_that_pods_ask_for() -> None:
    (allowed,) = (each.partition("=")[2] for each in mlflow_server() if each.startswith("--allowed-hosts="))

    def is_allowed(host: str) -> bool:  # as MLflow matches them
        return any(fnmatch.fnmatch(host, pattern) for pattern in allowed.split(","))

    for host in ("mlflow:5000", "mlflow.kubeflow.svc.cluster.local:5000", "localhost:5000", "127.0.0.1:5001"):
        assert is_allowed(host)
    assert not is_allowed("evil.example:5000") and not is_allowed("10.0.0.3:5000")


def test_the_options_of_the_server_are_mlflows() -> None:
    """Found in MLflow's source: it takes seconds to import."""
    found = importlib.util.find_spec("mlflow")
    assert found is not None and found.submodule_search_locations is not None
    (package,) = map(Path, found.submodule_search_locations)
    source = (package / "cli/__init__.py").read_text() + (package / "utils/cli_args.py").read_text()
    options = {each.partition("=")[0] for each in mlflow_server()[2:]}
    assert len(options) == 6 and all(f'"{option}' in source for option in options), options
    known = (package / "environment_variables.py").read_text() + (package / "store/tracking/__init__.py").read_text()
    environment = {
        each["name"] for name, c in containers(OURS["mlflow"].objects) if name == "mlflow/mlflow" for each in c["env"]
    }
    ours = {name for name in environment if name.startswith("MLFLOW_")}
    assert len(ours) == 3 and all(name in known + source for name in ours)


def test_the_job_makes_its_bucket_once(s3: S3Server, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (job,) = (each for name, each in containers(OURS["mlflow"].objects) if name == "autoformer-bucket/bucket")
    monkeypatch.setenv("BUCKET", "made-by-the-job")
    for told in ("made-by-the-job: made", "made-by-the-job: is there"):
        exec(job["command"][2], {})
        assert told in capsys.readouterr().out
    assert "made-by-the-job" in [each["Name"] for each in connect().list_buckets()["Buckets"]]


def test_the_job_ends_with_one_line_where_s3_is_not_there_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    (job,) = (each for name, each in containers(OURS["mlflow"].objects) if name == "autoformer-bucket/bucket")
    for name, value in {
        "BUCKET": "autoformer", "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1",
        "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=r"^autoformer: Could not connect to the endpoint URL: .*127\.0\.0\.1:9"):
        exec(job["command"][2], {})


@pytest.mark.parametrize("name", ["gpu", "multi-node", "standalone"])
def test_the_clusters_settings_fit_the_manifests(name: str) -> None:
    """They ask for services, secrets, claims and a bucket that exist; all that is left to fill in are your images."""
    cluster = load_cluster(name)
    assert cluster.placeholders() == ["images.training", "images.launcher"]
    ours = OURS["mlflow"]
    literals = ours.content["configMapGenerator"][0]["literals"]
    s3: dict[str, str] = dict(each.split("=", 1) for each in literals)
    assert cluster.namespace == ours.content["namespace"] == "kubeflow"
    assert cluster.env["AWS_ENDPOINT_URL"] == s3["AWS_ENDPOINT_URL"]
    assert cluster.env["AWS_DEFAULT_REGION"] == s3["AWS_DEFAULT_REGION"]
    assert cluster.env["AUTOFORMER_STORE"].startswith(f"s3://{s3['BUCKET']}/")
    services = {each["metadata"]["name"]: each["spec"] for each in ours.objects if each["kind"] == "Service"}
    port = services["mlflow"]["ports"][0]["port"]
    assert cluster.env["MLFLOW_TRACKING_URI"] == f"http://mlflow.kubeflow.svc.cluster.local:{port}"
    for secret in cluster.secrets:
        assert secret.optional or set(secret.keys) <= ours.generated("secret")[secret.secret]
    names = {(each["kind"], each["metadata"]["name"]) for each in OBJECTS}
    assert {("PersistentVolumeClaim", volume.claim) for volume in cluster.volumes} <= names
    assert ("TrainingRuntime", cluster.runtime) in names


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The manifests without the secrets of this checkout."""
    ignored = shutil.ignore_patterns(".*.env")
    return shutil.copytree(MANIFESTS, tmp_path / "manifests", ignore=ignored)


def settings(file: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in file.read_text().split())


def test_passwords_are_drawn_once(copy: Path) -> None:
    written = write_secrets(copy)
    assert all(is_new for _, is_new in written) and len(written) == 3
    for file, _ in written:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        example = file.parent / f"{file.name.removeprefix('.')}.example"
        assert settings(file).keys() == settings(example).keys()
    before = {file: file.read_text() for file, _ in written}
    server, users = settings(copy / "platform/kfp/.s3.env"), settings(copy / "mlflow/.s3.env")
    assert list(server.values()) == list(users.values()) and len(users["secret_key"]) == 48
    assert users["secret_key"] != settings(copy / "mlflow/.postgres.env")["password"]
    assert not any(is_new for _, is_new in write_secrets(copy))
    assert before == {file: file.read_text() for file in before}
    (copy / "mlflow/.s3.env").unlink()
    with pytest.raises(AutoFormerError, match=r"mlflow/\.s3\.env: missing, while .* they hold the same password"):
        write_secrets(copy)


def test_what_is_drawn_is_known_to_neither_git_nor_the_builder(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("platform/kfp/.s3.env", "mlflow/.s3.env", "mlflow/.postgres.env"):
        command = ["git", "check-ignore", "--quiet", "--no-index", str(MANIFESTS / name)]
        assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    assert "**/.*" in (ROOT / ".dockerignore").read_text().splitlines()
    assert main(["--force"]) == 2 and "unrecognized arguments" in capsys.readouterr().err


def test_an_edit_of_the_settings_or_manifests_makes_no_other_image() -> None:
    """They name the images by digest: were they part of them, each naming would make others."""
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for name in LEFT_OUT:
        assert (ROOT / name).is_dir() and name in ignored
        assert ignored.index(name) > ignored.index(f"!{name.partition('/')[0]}")  # the last pattern that fits decides
        assert not [file for file in image_files() if file.is_relative_to(ROOT / name)]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which has kustomize in it, is not here")
def test_kustomize_makes_the_same_of_them(copy: Path) -> None:
    """Kustomize itself, where it is at hand; what comes from elsewhere is stood in for by the one object we change."""
    write_secrets(copy)
    base = copy / "base"
    base.mkdir()
    (base / "secret.yaml").write_text(
        "apiVersion: v1\nkind: Secret\nmetadata: {name: mlpipeline-minio-artifact}\nstringData: {secretkey: minio123}\n"
    )
    (base / "kustomization.yaml").write_text("namespace: kubeflow\nresources: [secret.yaml]\n")
    kfp = copy / "platform/kfp/kustomization.yaml"
    kfp.write_text(re.sub(r"https://\S+", "../../base", kfp.read_text()))

    def built(folder: str) -> list[Object]:
        command = ["kubectl", "kustomize", str(copy / folder)]
        return list(yaml.safe_load_all(subprocess.run(command, capture_output=True, text=True, check=True).stdout))

    (secret,) = built("platform/kfp")
    assert "minio123" not in str(secret) and set(secret["data"]) == {"accesskey", "secretkey"}
    assert secret["metadata"] == {"name": "mlpipeline-minio-artifact", "namespace": "kubeflow"}
    made = built("mlflow")
    expected = {(each["kind"], each["metadata"]["name"]) for each in OURS["mlflow"].objects}
    expected |= {("Secret", "autoformer-s3"), ("Secret", "autoformer-postgres"), ("ConfigMap", "autoformer-s3")}
    assert {(each["kind"], each["metadata"]["name"]) for each in made} == expected
    assert {each["metadata"]["namespace"] for each in made} == {"kubeflow"}
    for each in made:
        kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which has kustomize in it, is not here")
def test_the_documented_overlay_lets_a_teams_own_account_launch_jobs(copy: Path) -> None:
    """A subject whose namespace stayed `kubeflow` would bind the account of another team, without a word."""
    (overlay,) = re.findall(
        r"^```\n(apiVersion: kustomize.+?)^```", (ROOT / "docs/cluster.md").read_text(), re.M | re.S
    )
    (copy / "team-a").mkdir()
    (copy / "team-a" / "kustomization.yaml").write_text(overlay)
    command = ["kubectl", "kustomize", str(copy / "team-a")]
    made = list(yaml.safe_load_all(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert {each["kind"] for each in made} == {"Role", "RoleBinding", "TrainingRuntime"}
    assert {each["metadata"]["namespace"] for each in made} == {"team-a"}
    (binding,) = (each for each in made if each["kind"] == "RoleBinding")
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "default-editor", "namespace": "team-a"}]
