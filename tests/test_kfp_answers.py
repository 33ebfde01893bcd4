"""The recorded answers of a KFP backend: what our server of the tests answers, and what we read in them."""

import json
from typing import Any

import kfp_server_api as api
import pytest
from kfp_answers import NAMES, answers
from kfp_api_server import V2, KfpServer
from werkzeug.test import Client

from pipeline.cluster.kfp_client import KfpClient
from pipeline.cluster.pod_log import last_lines, reason, without_launcher
from pipeline.cluster.workflow import Workflow

MESSAGES = {  # recording -> task, attempts, message
    "refused": ("resolve-config", 1, "main: Error (exit code 1)"),
    "retried_and_failed": ("fail", 3, "main: Error (exit code 1); No more retries left"),
    "window_closed": ("slow", 2, "main: Error (exit code 143); Max duration limit exceeded; No more retries left"),
    "fraction_as_factor": ("fail", 1, "value '1.5' cannot be resolved to an int"),
}


def test_the_recordings_are_small_and_hold_no_host() -> None:
    files = [json.dumps(answers(name)) for name in NAMES]
    assert len(files) == 8 and sum(map(len, files)) < 130_000
    assert not [text for text in files if "hostNodeName" in text or "://" in text.replace("s3://autoformer/", "")]


@pytest.mark.parametrize("name", NAMES)
def test_the_server_of_the_tests_answers_about_a_run_as_recorded(name: str) -> None:
    """The real answer has no error, no task's own pod, and children that no task id names."""
    server = KfpServer()
    recorded = answers(name)
    server.story = [recorded]
    run_id = recorded.v2["run_id"]
    server.runs[run_id] = api.V2beta1Run(run_id=run_id, display_name=recorded.v2["display_name"])
    client = Client(server._serve)
    answered = client.get(f"{V2}/runs/{run_id}").get_json()
    assert answered == recorded.v2 and "error" not in answered
    ids = {each["task_id"] for each in answered["run_details"]["task_details"]}
    for each in answered["run_details"]["task_details"]:
        assert not each.keys() & {"error", "pod_name"}
        assert not {child.get("task_id") for child in each.get("child_tasks", [])} & ids
    workflow = client.get(f"/apis/v1beta1/runs/{run_id}").get_json()["pipeline_runtime"]["workflow_manifest"]
    assert isinstance(workflow, str) and json.loads(workflow) == recorded.workflow


@pytest.mark.parametrize(("name", "expected"), MESSAGES.items())
def test_the_workflow_names_the_failed_task_and_why(name: str, expected: tuple[str, int, str]) -> None:
    failure = Workflow(answers(name).workflow).failure()
    assert failure is not None and (failure.task, failure.attempts) == expected[:2]
    assert expected[2] in failure.message


@pytest.mark.parametrize("name", ["refused", "retried_and_failed"])
def test_a_pod_has_the_name_that_argo_gave_it(name: str) -> None:
    """The archived log of each pod stands under its real name."""
    workflow = answers(name).workflow
    pods = [node for node in workflow["status"]["nodes"].values() if node["type"] == "Pod"]
    assert len(pods) >= 3
    for pod in pods:
        key = pod["outputs"]["artifacts"][0]["s3"]["key"]
        assert Workflow(workflow)._pod_name(pod) == key.split("/")[-2]


@pytest.mark.parametrize("name", ["succeeded", "cached"])
def test_a_run_that_succeeded_has_no_failure(name: str) -> None:
    assert Workflow(answers(name).workflow).failure() is None


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (["prepare_data: x", "prepare_data: no such folder", "F1 main.go] failed: exit status 2"], "no such folder"),
        (["prepare_data: S3 did not answer", "exit status 69"], "S3 did not answer"),
        (["prepare_data: reading", "ValueError: fault", "exit status 1"], ""),
        (["prepare_data: reading"], ""),
        (["prepare_data: reading", "signal: killed"], ""),
        (["other: line", "exit status 2"], ""),
        ([], ""),
    ],
)
def test_the_reason_is_the_line_before_the_steps_own_exit_code(log: list[str], expected: str) -> None:
    assert reason(log, "prepare-data") == expected


ARGOS = [
    'time=2026-11-27T22:12:35.750Z level=INFO msg="sub-process exited" argo=true error="exit status 1"',
    "Error: exit status 1",
]  # after the launcher's last line, as recorded


def test_lines_of_argo_after_the_launchers_hide_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    log = ["prepare_data: no such folder", "F1127 22:12:35.381106      15 main.go:59] failed: exit status 2", *ARGOS]
    monkeypatch.setattr("pipeline.cluster.kfp_client.KfpClient.log", lambda *_: log)
    lines = last_lines(KfpClient.__new__(KfpClient), "run", "pod", "team-a")
    assert reason(lines, "prepare-data") == "no such folder"
    assert without_launcher(lines) == log[:1]


def test_lines_of_kfps_launcher_are_no_part_of_a_steps_log() -> None:
    lines: list[Any] = ["I1127 03:05:19.101331       1 launcher_v2.go:90] input", "", "a line", "F1127 03:05:22.3 x"]
    assert without_launcher(lines) == ["a line"]
