"""`make submit` against a server that speaks the real paths of KFP's API, over HTTP, with what goes wrong there."""

import copy
import http.server
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import yaml
from background_server import answering_in_background
from compiled import on_a_short_stack
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from kfp_answers import Answers, answers
from kfp_api_server import V2, KfpServer, page, reset, slow, status
from official_layout import write_checkpoint
from s3_server import S3Server
from small import small_space
from started import started
from werkzeug.serving import generate_adhoc_ssl_pair

from autoformer.errors import AutoFormerError
from pipeline.cluster import first_run, follow_run, kfp_access, kfp_client, schedules, submit, workflow_watch
from pipeline.cluster.compile import write_package
from pipeline.cluster.settings import Cluster
from pipeline.cluster.workflow import Workflow
from runtime.common.config import ROOT, load_config
from runtime.storage import S3Uri
from runtime.storage.folders import read_manifest

SECRET = "planted-token-8c1f"
DATA = ["--data", "s3://bucket/images"]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def kfp(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KfpServer]:
    """A server of one user, that wants no token; the client pauses for no time."""
    for name in (
        "KFP_TOKEN",
        "KFP_TOKEN_FILE",
        "KF_PIPELINES_SA_TOKEN_PATH",
        "KFP_HOST",
        "KF_PIPELINES_UI_ENDPOINT",
        "SSL_CERT_FILE",
    ):
        monkeypatch.delenv(name, raising=False)
    for name in ("no_proxy", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path_factory.mktemp("no-cluster") / "config"))
    monkeypatch.setattr(kfp_client, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(follow_run, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(submit, "write_package", _package)
    monkeypatch.setenv("AUTOFORMER_IMAGE", "autoformer:test")
    with KfpServer().serving() as server:
        yield server


_compiled: dict[tuple[str | None, bool], tuple[str, str]] = {}


def _package(out: Path, cluster: Cluster | None = None, fresh: bool = False) -> str:
    """The real package, compiled once for all tests."""
    key = (cluster.model_dump_json() if cluster else None, fresh)
    if key not in _compiled:
        image = on_a_short_stack(write_package, out, cluster, fresh)
        _compiled[key] = (out.read_text(), image)
    text, image = _compiled[key]
    out.write_text(text)
    return image


def run(kfp: KfpServer, *arguments: str) -> int:
    return submit.main(["--host", kfp.host, *arguments])


def refused(kfp: KfpServer, capsys: Capture, *arguments: str, host: str | None = None) -> str:
    """The one line of a refusal."""
    assert submit.main(["--host", host or kfp.host, *arguments]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "Traceback" not in line, line
    return line


# Starting a run


def test_a_run_is_started_with_the_presets_parameters(kfp: KfpServer, capsys: Capture) -> None:
    overrides = "seed=3 search_subnet.limits.max_params_m=0.3"
    assert run(kfp, "--preset", "smoke", "--set", overrides, *DATA) == 0
    (started,) = kfp.runs.values()
    assert started.runtime_config.parameters == {
        "preset": "smoke", "data": "s3://bucket/images", "data_hash": "", "overrides": overrides,
    }  # fmt: skip
    assert kfp.experiments[started.experiment_id].display_name == "autoformer"
    version = kfp.versions[started.pipeline_version_reference.pipeline_version_id]
    assert re.fullmatch(r"autoformer-[0-9a-f]{12}", version.name) and version.description.startswith("source ")
    pipeline = kfp.pipelines[version.pipeline_id]
    assert pipeline.name == "autoformer" and pipeline.description.startswith("Find a vision transformer")
    output = capsys.readouterr().out
    assert f"{kfp.host}/#/runs/details/{started.run_id}" in output.splitlines()
    assert version.name in output and "was there already" not in output


def test_an_equal_version_is_used_again(kfp: KfpServer, capsys: Capture) -> None:
    assert run(kfp, *DATA) == 0 and run(kfp, *DATA) == 0
    assert len(kfp.pipelines) == len(kfp.versions) == len(kfp.experiments) == 1 and len(kfp.runs) == 2
    assert "which was there already" in capsys.readouterr().out
    assert len({each.display_name for each in kfp.runs.values()}) == 2


def test_a_fresh_run_takes_no_task_from_the_cache(kfp: KfpServer, monkeypatch: Any) -> None:
    sent: list[dict[str, Any]] = []

    def seen(out: Path, cluster: Cluster | None = None, fresh: bool = False) -> str:
        image = _package(out, cluster, fresh)
        sent.append(next(yaml.load_all(out.read_text(), yaml.CSafeLoader)))
        return image

    monkeypatch.setattr(submit, "write_package", seen)
    assert run(kfp, *DATA) == run(kfp, "--fresh", *DATA) == 0
    usual, fresh = (
        {name for name, task in package["root"]["dag"]["tasks"].items() if task["cachingOptions"].get("enableCache")}
        for package in sent
    )
    assert "train-supernet" in usual and fresh == set()
    assert len(kfp.versions) == 2


def test_a_params_file_goes_along_whole(kfp: KfpServer, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text((ROOT / "configs/presets/smoke.yaml").read_text().replace("name: smoke", "name: mine"))
    assert run(kfp, "--preset", str(mine), "--set", "seed=7", *DATA) == 0
    (started,) = kfp.runs.values()
    parameters = started.runtime_config.parameters
    assert parameters["overrides"] == "" and started.display_name.startswith("mine ")
    assert load_config(parameters["preset"]) == load_config(str(mine), ["seed=7"])


def test_the_address_of_a_browser_and_of_another_ui(kfp: KfpServer, capsys: Capture, monkeypatch: Any) -> None:
    monkeypatch.setenv("KF_PIPELINES_UI_ENDPOINT", "https://kfp.example.org/")
    assert submit.main(["--host", f"{kfp.host}/#/pipelines", *DATA]) == 0
    assert "\nhttps://kfp.example.org/#/runs/details/" in capsys.readouterr().out


def test_several_users_need_a_namespace(kfp: KfpServer, capsys: Capture) -> None:
    kfp.namespaces = {"mine"}
    assert "name your namespace, NAMESPACE=" in refused(kfp, capsys, *DATA)
    assert "does not let this token do that in the namespace 'other' (403)" in refused_with_token(kfp, capsys, "other")
    assert run(kfp, "--namespace", "mine", *DATA) == 0
    assert {each.namespace for each in (*kfp.pipelines.values(), *kfp.experiments.values())} == {"mine"}


def refused_with_token(kfp: KfpServer, capsys: Capture, namespace: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KFP_TOKEN", SECRET)
        return refused(kfp, capsys, "--namespace", namespace, *DATA)


def test_one_user_has_none(kfp: KfpServer) -> None:
    assert run(kfp, "--namespace", "mine", *DATA) == 0  # the server would refuse one


def a_cluster(folder: Path) -> str:
    """A file of settings like a user's own."""
    text = (ROOT / "configs/cluster/gpu.yaml").read_text().replace("0" * 64, "1" * 64).replace("example", "lab")
    mine = {"namespace": "mine", "service_account": "runner", "volumes": [{"claim": "images", "mount": "/data"}]}
    file = folder / "lab.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(text) | mine))
    return str(file)


def test_a_clusters_settings_go_along(kfp: KfpServer, capsys: Capture, tmp_path: Path) -> None:
    kfp.namespaces = {"mine"}
    kfp.story = [FAILED]
    cluster = a_cluster(tmp_path)
    assert run(kfp, "--cluster", cluster, "--data", "/data/images", "--wait") == 1
    assert "kubectl -n kubeflow logs autoformer-n9pj2-" in capsys.readouterr().err  # where the workflow says it is
    (started,) = kfp.runs.values()
    assert started.service_account == "runner"
    (version,) = kfp.versions.values()
    executor = version.pipeline_spec["deploymentSpec"]["executors"]["exec-train-supernet"]["container"]
    assert executor["image"].startswith("registry.lab.com/autoformer-training@sha256:1111")
    assert run(kfp, "--cluster", cluster, "--every", "1d", *DATA) == 0
    (recurring,) = kfp.recurring.values()
    assert (recurring.service_account, recurring.namespace) == ("runner", "mine")


def test_the_settings_of_a_cluster_are_looked_at_first(kfp: KfpServer, capsys: Capture, tmp_path: Path,
                                                       monkeypatch: Any) -> None:  # fmt: skip
    assert "CLUSTER=gpu: still the example's: images.training, images.launcher" in refused(
        kfp, capsys, "--cluster", "gpu", *DATA
    )
    line = refused(kfp, capsys, "--cluster", a_cluster(tmp_path), "--data", "/images")
    assert "DATA=/images: on no volume of" in line and "they are at /data" in line
    monkeypatch.delenv("AUTOFORMER_IMAGE")
    assert "CLUSTER is missing" in refused(kfp, capsys, *DATA)
    assert kfp.requests == []


def test_the_order_of_a_packages_keys_makes_no_other_version(kfp: KfpServer, monkeypatch: Any) -> None:
    def turned(out: Path, cluster: Cluster | None = None, fresh: bool = False) -> str:
        image = _package(out, cluster, fresh)
        documents = list(yaml.load_all(out.read_text(), yaml.CSafeLoader))
        out.write_text(yaml.dump_all([dict(reversed(each.items())) for each in documents], sort_keys=False))
        return image

    assert run(kfp, *DATA) == 0
    monkeypatch.setattr(submit, "write_package", turned)
    assert run(kfp, *DATA) == 0
    assert len(kfp.versions) == 1


# Tokens


def test_a_token_comes_from_the_environment_or_a_file(kfp: KfpServer, monkeypatch: Any, tmp_path: Path) -> None:
    kfp.token = SECRET
    monkeypatch.setenv("KFP_TOKEN", f" {SECRET}\n")
    assert run(kfp, *DATA) == 0
    monkeypatch.delenv("KFP_TOKEN")
    (tmp_path / "token").write_text(f"{SECRET}\n")
    monkeypatch.setenv("KFP_TOKEN_FILE", str(tmp_path / "token"))
    assert run(kfp, *DATA) == 0
    monkeypatch.delenv("KFP_TOKEN_FILE")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    assert run(kfp, *DATA) == 0
    monkeypatch.delenv("KF_PIPELINES_SA_TOKEN_PATH")
    monkeypatch.setattr(kfp_access, "TOKEN_FILE", str(tmp_path / "token"))
    assert run(kfp, *DATA) == 0
    assert set(kfp.authorizations) == {f"Bearer {SECRET}"}


def test_a_projected_token_that_was_renewed_is_read_again(kfp: KfpServer, monkeypatch: Any, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first")
    monkeypatch.setenv("KFP_TOKEN_FILE", str(file))
    client = kfp_client.KfpClient(kfp.host)
    file.write_text("second")
    client.experiment("autoformer")
    assert kfp.authorizations[0] == "Bearer first" and kfp.authorizations[-1] == "Bearer second"


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "the token cannot be read"), ("", "not a token"), (f"{SECRET}\nX-Header: 1", "not a token")],
)
def test_what_is_no_token(content: str | None, message: str, kfp: KfpServer, capsys: Capture, tmp_path: Path,
                          monkeypatch: Any) -> None:  # fmt: skip
    if content is not None:
        (tmp_path / "token").write_text(content)
    monkeypatch.setenv("KFP_TOKEN_FILE", str(tmp_path / "token"))
    line = refused(kfp, capsys, *DATA)
    assert message in line and str(tmp_path / "token") in line and SECRET not in line
    assert kfp.requests == []


def test_a_token_is_told_to_nobody(kfp: KfpServer, capsys: Capture, monkeypatch: Any) -> None:
    monkeypatch.setenv("KFP_TOKEN", SECRET)
    kfp.token = "another"
    line = refused(kfp, capsys, *DATA)
    assert "refuses the token (401)" in line and "may have expired" in line and SECRET not in line
    kfp.token = None
    kfp.fail("POST", f"{V2}/runs", status(400, json.dumps({"message": f"no such user: {SECRET}"})))
    line = refused(kfp, capsys, *DATA)
    assert "no such user: …" in line and SECRET not in line


def test_nothing_comes_from_a_file_or_a_login_of_another_server(kfp: KfpServer, tmp_path: Path,
                                                                monkeypatch: Any) -> None:  # fmt: skip
    context = tmp_path / "context.json"
    content = {
        "namespace": "other", "client_authentication_cookie": "session=other",
        "client_authentication_header_name": "Authorization", "client_authentication_header_value": "other",
    }  # fmt: skip
    context.write_text(json.dumps(content))
    monkeypatch.setattr("kfp.Client._LOCAL_KFP_CONTEXT", str(context))
    monkeypatch.setenv("KF_PIPELINES_IAP_OAUTH2_CLIENT_ID", "someone")
    assert run(kfp, *DATA) == 0
    assert set(kfp.authorizations) == set(kfp.cookies) == {None}
    assert json.loads(context.read_text()) == content and list(tmp_path.iterdir()) == [context]
    kfp.namespaces = {"mine"}
    assert run(kfp, "--namespace", "mine", *DATA) == 0
    assert json.loads(context.read_text()) == content


# Servers that are none


def test_a_token_is_wanted(kfp: KfpServer, capsys: Capture) -> None:
    kfp.token = SECRET
    assert "wants a token (401); put one into KFP_TOKEN" in refused(kfp, capsys, *DATA)


def test_nobody_is_there(kfp: KfpServer, capsys: Capture) -> None:
    line = refused(kfp, capsys, *DATA, host="http://127.0.0.1:9")
    assert "http://127.0.0.1:9: nothing answers there" in line and "port-forward" in line
    assert "no host of that name" in refused(kfp, capsys, *DATA, host="http://kfp.invalid")


def test_no_kfp(kfp: KfpServer, capsys: Capture) -> None:
    kfp.speaks_v2 = False
    assert "no KFP API: /apis/v2beta1/healthz is not there (404)" in refused(kfp, capsys, *DATA)
    kfp.old_version = "1.8.5"
    assert "KFP 1.8, without the API v2beta1; 2.17 or later is needed" in refused(kfp, capsys, *DATA)


def test_a_login_page(kfp: KfpServer, capsys: Capture) -> None:
    kfp.fail("GET", f"{V2}/healthz", page)
    assert "a web page answers, not KFP's API: a login page" in refused(kfp, capsys, *DATA)
    kfp.fail("GET", f"{V2}/healthz", status(302, Location=f"{kfp.host}/login"))
    kfp.fail("GET", "/login", page)
    assert "a web page answers" in refused(kfp, capsys, *DATA)


def test_an_answer_that_is_none(kfp: KfpServer, capsys: Capture) -> None:
    kfp.fail("GET", f"{V2}/healthz", status(200, "[1, 2"))
    kfp.fail("GET", f"{V2}/healthz", status(500, "<html>Internal error</html>", "text/html"))
    assert "is not one of KFP's API" in refused(kfp, capsys, *DATA)
    assert "answers 500: INTERNAL SERVER ERROR" in refused(kfp, capsys, *DATA)


def test_tls(kfp: KfpServer, capsys: Capture) -> None:
    line = refused(kfp, capsys, *DATA, host=kfp.host.replace("http://", "https://"))
    assert "TLS fails (" in line and "http:// is for a server without TLS" in line


def test_an_authority_of_ones_own(kfp: KfpServer, capsys: Capture, tmp_path: Path, monkeypatch: Any) -> None:
    cert, key = generate_adhoc_ssl_pair("localhost")
    (tmp_path / "cert.pem").write_bytes(cert.public_bytes(Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with KfpServer().serving((str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))) as server:
        server.host = server.host.replace("127.0.0.1", "localhost")
        line = refused(server, capsys, *DATA)
        assert "TLS fails (certificate verify failed: " in line and "SSL_CERT_FILE names the certificate" in line
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        assert run(server, *DATA) == 0 and len(server.runs) == 1


def test_the_way_through_a_proxy(kfp: KfpServer, monkeypatch: Any) -> None:
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("http_proxy", kfp.host)  # a proxy gets whole addresses
    assert submit.main(["--host", "http://kfp.internal", *DATA]) == 0 and len(kfp.runs) == 1


def test_an_older_server_is_told_of(kfp: KfpServer, capsys: Capture) -> None:
    kfp.old_version = "2.4.1"
    assert run(kfp, *DATA) == 0
    assert "KFP 2.4; the package is made for 2.17" in capsys.readouterr().err
    kfp.is_api = False  # the UI, which names the version otherwise
    assert run(kfp, *DATA) == 0
    assert "KFP 2.4; the package is made for 2.17" in capsys.readouterr().err


def test_a_server_that_is_slow(kfp: KfpServer, capsys: Capture, monkeypatch: Any) -> None:
    monkeypatch.setattr(kfp_client, "TIMEOUT_SECONDS", (1, 0.1))
    monkeypatch.setattr(kfp_client, "RETRIES", 0)
    kfp.fail("GET", f"{V2}/healthz", slow(0.5))
    assert "no answer within 0.1 s" in refused(kfp, capsys, *DATA)


# Blips


def test_questions_are_repeated(kfp: KfpServer) -> None:
    kfp.fail("GET", f"{V2}/healthz", status(503), times=2)
    kfp.fail("GET", f"{V2}/pipelines", reset)
    assert run(kfp, *DATA) == 0


@pytest.mark.parametrize("after", [False, True], ids=["before it was read", "after it was done"])
@pytest.mark.parametrize("path", ["/pipelines", "/pipelines/upload_version", "/experiments", "/runs"])
def test_a_broken_connection_makes_nothing_twice(kfp: KfpServer, path: str, after: bool) -> None:
    kfp.fail("POST", f"{V2}{path}", reset, after=after)
    assert run(kfp, *DATA) == 0
    for made in (kfp.pipelines, kfp.versions, kfp.experiments, kfp.runs):
        assert len(made) == 1
    assert kfp.request_count("POST", f"{V2}{path}") == (1 if after else 2)


def test_a_server_that_stays_away(kfp: KfpServer, capsys: Capture) -> None:
    kfp.fail("POST", f"{V2}/runs", reset, times=2)
    assert "the connection broke off" in refused(kfp, capsys, *DATA)
    assert kfp.runs == {}


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "data/fashion-mnist"], "the steps run elsewhere, and know no folder of this machine"),
        ([], "DATA is missing"),
        (["--data", "s3://"], "expected s3://bucket/folder"),
        (["--cluster", "standalonee"], "did you mean 'standalone'?; DATA is missing"),
        (["--cluster", "standalonee", "--preset", "smokee", "--data", "s3://"], "submit: no cluster 'standalonee'"),
        (["--preset", "smokee", "--data", "s3://"], "submit: no preset 'smokee'"),
        (["--preset", "smokee", *DATA], "did you mean 'smoke'?"),
        (["--set", "train_supernet.epochz=3", *DATA], "unknown key 'train_supernet.epochz'"),
        (["--set", "search_subnet.limits.max_params_m=0.001", *DATA], "less than the smallest subnet"),
        (["--every", "0 3 * *", *DATA], "minute, hour, day, month, weekday"),
        (["--every", "6h", "--wait", *DATA], "a recurring run has no end to wait for"),
        (["--hst", "x"], "unrecognized arguments: --hst"),
        (["--experiment", " ", *DATA], "EXPERIMENT is empty"),
        (["--experiment", "a\nb", *DATA], "EXPERIMENT=a b: a name holds no line break"),
        (["--experiment", "é" * 129, *DATA], "EXPERIMENT: 129 characters; KFP takes 128"),
        (["--data-hash", "abc", *DATA], "DATA_HASH=abc: expected a sha256"),
        (["--run", "a", "--terminate", "b"], "RUN and TERMINATE: one of them at a time"),
        (["--run", "a", "--every", "6h", *DATA], "RUN and EVERY: one of them at a time"),
        (["--run", ""], "RUN=: not the id of a run"),
        (["--run", "../../x"], "RUN=../../x: not the id of a run"),
        (["--terminate", "my run"], "TERMINATE=my run: not the id of a run"),
    ],
)
def test_bad_input_asks_nobody(arguments: list[str], message: str, kfp: KfpServer, capsys: Capture) -> None:
    assert message in refused(kfp, capsys, *arguments)
    assert kfp.requests == []


def test_a_supernet_of_another_space_that_is_here_is_refused(kfp: KfpServer, capfd: Capture, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "small.pth", small_space())
    assert run(kfp, "--set", f"train_supernet.adopt.checkpoint={checkpoint}", *DATA) == 2
    error = capfd.readouterr().err
    assert f"{checkpoint}: " in error and "is it a checkpoint of" in error and error.count("\n") == 1
    assert kfp.requests == []


def test_all_that_is_missing_is_named_at_once(kfp: KfpServer, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUTOFORMER_IMAGE")
    assert submit.main(["--preset", "smoke"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert [error.count(f"{name} is missing") for name in ("HOST", "CLUSTER", "DATA")] == [1, 1, 1]
    assert submit.main(["--run", "a"]) == 2  # needs no more than the server
    error = capsys.readouterr().err
    assert "HOST is missing" in error and "CLUSTER" not in error and "DATA" not in error


def test_a_slash_at_the_end_of_the_data_makes_no_other_task_for_the_cache(kfp: KfpServer) -> None:
    for data in ("s3://bucket/images", "s3://bucket/images/", "s3://bucket//images"):
        assert run(kfp, "--preset", "smoke", "--data", data) == 0
    for data in ("/data/images", "/data/images//"):
        assert run(kfp, "--preset", "smoke", "--data", data) == 0
    found = [each.runtime_config.parameters["data"] for each in kfp.runs.values()]
    assert found == ["s3://bucket/images"] * 3 + ["/data/images"] * 2


def test_a_run_that_has_ended_is_not_terminated(kfp: KfpServer, capsys: Capture) -> None:
    assert run(kfp, "--preset", "smoke", *DATA) == 0
    (run_id,) = kfp.runs
    kfp.runs[run_id].state = "FAILED"
    capsys.readouterr()
    assert f"the run {run_id} has ended already: failed" in refused(kfp, capsys, "--terminate", run_id)
    kfp.runs[run_id].state = "CANCELING"  # KFP would refuse another request
    assert run(kfp, "--terminate", run_id) == 0
    assert capsys.readouterr().out == f"run {run_id}: is being terminated already\n"
    assert kfp.terminated == []


def test_a_run_whose_workflow_was_deleted_cannot_be_terminated(kfp: KfpServer, capsys: Capture) -> None:
    """The message is that of KFP 2.17.0."""
    assert run(kfp, *DATA) == 0
    (run_id,) = kfp.runs
    message = (
        f"Failed to terminate a run: InternalServerError: Failed to terminate run {run_id} due to error terminating "
        "its workflow: Failed to terminate workflow autoformer-sq4tp due to patching error: Failed to terminate "
        "workflow autoformer-sq4tp due to patching error after multiple retries: Failed to terminate workflow "
        'autoformer-sq4tp due to patching error: workflows.argoproj.io "autoformer-sq4tp" not found'
    )
    kfp.fail("POST", f"{V2}/runs/.*", status(500, json.dumps({"message": message})))
    capsys.readouterr()
    line = refused(kfp, capsys, "--terminate", run_id)
    assert f"the run {run_id} cannot be ended: Kubernetes has no workflow of it any more" in line


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("127.0.0.1:8080", "expected http://… or https://…"),
        ("ftp://kfp", "expected http"),
        ("http://", "expected http"),
        ("http://[::1", "expected http"),
        ("http://kfp:port", "expected http"),
        ("https://me:secret@kfp", "an address without user, password"),
        ("", "HOST is missing"),
    ],
)
def test_bad_addresses(host: str, message: str, capsys: Capture, monkeypatch: Any) -> None:
    monkeypatch.delenv("KFP_HOST", raising=False)
    assert submit.main(["--host", host, *DATA]) == 2
    line = capsys.readouterr().err
    assert message in line and line.count("\n") == 1 and "secret" not in line


# Following


def train_supernet_starts() -> str:
    (task,) = (each for each in answers("succeeded").v2["run_details"]["task_details"]
               if each.get("display_name") == "train-supernet")  # fmt: skip
    return str(task["state_history"][0]["update_time"][11:19])


GOOD = [answers("succeeded").at(time) for time in ("02:56:53", "02:57:15", train_supernet_starts())] + [
    answers("succeeded")
]
FAILED = answers("refused")
POD = "autoformer-n9pj2-metadata-0-2-retry-system-container-impl-1267749897"
LOG = """\
I1127 03:05:19.101 launcher_v2.go:90] input ComponentSpec
KFP executor: loading module
resolve_config: reading the data
resolve_config: s3://autoformer/data/nothing: no such folder
F1127 03:05:22.301 main.go:79] failed to execute component: exit status 2
"""


def test_a_run_is_followed_to_its_end(kfp: KfpServer, capsys: Capture) -> None:
    kfp.story = GOOD
    assert run(kfp, "--wait", *DATA) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [re.sub(r"\d+ s$", "", line) for line in lines[3:-1]] == [
        "resolve-config: runs", "resolve-config: done, ", "prepare-data: done, ", "train-supernet: runs",
        *(f"{task}: done, " for task in follow_run.TASKS[2:]),
    ]  # fmt: skip
    assert lines[-1].startswith("the run succeeded: http")


def test_a_run_of_another_pipeline_is_not_taken_for_one_of_this(kfp: KfpServer, capsys: Capture) -> None:
    assert run(kfp, *DATA) == 0
    (run_id,) = kfp.runs
    kfp.runs[run_id].state = "SUCCEEDED"
    assert run(kfp, "--run", run_id) == 0
    assert "the run succeeded, with no task of this pipeline: " in capsys.readouterr().out


def test_a_task_whose_end_comes_after_that_of_the_run_is_reported(kfp: KfpServer, capsys: Capture) -> None:
    """As KFP 2.17 answers for some seconds: the run has succeeded, its last task still runs."""
    late = copy.deepcopy(answers("succeeded"))
    (last,) = (task for task in late.v2["run_details"]["task_details"] if task.get("display_name") == "register-model")
    last["state"] = "RUNNING"
    kfp.story = [*GOOD[:-1], late, answers("succeeded")]
    assert run(kfp, "--wait", *DATA) == 0
    assert any(line.startswith("register-model: done, ") for line in capsys.readouterr().out.splitlines())


def test_a_task_from_the_cache_is_reported_as_such(kfp: KfpServer, capsys: Capture) -> None:
    kfp.story = [answers("cached")]
    assert run(kfp, "--wait", *DATA) == 0
    lines = capsys.readouterr().out.splitlines()
    cached = [line.partition(":")[0] for line in lines if line.endswith(": taken from the cache")]
    assert cached == ["prepare-data", "train-supernet", "search-subnet", "retrain-subnet", "evaluate-subnet"]
    assert any(line.startswith("register-model: done, ") for line in lines)


@pytest.mark.parametrize("by", ["the UI", "the API"])
def test_a_failed_run_ends_with_task_reason_pod_and_log(by: str, kfp: KfpServer, capsys: Capture) -> None:
    kfp.story, kfp.logs, kfp.has_ui = [FAILED], {POD: LOG}, by == "the UI"
    assert run(kfp, "--wait", *DATA) == 1
    output = capsys.readouterr()
    assert "resolve-config: failed" in output.out.splitlines()
    (run_id,) = kfp.runs
    log = f"kubectl -n kubeflow logs {POD} -c main"
    assert output.err.splitlines() == [
        f"the log of resolve-config ends with ({log}):",
        "  KFP executor: loading module",
        "  resolve_config: reading the data",
        "  resolve_config: s3://autoformer/data/nothing: no such folder",
        "submit: resolve-config failed: s3://autoformer/data/nothing: no such folder; main: Error (exit code 1); "
        f"its log: {log}; {kfp.host}/#/runs/details/{run_id}",
    ]


def write_kubeconfig(port: int) -> None:
    cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "another"}}
    user = {"name": "u", "user": {}}
    content = {"clusters": [cluster], "contexts": [context], "users": [user], "current-context": "c"}
    Path(os.environ["KUBECONFIG"]).write_text(yaml.safe_dump(content))


def test_a_log_comes_from_kubernetes_where_kfp_has_none(kfp: KfpServer, capsys: Capture, monkeypatch: Any) -> None:
    kfp.story = [FAILED]
    asked: list[tuple[str, str]] = []

    class Cluster(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            asked.append((parts.path, dict(parse_qsl(parts.query))["container"]))
            text = "".join(f"2026-11-27T03:05:20.1Z {line}\n" for line in LOG.splitlines()).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None: ...

    with answering_in_background(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Cluster)) as server:
        write_kubeconfig(server.server_port)
        assert run(kfp, "--wait", *DATA) == 1
    assert asked == [(f"/api/v1/namespaces/kubeflow/pods/{POD}/log", "main")]
    assert "resolve-config failed: s3://autoformer/data/nothing: no such folder; " in capsys.readouterr().err


class Workflows(http.server.BaseHTTPRequestHandler):
    """The workflows of a Kubernetes API server 1.36, without their content."""

    present: dict[str, str]  # name -> run
    asked: list[str]

    def do_GET(self) -> None:
        name = urlsplit(self.path).path.partition("/workflows")[2].lstrip("/")
        self.asked.append(name)
        objects = [{"kind": "PartialObjectMetadata", "metadata": {"name": each, "labels": {"pipeline/runid": run}}}
                   for each, run in self.present.items()]  # fmt: skip
        found = [each for each in objects if each["metadata"]["name"] == name]
        gone = {"kind": "Status", "message": f'workflows.argoproj.io "{name}" not found', "code": 404}
        answer = {"kind": "PartialObjectMetadataList", "items": objects or None} if not name else [*found, gone][0]
        text = json.dumps(answer).encode()
        self.send_response(404 if answer is gone else 200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def workflows() -> Iterator[type[Workflows]]:
    """The Kubernetes of KUBECONFIG, which is asked without a pause."""

    class Own(Workflows):
        present, asked = {}, []

    with answering_in_background(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Own)) as server:
        write_kubeconfig(server.server_port)
        yield Own


RUNNING = GOOD[1]
WORKFLOW = str(RUNNING.workflow["metadata"]["name"])


@pytest.mark.parametrize("seen_there", [True, False])
def test_a_workflow_that_was_deleted_in_kubernetes_ends_the_following(
    kfp: KfpServer, capsys: Capture, monkeypatch: Any, workflows: type[Workflows], seen_there: bool
) -> None:
    """It is known by an earlier look, or by another workflow, whose run KFP has."""
    monkeypatch.setattr(workflow_watch, "QUIET_SECONDS", -1.0)
    monkeypatch.setattr(follow_run, "PENDING_SECONDS", 0.0)
    kfp.story = [RUNNING]
    assert run(kfp, *DATA) == 0
    (run_id,) = kfp.runs
    if seen_there:
        workflows.present[WORKFLOW] = run_id
        has_workflow = workflow_watch.KubernetesApi.has_workflow

        def once(api: Any, name: str) -> bool:
            found = has_workflow(api, name)
            workflows.present.clear()
            return found

        monkeypatch.setattr(workflow_watch.KubernetesApi, "has_workflow", once)
    else:
        workflows.present["another"] = run_id
    capsys.readouterr()
    line = refused(kfp, capsys, "--run", run_id)
    assert f"Kubernetes has no workflow '{WORKFLOW}' in the namespace 'kubeflow' any more: it was deleted" in line
    assert workflows.asked.count(WORKFLOW) == (3 if seen_there else 2)


@pytest.mark.parametrize("others", [{}, {"another": "run-of-another-kfp"}])
def test_a_kubernetes_that_is_not_kfps_own_ends_nothing(
    kfp: KfpServer, capsys: Capture, monkeypatch: Any, workflows: type[Workflows], others: dict[str, str]
) -> None:
    monkeypatch.setattr(workflow_watch, "QUIET_SECONDS", -1.0)
    monkeypatch.setattr(follow_run, "PENDING_SECONDS", 0.0)
    kfp.story = [RUNNING] * 6 + GOOD
    workflows.present |= others
    assert run(kfp, "--wait", *DATA) == 0
    assert workflows.asked.count(WORKFLOW) >= 5


def test_a_kubernetes_that_is_not_there_is_not_asked_again(kfp: KfpServer, monkeypatch: Any) -> None:
    monkeypatch.setattr(workflow_watch, "QUIET_SECONDS", -1.0)
    monkeypatch.setattr(follow_run, "PENDING_SECONDS", 0.0)
    asked: list[Any] = []
    connect = workflow_watch.KubernetesApi.connect
    monkeypatch.setattr(workflow_watch.KubernetesApi, "connect", lambda *args: asked.append(args) or connect(*args))
    kfp.story = [RUNNING] * 4 + GOOD
    assert run(kfp, "--wait", *DATA) == 0
    assert len(asked) == 1


def test_a_namespace_that_a_server_of_one_team_does_not_use_is_reported(kfp: KfpServer, capsys: Capture) -> None:
    kfp.story = GOOD
    assert run(kfp, "--wait", "--namespace", "team-a", *DATA) == 0
    note = "the run is in the namespace 'kubeflow', the only one of this server, not in 'team-a'\n"
    assert capsys.readouterr().out.count(note) == 1
    assert run(kfp, "--wait", "--namespace", "kubeflow", *DATA) == 0
    assert "the only one" not in capsys.readouterr().out


def test_a_run_whose_first_pod_kubernetes_refuses_ends_with_its_reason(kfp: KfpServer, capsys: Capture) -> None:
    kfp.story = [answers("no_service_account")]
    assert run(kfp, "--wait", *DATA) == 1
    line = capsys.readouterr().err
    assert "submit: the run failed: pods " in line and 'serviceaccount "nosuch" not found; http' in line
    assert "kubectl" not in line and line.count("\n") == 1


def test_without_a_log_the_command_that_prints_it_is_given(kfp: KfpServer, capsys: Capture) -> None:
    kfp.story = [FAILED]
    assert run(kfp, "--wait", *DATA) == 1
    line = capsys.readouterr().err
    assert line.startswith(
        "submit: resolve-config failed: main: Error (exit code 1); its log: kubectl -n kubeflow logs"
    )
    assert line.count("\n") == 1


def test_a_server_without_workflows_leaves_the_logs_of_the_run(kfp: KfpServer, capsys: Capture) -> None:
    kfp.story, kfp.has_v1_runs = [FAILED], False
    assert run(kfp, "--wait", *DATA) == 1
    (run_id,) = kfp.runs
    line = capsys.readouterr().err
    assert line.startswith("submit: resolve-config failed: no reason given; its logs: kubectl -n kubeflow logs ")
    assert f"-l pipeline/runid={run_id} -c main" in line


@pytest.mark.parametrize("moments", [["03:12:12"], []], ids=["seen while it lasted", "seen after its end"])
def test_a_terminated_run_is_reported_as_such(moments: list[str], kfp: KfpServer, capsys: Capture) -> None:
    """KFP ends it as FAILED."""
    ended = answers("terminated")
    kfp.story = [*(ended.at(moment) for moment in moments), ended]
    assert ended.v2["state"] == "FAILED"
    assert run(kfp, "--wait", *DATA) == 1
    output = capsys.readouterr()
    assert output.out.splitlines().count("the run is being terminated") == 1
    assert output.err.startswith("submit: the run was terminated: http")


def follow_three_attempts(kfp: KfpServer, monkeypatch: Any) -> Answers:
    """Let the server tell of a step that fails three times."""
    retried = answers("retried_and_failed")
    monkeypatch.setattr(follow_run, "TASKS", ("fail",))
    starts = sorted(each["state_history"][0]["update_time"][11:19]
                    for each in retried.v2["run_details"]["task_details"]
                    if each["display_name"].startswith("executor("))  # fmt: skip
    kfp.story = [*(retried.at(time) for time in starts), retried]
    return retried


def test_every_further_attempt_of_a_task_is_reported(kfp: KfpServer, capsys: Capture, monkeypatch: Any) -> None:
    follow_three_attempts(kfp, monkeypatch)
    assert run(kfp, "--wait", *DATA) == 1
    output = capsys.readouterr()
    assert [line for line in output.out.splitlines() if line.startswith("fail: ")] == [
        "fail: runs", "fail: runs, attempt 2", "fail: runs, attempt 3", "fail: failed, attempt 3",
    ]  # fmt: skip
    assert "fail failed in 3 attempts: main: Error (exit code 1); No more retries left; " in output.err


def test_a_further_attempt_is_reported_with_the_reason_of_the_one_before(
    kfp: KfpServer, capsys: Capture, monkeypatch: Any
) -> None:
    """Bad input is tried again as anything else is: KFP knows no exit codes."""
    retried = follow_three_attempts(kfp, monkeypatch)
    pods = Workflow(retried.workflow).failed_pods("fail")
    assert len(pods) == 3
    kfp.logs = {
        pod: LOG.replace("resolve_config", "fail").replace("nothing", f"nothing-{n}") for n, pod in enumerate(pods)
    }
    assert run(kfp, "--wait", *DATA) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "fail: runs, attempt 2 (the attempt before: s3://autoformer/data/nothing-0: no such folder)" in lines
    assert "fail: runs, attempt 3 (the attempt before: s3://autoformer/data/nothing-1: no such folder)" in lines


NOT_ENOUGH = "Unschedulable: 0/1 nodes are available: 1 Insufficient cpu"
PENDING = {  # of recorded workflows -> what is printed
    f"{NOT_ENOUGH}. no new claims to deallocate, preemption: …": NOT_ENOUGH,
    'CreateContainerConfigError: secret "autoformer-s3" not found': None,
    'ImagePullBackOff: Back-off pulling image "registry.lab.com/x": ErrImagePull: not found': None,
    "ContainerCreating": "",
    "PodInitializing": "",
    "ErrImagePull: failed to resolve image": "",
}


@pytest.mark.parametrize("message", PENDING)
def test_a_pod_that_cannot_start_is_reported_once(kfp: KfpServer, capsys: Capture, monkeypatch: Any,
                                                  message: str) -> None:  # fmt: skip
    """As on a node of 2 cores that is asked for 2: the task counts as running, and nothing else says so."""
    waiting = copy.deepcopy(answers("succeeded").at(train_supernet_starts()))
    nodes = waiting.workflow["status"]["nodes"]
    newest = max((node for node in nodes.values() if node["type"] == "Pod"), key=lambda node: node["startedAt"])
    (top,) = (node["name"] for node in nodes.values() if node["displayName"] == "train-supernet")
    newest |= {"name": f"{top}(0).executor(0)", "phase": "Pending", "message": message}
    kfp.story = [*GOOD[:2], waiting, waiting, answers("succeeded")]
    monkeypatch.setattr(follow_run, "PENDING_SECONDS", 0.0)
    assert run(kfp, "--wait", *DATA) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "its pod waits" in line]
    expected = message if PENDING[message] is None else PENDING[message]
    assert lines == ([f"train-supernet: its pod waits: {expected}"] if expected else [])


KUBECTL = """\
#!/bin/sh
case "$*" in
  *"get deployment"*) echo deployment.apps/ml-pipeline ;;
  *"get secret"*) echo '{"data": {"access_key": "a2V5", "secret_key": "c2VjcmV0"}}' ;;
  *svc/ml-pipeline-ui*) echo "Forwarding from 127.0.0.1:UI -> 3000"; exec sleep 60 ;;
  *svc/seaweedfs*) echo "Forwarding from 127.0.0.1:S3 -> 8333"; exec sleep 60 ;;
  *) exit 1 ;;
esac
"""


def test_a_first_run_finds_its_own_ways_into_the_cluster(
    kfp: KfpServer, s3: S3Server, fashion_mnist: Path, capsys: Capture, tmp_path: Path, monkeypatch: Any
) -> None:
    ports = {"UI": kfp.host.rpartition(":")[2], "S3": s3.endpoint.rpartition(":")[2]}
    script = tmp_path / "kubectl"
    script.write_text(re.sub("UI|S3", lambda found: ports[found[0]], KUBECTL))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(first_run, "DATA", s3.uri("fashion-mnist"))
    kfp.story = [FAILED]
    assert first_run.main(["--cluster", a_cluster(tmp_path)]) == 1
    (started,) = kfp.runs.values()
    assert started.runtime_config.parameters["data"] == s3.uri("fashion-mnist")
    assert {file.name for file in read_manifest(S3Uri.parse(s3.uri("fashion-mnist")))[0]} >= {
        "train-images-idx3-ubyte.gz"
    }
    script.write_text("#!/bin/sh\necho 'The connection to the server was refused' >&2; exit 1\n")
    assert first_run.main(["--cluster", a_cluster(tmp_path)]) == 2
    assert "connection to the server was refused; is the platform there?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cluster", "standalone"], "CLUSTER=standalone: still the example's: images.training"),
        (["--cluster", "mine", "--preset", "smokee"], "did you mean 'smoke'?"),
        (["--cluster", "mine"], "the secret 'autoformer-s3' in 'mine' has no secret_key"),
    ],
)
def test_a_first_run_uploads_nothing_where_settings_or_keys_are_wrong(
    arguments: list[str], message: str, kfp: KfpServer, capsys: Capture, tmp_path: Path, monkeypatch: Any
) -> None:
    script = tmp_path / "kubectl"
    without = KUBECTL.replace('"secret_key"', '"another"')
    assert without != KUBECTL
    script.write_text(re.sub("UI|S3", kfp.host.rpartition(":")[2], without))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(first_run, "upload_folder", None)
    mine = a_cluster(tmp_path)
    assert first_run.main([mine if word == "mine" else word for word in arguments]) == 2
    line = capsys.readouterr().err
    assert message in line and line.count("\n") == 1


def test_a_server_that_is_away_for_a_while_ends_nothing(kfp: KfpServer, capsys: Capture, monkeypatch: Any) -> None:
    monkeypatch.setattr(kfp_client, "RETRIES", 0)
    kfp.story = GOOD
    for what in (reset, status(503), status(500), reset):
        kfp.fail("GET", f"{V2}/runs/.*", what)
    assert run(kfp, "--wait", *DATA) == 0
    assert capsys.readouterr().out.count("the run continues; asking again") == 1


def test_a_server_that_is_away_for_too_long(kfp: KfpServer, capsys: Capture, monkeypatch: Any) -> None:
    monkeypatch.setattr(kfp_client, "RETRIES", 0)
    monkeypatch.setattr(follow_run, "OUTAGE_SECONDS", 0.05)
    kfp.story = GOOD
    kfp.fail("GET", f"{V2}/runs/.*", reset, times=1000)
    line = refused(kfp, capsys, "--wait", *DATA)
    (run_id,) = kfp.runs
    assert f"the connection broke off; the run continues: {kfp.host}/#/runs/details/{run_id}; `make submit " in line


def test_a_token_that_expires_meanwhile(kfp: KfpServer, capsys: Capture, monkeypatch: Any) -> None:
    monkeypatch.setenv("KFP_TOKEN", SECRET)
    kfp.story = GOOD
    kfp.fail("GET", f"{V2}/runs/.*", status(401, json.dumps({"message": "token is expired"})))
    line = refused(kfp, capsys, "--wait", *DATA)
    assert "refuses the token (401); it may have expired" in line and "the run continues: " in line


def test_a_run_is_followed_again_and_ended(kfp: KfpServer, capsys: Capture) -> None:
    assert run(kfp, *DATA) == 0
    (run_id,) = kfp.runs
    kfp.story = GOOD
    assert run(kfp, "--run", run_id) == 0
    assert "register-model: done, " in capsys.readouterr().out
    kfp.story = GOOD[-2:-1]
    assert run(kfp, "--terminate", run_id) == 0 and kfp.terminated == [run_id]
    assert "Run gone not found" in refused(kfp, capsys, "--run", "gone")
    assert "Run gone not found" in refused(kfp, capsys, "--terminate", "gone")


def test_ctrl_c_leaves_the_run_running(kfp: KfpServer) -> None:
    assert run(kfp, *DATA) == 0
    (run_id,) = kfp.runs
    kfp.story = [answers("succeeded").at("02:57:15")]
    command = [sys.executable, "-m", "pipeline.cluster.submit", "--host", kfp.host, "--run", run_id]
    with started(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "resolve-config: runs\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors == (
        f"submit: stopped by SIGINT; the run continues: {kfp.host}/#/runs/details/{run_id}; `make submit "
        f"HOST={kfp.host} RUN={run_id}` follows it, TERMINATE={run_id} ends it\n"
    )
    assert kfp.terminated == []


# Recurring runs


def test_a_recurring_run_takes_the_place_of_the_former(kfp: KfpServer, capsys: Capture) -> None:
    assert run(kfp, "--every", "0 3 * * 1", *DATA) == 0
    (first,) = kfp.recurring.values()
    assert first.trigger.cron_schedule.cron == "0 0 3 * * 1"  # seconds in front: at 3, not once an hour
    assert (first.display_name, first.mode, first.max_concurrency, first.no_catchup) == ("demo", "ENABLE", "1", True)
    assert first.runtime_config.parameters["data_hash"] == ""  # each run takes it anew, or none would see new images
    assert run(kfp, "--every", "6h", "--preset", "smoke", *DATA) == 0
    assert run(kfp, "--every", "6h", *DATA) == 0
    assert {each.display_name for each in kfp.recurring.values()} == {"demo", "smoke"} and len(kfp.recurring) == 2
    assert f"EVERY=6h, in place of {first.recurring_run_id}\n" in capsys.readouterr().out
    assert kfp.runs == {}


def test_a_recurring_run_that_cannot_be_made_leaves_the_former(kfp: KfpServer, capsys: Capture) -> None:
    assert run(kfp, "--every", "6h", *DATA) == 0
    kfp.fail("POST", f"{V2}/recurringruns", status(500, json.dumps({"message": "no room"})))
    assert "answers 500: no room" in refused(kfp, capsys, "--every", "1h", *DATA)
    (left,) = kfp.recurring.values()
    assert left.trigger.periodic_schedule.interval_second == "21600"


def test_a_recurring_run_is_ended(kfp: KfpServer, capsys: Capture) -> None:
    assert "no recurring run 'demo' in the experiment 'autoformer'; there is none" in refused(
        kfp, capsys, "--every", "never"
    )
    assert kfp.experiments == {}
    assert run(kfp, "--every", "6h", "--preset", "smoke", *DATA) == 0
    line = refused(kfp, capsys, "--every", "never")
    assert "no recurring run 'demo' in the experiment 'autoformer'; there is 'smoke': PRESET names" in line
    assert run(kfp, "--every", "never", "--preset", "smoke") == 0
    assert run(kfp, "--every", "6h", *DATA) == 0 and run(kfp, "--every", "never") == 0
    assert kfp.recurring == {}


@pytest.mark.parametrize("state", ["RUNNING", None])  # none at all in a run's first seconds
@pytest.mark.parametrize("every", ["never", "1h"])
def test_the_end_of_a_recurring_run_stops_none_of_its_runs(kfp: KfpServer, capsys: Capture, every: str,
                                                           state: str | None) -> None:  # fmt: skip
    """As on KFP 2.17.0: a deletion takes the workflow of a run at work along, which stays RUNNING in KFP's list."""
    assert run(kfp, "--every", "6h", *DATA) == 0
    (first,) = kfp.recurring
    assert run(kfp, *DATA) == 0
    (at_work,) = kfp.runs.values()
    at_work.recurring_run_id, at_work.state = first, state
    capsys.readouterr()
    assert run(kfp, "--every", every, *DATA) == 0
    assert kfp.recurring[first].mode == "DISABLE" and kfp.without_workflow == []
    line = (
        f"recurring run 'demo', {first}: paused; its run {at_work.run_id} continues, and deleting the recurring run "
        "would stop it: "
    )
    assert line + "EVERY=never once it has ended\n" in capsys.readouterr().out
    at_work.state = "SUCCEEDED"
    assert run(kfp, "--every", "never", *DATA) == 0
    assert kfp.recurring == {}


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        ("0 3 * * 1", {"cron_expression": "0 0 3 * * 1"}),
        ("*/15 0-6,22 1 JAN-mar mon", {"cron_expression": "0 */15 0-6,22 1 JAN-mar mon"}),
        ("0 3 29 2 *", {"cron_expression": "0 0 3 29 2 *"}),
        ("0 3 31 4/1 *", {"cron_expression": "0 0 3 31 4/1 *"}),
        ("0 3 31 2 1", {"cron_expression": "0 0 3 31 2 1"}),
        ("90m", {"interval_second": 5400}),
        ("2d", {"interval_second": 172800}),
    ],
)
def test_triggers(every: str, expected: dict[str, Any]) -> None:
    assert schedules.trigger(every) == expected


@pytest.mark.parametrize(
    ("every", "message"),
    [
        ("60 3 * * 1", "'60' is no minute, 0 to 59"),
        ("0 24 * * 1", "'24' is no hour"),
        ("0 3 0 * *", "'0' is no day of the month, 1 to 31"),
        ("0 3 * 13 *", "'13' is no month"),
        ("0 3 * * 7", "'7' is no day of the week, 0 to 6"),
        ("0 3 * * 5-1", "'5-1' is no day"),
        ("*/0 * * * *", "'*/0' is no minute"),
        ("0 3 * * x", "'x' is no day"),
        ("0 0 3 * * 1", "minute, hour, day, month, weekday"),
        ("0h", "an interval of nothing"),
        ("367d", "more than 366 days"),
        ("99999999999999d", "more than 366 days"),
        ("\u0663h", "EVERY=6h"),
        ("*/\u0663 * * * *", "is no minute"),
        ("*/ * * * *", "'*/' is no minute"),
        ("0 3 31 2 *", "month '2' never has a day 31"),
        ("0 3 31 4-6/2,SEP *", "month '4-6/2,SEP' never has a day 31"),
        ("0 3 30/1 feb *", "month 'feb' never has a day 30"),
        ("weekly", "EVERY=6h"),
        ("", "EVERY=never"),
    ],
)
def test_what_is_no_trigger(every: str, message: str) -> None:
    with pytest.raises(AutoFormerError, match=re.escape(message)):
        schedules.trigger(every)
