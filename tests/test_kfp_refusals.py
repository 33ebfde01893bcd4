"""What a KFP 2.17.0 of several users refused, word for word, and the line that is printed about it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kfp_api_server import KfpServer, status

from autoformer.errors import AutoFormerError
from pipeline.cluster.kfp_client import KfpClient

REFUSALS: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "kfp_refusals.json").read_text())
REASONS = {
    "no token": "wants a token (401); put one into KFP_TOKEN, or the path of one into KFP_TOKEN_FILE: "
    "there is no user identity header",
    "garbage": "refuses the token (401); it may have expired, or be for another server: invalid bearer token",
    "expired": "refuses the token (401); it may have expired, or be for another server: "
    "invalid bearer token, service account token has expired",
    "wrong audience": "refuses the token (401); it may have expired, or be for another server: invalid bearer token, "
    'token audiences ["other"] is invalid for the target audiences ["pipelines.kubeflow.org"]',
    "of another team": "does not let this token do that in the namespace 'team-a' (403): "
    "system:serviceaccount:team-b:default-editor may not list pipelines.pipelines.kubeflow.org "
    "in the namespace 'team-a'",
    "namespace that is not there": "does not let this token do that in the namespace 'team-a' (403): "
    "system:serviceaccount:team-a:default-editor may not list experiments.pipelines.kubeflow.org "
    "in the namespace 'nowhere'",
    "no namespace": "answers 400: List experiments failed: Failed to authorize with API: Invalid input error: "
    "An experiment cannot have an empty namespace in multi-user mode",
    "may only read": "does not let this token do that in the namespace 'team-a' (403): "
    "system:serviceaccount:team-a:default-viewer may not terminate runs.pipelines.kubeflow.org "
    "in the namespace 'team-a'",
    "no recurring runs": "does not let this token do that in the namespace 'team-a' (403): "
    "system:serviceaccount:team-a:no-jobs may not list jobs.pipelines.kubeflow.org in the namespace 'team-a'",
    "no upload": "refuses the package in the namespace 'team-a' (400); KFP gives no reason; "
    "this token may lack the permission to create pipelineversions, else its log has it",
}


@pytest.fixture
def kfp(monkeypatch: pytest.MonkeyPatch) -> Iterator[KfpServer]:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("KFP_TOKEN", "planted-token")
    with KfpServer().serving() as server:
        server.namespaces = {"team-a"}
        yield server


def test_each_recorded_refusal_has_its_line() -> None:
    assert REFUSALS.keys() == REASONS.keys()
    assert not [name for name, each in REFUSALS.items() if "://" in json.dumps(each) or "eyJ" in json.dumps(each)]


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_names_its_reason_which_kfp_writes_last(kfp: KfpServer, name: str,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    if name == "no token":
        monkeypatch.delenv("KFP_TOKEN")
    kfp.fail("GET", ".*/experiments", status(REFUSALS[name]["status"], json.dumps(REFUSALS[name]["body"])))
    client = KfpClient(kfp.host, "team-a")
    with pytest.raises(AutoFormerError) as raised:
        client.experiment("autoformer")
    assert str(raised.value).removeprefix(kfp.host).lstrip() == REASONS[name]


def test_of_a_long_message_the_end_is_kept_too(kfp: KfpServer) -> None:
    message = f"Failed to create: {'Failed to wrap: ' * 100}the reason"
    kfp.fail("GET", ".*/experiments", status(400, json.dumps({"message": message})))
    client = KfpClient(kfp.host, "team-a")
    with pytest.raises(AutoFormerError, match=r"400: Failed to create: .*….*: the reason$") as raised:
        client.experiment("autoformer")
    assert len(str(raised.value)) < 400
