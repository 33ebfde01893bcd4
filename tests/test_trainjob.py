"""A step on several machines: launched, followed, cancelled, and brought back, against a server that speaks the API."""

import json
import os
import re
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from kubernetes_api_server import JOBS, ApiServer, Fault, Kubelet, Pod, api_server
from machines import QUICK, start_launcher, start_node
from processes import ended, signal_self, wait_until
from run_steps import arguments, argv, config_of, contents
from s3_server import S3Server
from tiny import TinyData
from together import free_port, run_ranks

from runtime.kubernetes.api import Patience
from runtime.kubernetes.job_folder import JobFolder
from runtime.kubernetes.log import SKEW_SECONDS, Position
from runtime.kubernetes.settings import JobSettings
from runtime.steps.job_launch import launch
from runtime.steps.kfp_edge import call
from runtime.storage.artifacts import local_copy

STEP = "train_supernet"
IMAGE = "registry.example/autoformer-training@sha256:" + "0" * 64
WORK = "out"


class Desk(NamedTuple):
    """A launcher's surroundings: the cluster, the volume that all see, and a pod's own folder as KFP gives it."""

    server: ApiServer
    shared: Path
    own: Path

    def settings(self, **changes: Any) -> JobSettings:
        volumes = [{"claim": "shared", "mount": str(self.shared)}]
        return JobSettings.model_validate({"nodes": 2, "gpus": 8, "image": IMAGE, "volumes": volumes} | changes)

    def argv(self, **changes: Any) -> list[str]:
        given = {
            "config": config_of(STEP, batch_size=64), "data": "/data/tiny", "card": self.own / "card.json",
            "train-split": self.own / "train.parquet", "search-split": self.own / "search.parquet",
            "out": self.own / "out", "record": self.own / "record.json",
        }  # fmt: skip
        return [str(part) for name, value in (given | changes).items() for part in (f"--{name}", value)]

    def launch(self, patience: Patience = QUICK, **changes: Any) -> int:
        return launch(STEP, self.argv(), self.settings(**changes), patience)

    def given(self) -> dict[str, str]:
        """The step's arguments as the newest job's pods have them."""
        command = self.server.job["spec"]["trainer"]["command"]
        words = command[command.index(STEP) + 1 :]
        return dict(zip(words[::2], words[1::2], strict=True))

    def make_results(self) -> None:
        """What rank 0 would write."""
        out = Path(self.given()["--out"])
        out.mkdir(parents=True)
        (out / "weights").write_text("trained")
        Path(self.given()["--record"]).write_text('{"ranks": 16}')

    def work(self, *lines: str) -> None:
        """The pods start, say something, and all ends well."""
        first, _ = self.server.start()
        first.say(*lines)
        self.make_results()
        self.server.complete()


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    for name in ("AUTOFORMER_STORE", "KFP_NAMESPACE", "KFP_RUN_ID", "KFP_POD_UID", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(launch, "__defaults__", (QUICK,))  # a cluster is asked every ten seconds
    with api_server() as server:
        made = Desk(server, tmp_path / "shared", tmp_path / "own")
        made.shared.mkdir()
        made.own.mkdir()
        for name in ("card.json", "train.parquet", "search.parquet"):
            (made.own / name).write_text(f"content of {name}")
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path)))
        yield made


# --- ends ---


def test_a_job_is_launched_followed_and_brought_back(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.server.script = [lambda: None, lambda: desk.work("epoch 1", "epoch 2")]
    assert desk.launch() == 0
    assert contents(desk.own / "out") == {"weights": b"trained"}
    assert json.loads((desk.own / "record.json").read_text()) == {"ranks": 16}
    for name in ("card", "train-split", "search-split"):
        there = Path(desk.given()[f"--{name}"])
        assert there.is_relative_to(desk.shared / "jobs" / desk.server.job["metadata"]["name"] / "inputs")
        assert there.read_text().startswith("content of ")
    assert desk.given()["--data"] == "/data/tiny"
    assert json.loads(desk.given()["--config"])["train_supernet"]["batch_size"] == 64
    name = desk.server.job["metadata"]["name"]
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f"{STEP}: launched the job {name} on 2 machines with 8 GPUs each", "epoch 1", "epoch 2",
    ]  # fmt: skip
    assert err == ""
    assert desk.server.verbs() == ["POST"]
    assert {path.name for path in desk.own.iterdir()} == {
        "card.json", "train.parquet", "search.parquet", "out", "record.json",
    }  # fmt: skip


def test_bad_input_that_a_machine_finds_is_told_as_it_is(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        first, second = desk.server.start()
        first.say("rank 0 has lost its connection")
        first.end(75, "the ranks have lost their connections", at="2026-01-01T02:00:00Z")
        second.say("one line", "another line")
        second.end(2, "/data/tiny: no such folder; run make data", at="2026-01-01T02:00:01Z")
        desk.server.event(second.name, "Pulled", "Successfully pulled image", "Normal")
        desk.server.event("another", "Killing", "not about this one")
        desk.server.fail()

    desk.server.script = [fail]
    assert desk.launch() == 2
    err = capsys.readouterr().err.splitlines()
    pod = desk.server.pods[1].name
    assert err == [
        f"last lines of {pod}:", "  one line", "  another line",
        f"events of {pod}:", "  Normal Pulled: Successfully pulled image",
        f"{STEP}: machine 1 of 2: /data/tiny: no such folder; run make data",
    ]  # fmt: skip
    assert not (desk.own / "out").exists()


FULL = "its memory was full; give it more, or take smaller batches"


@pytest.mark.parametrize(
    ("ends", "code", "line"),
    [
        ([(143, "", "Error", 1), (137, "", "OOMKilled", 2)], 137, f"machine 1 of 2: {FULL}"),
        ([(1, "traceback\nrank 3 of 16 failed", "Error", 2), (75, "lost", "Error", 1)], 1,
         "machine 0 of 2: rank 3 of 16 failed"),
        ([(139, "", "Error", 2), (1, "", "Error", 1)], 1, "machine 1 of 2: its container ended with code 1 (Error)"),
        ([(75, "lost", "Error", 2), (75, "lost first", "Error", 1)], 75, "machine 1 of 2: lost first"),
    ],
)  # fmt: skip
def test_the_first_cause_is_named(
    desk: Desk, capsys: pytest.CaptureFixture[str], ends: list[Any], code: int, line: str
) -> None:
    def fail() -> None:
        for pod, (number, message, reason, second) in zip(desk.server.start(), ends, strict=True):
            pod.end(number, message, reason, f"2026-01-01T02:00:0{second}Z")
        desk.server.fail()

    desk.server.script = [fail]
    assert desk.launch() == code
    assert capsys.readouterr().err.splitlines()[-1] == f"{STEP}: {line}"


def test_an_evicted_pod_and_one_that_is_gone(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    def evict() -> None:
        _, second = desk.server.start()
        second.state = {}
        second.status = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory."}
        desk.server.fail()

    desk.server.script = [evict]
    assert desk.launch() == 75
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == f"{STEP}: machine 1 of 2: its pod failed (Evicted: The node was low on memory.)"

    def vanish() -> None:
        desk.server.pods.clear()
        desk.server.event(desk.server.job["metadata"]["name"], "FailedCreate", "exceeded quota: gpus")
        desk.server.fail()

    desk.server.script = [vanish]
    assert desk.launch() == 1
    *report, line = capsys.readouterr().err.splitlines()
    assert report[-1] == "  Warning FailedCreate: exceeded quota: gpus"
    assert line.endswith("failed (FailedJobs: jobset failed due to one or more job failures); none of its pods is left "
                         "to explain more")  # fmt: skip


def test_a_deadline_has_a_code_of_its_own(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    late = "TrainJob exceeded its active deadline"
    desk.server.script = [lambda: desk.server.set("Failed", reason="DeadlineExceeded", message=late)]
    assert desk.launch(deadline_seconds=600) == 124
    assert desk.server.job["spec"]["activeDeadlineSeconds"] == 600
    assert "has taken more than its 600 seconds; raise its deadline_seconds" in capsys.readouterr().err


def test_a_job_that_somebody_deletes(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.server.script = [desk.server.start, desk.server.jobs.clear]
    assert desk.launch() == 75
    assert " was deleted; the same command resumes from the last checkpoint" in capsys.readouterr().err


# --- on the way ---


def test_what_a_job_waits_for_is_said_once(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    server, pods = desk.server, list[Pod]()

    def pend() -> None:
        pods.extend(server.start())
        for pod in pods:
            pod.state = {}
            pod.status = {"phase": "Pending", "conditions": [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no GPU is free"},
            ]}  # fmt: skip

    def pull() -> None:
        for pod in pods:
            pod.status = {"phase": "Pending"}
            pod.state = {"waiting": {"reason": "ContainerCreating"}}
        pods[1].state = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}

    server.script = [
        lambda: server.set("Suspended"), lambda: None, lambda: server.set("Suspended", False, "Resumed"),
        pend, lambda: None, pull, lambda: None, lambda: desk.work("epoch 1"),
    ]  # fmt: skip
    assert desk.launch() == 0
    name = server.job["metadata"]["name"]
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"{STEP}: the job {name} is suspended, as by a queue that has no room yet; waiting",
        f"{STEP}: the job {name} is resumed",
        f"{STEP}: machine 0 waits: Unschedulable: no GPU is free",
        f"{STEP}: machine 1 waits: ImagePullBackOff: no such image",
        "epoch 1",
    ]


def test_a_job_that_gets_no_pods_says_why(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    """One that a queue holds back is not asked about. Each new try tells the same, of a pod of another name."""
    server = desk.server

    def try_again(suffix: str) -> None:
        job = server.job["metadata"]["name"]
        pod = f'pods "{job}-node-0-0-{suffix}" is forbidden'
        server.event(f"{job}-node-0", "FailedCreate", f"Error creating: {pod}: exceeded quota: gpus")

    def refuse() -> None:
        name = server.job["metadata"]["name"]
        server.event(name, "TrainJobResourcesCreationFailed", "no such priority class")
        server.set("Suspended", False, "Resumed")

    looks = [lambda: None] * 4
    server.script = [
        lambda: server.set("Suspended"), *looks, refuse, *looks, lambda: try_again("aaaaa"), lambda: None,
        lambda: try_again("bbbbb"), lambda: None, lambda: desk.work("epoch 1"),
    ]  # fmt: skip
    assert desk.launch() == 0
    name = server.job["metadata"]["name"]
    quota = f'Error creating: pods "{name}-node-0-0-aaaaa" is forbidden: exceeded quota: gpus'
    assert capsys.readouterr().out.splitlines()[2:] == [
        f"{STEP}: the job {name} is resumed",
        f"{STEP}: the job {name} has 0 of 2 pods; waiting",
        f"{STEP}: {name}: Warning TrainJobResourcesCreationFailed: no such priority class",
        f"{STEP}: {name}-node-0: Warning FailedCreate: {quota}",
        "epoch 1",
    ]


def test_machines_that_are_started_again_are_followed(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    def begin() -> None:
        desk.server.start()[0].say("epoch 1", "epoch 2")

    def again() -> None:
        printed.extend(capsys.readouterr().out.splitlines())
        desk.server.start()[0].say("epoch 2", "epoch 3")

    def finish() -> None:
        desk.make_results()
        desk.server.complete()

    printed: list[str] = []
    desk.server.script = [begin, lambda: _has_read(desk, 1), again, lambda: None, finish]
    assert desk.launch() == 0
    printed += capsys.readouterr().out.splitlines()
    again_line = f"{STEP}: the machines are started again; the work resumes from its last checkpoint"
    assert sorted(printed[1:]) == sorted(["epoch 1", "epoch 2", again_line, "epoch 2", "epoch 3"])


def _reads(desk: Desk) -> int:
    return sum(path.endswith("/log") for _, path, _ in desk.server.requests)


def _has_read(desk: Desk, times: int) -> bool:
    return _reads(desk) >= times


def test_a_log_that_says_nothing_new_is_not_asked_for_again_and_again(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    """No sooner than the job itself, where it has no line yet; never again, where machine 0 has ended."""

    def begin() -> None:
        desk.server.start()[0].say("epoch 1")
        desk.server.faults = [Fault("GET", "/log", 400)] * 5

    def end_first() -> bool:
        if desk.server.faults:
            return False
        looks.append(sum(path.startswith(JOBS) for _, path, _ in desk.server.requests))
        desk.server.pods[0].end(0)
        return True

    def finish() -> None:
        reads.append(_reads(desk))
        desk.make_results()
        desk.server.complete()

    reads, looks = list[int](), list[int]()
    desk.server.script = [begin, end_first, lambda: _has_read(desk, 6), *[lambda: None] * 10, finish]
    assert desk.launch(QUICK._replace(poll_seconds=0.02, pause_seconds=0.0001)) == 0
    assert looks[0] >= 5, "the log was requested more often than the job"
    assert 6 <= reads[0] <= 10 and _reads(desk) == reads[0], "read to its end, then left alone"
    assert capsys.readouterr().out.splitlines()[1:] == ["epoch 1"]


def test_blips_of_the_api_change_nothing(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    """A request that is done and whose answer is lost, too: the job is not made twice."""
    jobs, pods = "/trainjobs", "/pods"
    desk.server.faults = [
        Fault("GET", jobs, 500), Fault("GET", jobs, "reset"), Fault("POST", jobs, 503), Fault("POST", jobs, "lost"),
        Fault("GET", jobs, 410), Fault("GET", jobs, "lost"), Fault("GET", pods, 503), Fault("GET", pods, 429),
        Fault("GET", "/log", 500), Fault("GET", "/log", "reset"),
    ]  # fmt: skip
    desk.server.script = [lambda: None, lambda: None, lambda: desk.work("epoch 1", "epoch 2")]
    assert desk.launch() == 0
    assert desk.server.faults == []
    assert list(desk.server.jobs) == [desk.server.job["metadata"]["name"]]
    out = capsys.readouterr().out.splitlines()
    assert out[-2:] == ["epoch 1", "epoch 2"]


def test_no_line_of_a_log_is_lost_or_printed_twice(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    """Connections break within a second, between lines of one time, in mid-line; one line has no end, one no UTF-8."""
    lines = [f"step {number}" for number in range(40)]

    def begin() -> None:
        first, _ = desk.server.start()
        first.say(*lines[:10])
        first.say(*lines[10:20], at=5 * 10**9)
        first.say(*lines[20:], "not \udcff text")
        first.rest = "the last words"

    def finish() -> None:
        desk.make_results()
        desk.server.complete()

    desk.server.breaks = [3, 1, 9, 2, 12]
    desk.server.script = [begin, lambda: _has_read(desk, 4), finish]
    assert desk.launch() == 0
    printed = capsys.readouterr().out.splitlines()[1:]
    first, *_, last = [query for _, path, query in desk.server.requests if path.endswith("/log")]
    age = (datetime.now(UTC) - datetime(2026, 1, 1, tzinfo=UTC)).total_seconds()  # of the first line
    assert "sinceSeconds" not in first and age - 20 < int(last["sinceSeconds"]) - SKEW_SECONDS <= age + 1
    assert printed == [*lines, "not \N{REPLACEMENT CHARACTER} text", "the last words"]


def test_lines_of_one_time_are_told_apart_by_their_number() -> None:
    before, time, after = (f"2026-01-01T00:00:0{second}.000000000Z" for second in (4, 5, 6))
    position = Position()
    assert list(position.new_lines(iter([f"{before} a", f"{time} b", f"{time} c"]))) == ["a", "b", "c"]
    again = [f"{before} a", f"{time} b", f"{time} c", f"{time} d", "without a time", f"{after} e"]
    assert list(position.new_lines(iter(again))) == ["d", "without a time", "e"]
    assert list(position.new_lines(iter([f"{time} d", f"{after} e"]))) == []


# --- refusals ---


def test_no_permission_names_the_manifest(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.server.forbidden = {"create"}
    assert desk.launch() == 2
    assert capsys.readouterr().err == (
        f"{STEP}: not allowed to create trainjobs.trainer.kubeflow.org in namespace kubeflow-tests; apply the Role and "
        "the RoleBinding of pipeline/manifests/training: trainjobs.trainer.kubeflow.org is forbidden: User "
        '"system:serviceaccount:kubeflow-tests:pipeline-runner" cannot create resource "trainjobs"\n'
    )


def test_a_log_or_events_that_may_not_be_read_hide_no_failure(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    def fail() -> None:
        first, _ = desk.server.start()
        first.end(2, "/data/tiny: no such folder")
        desk.server.faults += [Fault("GET", path, 403) for path in ("/log", "/log", "/events")]
        desk.server.fail()

    desk.server.script = [lambda: desk.server.faults.append(Fault("GET", "/log", 403)), fail]
    assert desk.launch() == 2
    errors = capsys.readouterr().err.splitlines()
    job = desk.server.job["metadata"]["name"]
    assert len([line for line in errors if line.startswith(f"the log of {job}-node-0-0-")]) == 1
    assert any(line.startswith("not allowed to list events in namespace kubeflow-tests") for line in errors)
    assert errors[-1].endswith("machine 0 of 2: /data/tiny: no such folder")


def test_other_refusals_are_one_line_each(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def line() -> str:
        assert desk.launch() == 2
        (found,) = capsys.readouterr().err.splitlines()
        return str(found)

    desk.server.refuses = "spec.runtimeRef: specified trainingRuntime must be created before the TrainJob is created"
    assert "the cluster refuses to create trainjobs" in line() and desk.server.jobs == {}
    desk.server.installed = False
    assert "install Kubeflow Trainer, and apply pipeline/manifests/training" in line()
    config = Path(os.environ["KUBECONFIG"])
    config.write_text(config.read_text().replace("a-token", "another-token"))
    assert "the cluster does not recognise who wants to list trainjobs" in line()
    for content in ("clusters: [", "text", "- 1", "clusters: 3\ncontexts: x\ncurrent-context: y", "\x00"):
        config.write_text(content)
        assert "not a configuration of kubectl" in line()
    monkeypatch.setenv("KUBECONFIG", str(desk.own / "none"))
    assert "no cluster to launch a job in" in line()


def test_an_api_that_stays_away_leaves_the_job_alone(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    def leave() -> None:
        desk.server.start()
        desk.server.faults = [Fault("GET", "/trainjobs", 503)] * 1000

    desk.server.script = [leave]
    assert desk.launch(QUICK._replace(outage_seconds=0.1)) == 75
    told, ending = capsys.readouterr().err.splitlines()
    assert told.startswith("the Kubernetes API does not answer (503 ") and told.endswith("; asking again")
    assert ending.endswith("the job continues without this process; the same command follows it again")
    assert desk.server.verbs() == ["POST"]


def test_what_needs_no_machine_is_checked_before_one_is_asked_for(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def line(step: str = STEP, argv: list[str] | None = None, **changes: Any) -> str:
        assert launch(step, desk.argv() if argv is None else argv, desk.settings(**changes), QUICK) == 2
        (found,) = capsys.readouterr().err.splitlines()
        return str(found).removeprefix(f"{step}: ")

    assert line(nodes=3).startswith("train_supernet.batch_size = 64: not a multiple of 24, for 24 processes")
    assert line("evaluate_subnet").startswith("one process does this step; a job on several machines is for train_")
    assert line(argv=desk.argv(config="{}")).startswith("--config: 'name' is missing")
    assert line(argv=["--config"]) == "expected the step's arguments as --name value --name value …"
    assert line(argv=desk.argv(card="/none/card.json")).startswith("/none/card.json: no such file or folder")
    assert line(volumes=[]).startswith("AUTOFORMER_JOB: machines need a place that all of them see; give a volume")
    assert line(shared="/nowhere").startswith("AUTOFORMER_JOB: /nowhere: no such folder here; mount the volume")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example")
    found = line()
    assert found == "MLFLOW_TRACKING_URI holds a password; give it to the job by secret_env"
    assert desk.server.verbs() == []


# --- a launcher that ends ---


def test_a_launcher_that_was_killed_comes_back_to_its_job(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The job belongs to the new pod from then on. Two pods of one run: KFP has tried the task again."""
    monkeypatch.setenv("KFP_RUN_ID", "0b0fa0e6-7d3f-4b4e-9d0d-000000000000")
    monkeypatch.setenv("KFP_POD_NAME", "first")
    monkeypatch.setenv("KFP_POD_UID", "uid-of-first")
    killed = start_launcher(STEP, desk.argv(), desk.settings(), tmp_path / "log")
    wait_until(lambda: desk.server.jobs and len(desk.server.requests) > 4)
    os.kill(killed.pid or 0, signal.SIGKILL)
    assert ended(killed) == -signal.SIGKILL
    assert desk.server.job["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Pod", "name": "first", "uid": "uid-of-first", "blockOwnerDeletion": False}
    ]
    monkeypatch.setenv("KFP_POD_NAME", "second")
    monkeypatch.setenv("KFP_POD_UID", "uid-of-second")
    desk.server.script = [lambda: desk.work("epoch 1")]
    assert desk.launch() == 0
    name = desk.server.job["metadata"]["name"]
    assert capsys.readouterr().out.splitlines() == [f"{STEP}: continues with the job {name}", "epoch 1"]
    assert [owner["uid"] for owner in desk.server.job["metadata"]["ownerReferences"]] == ["uid-of-second"]
    assert desk.server.verbs() == ["POST", "PATCH"]
    assert contents(desk.own / "out") == {"weights": b"trained"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_launcher_that_is_told_to_stop_takes_its_job_with_it(
    desk: Desk, tmp_path: Path, number: int, code: int
) -> None:
    process = start_launcher(STEP, desk.argv(), desk.settings(), tmp_path / "log")
    wait_until(lambda: desk.server.jobs and len(desk.server.requests) > 4)
    name = desk.server.job["metadata"]["name"]
    desk.server.faults = [Fault("DELETE", "/trainjobs", 503)]
    os.kill(process.pid or 0, number)
    assert ended(process) == code
    assert desk.server.deletions == [{"name": name, "propagationPolicy": "Foreground"}]
    told = (tmp_path / "log").read_text().splitlines()[-1]
    word = signal.Signals(number).name
    assert told == f"{STEP}: stopped by {word}, and the job {name} with it; the same command resumes from there"


def test_a_job_is_deleted_before_a_request_is_waited_for(desk: Desk, tmp_path: Path) -> None:
    """A pod of KFP is killed a second after its SIGTERM; here the job is made, and the API does not say so."""
    desk.server.faults = [Fault("POST", "/trainjobs", "lost"), *[Fault("POST", "/trainjobs", 503)] * 10_000]
    process = start_launcher(STEP, desk.argv(), desk.settings(), tmp_path / "log")
    wait_until(lambda: desk.server.jobs and desk.server.verbs().count("POST") > 1)
    os.kill(process.pid or 0, signal.SIGTERM)
    wait_until(lambda: desk.server.deletions)
    assert process.is_alive() and len(desk.server.faults) > 1
    desk.server.faults = []
    assert ended(process) == 143
    assert desk.server.jobs == {}


def test_a_signal_while_results_are_brought_leaves_them_to_the_next_launcher(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = JobFolder.fetch_outputs

    def take(place: JobFolder, words: list[str]) -> None:
        signal_self(signal.SIGTERM)
        taken(place, words)

    desk.server.script = [desk.work]
    with monkeypatch.context() as patch:
        patch.setattr(JobFolder, "fetch_outputs", take)
        assert ended(start_launcher(STEP, desk.argv(), desk.settings(), tmp_path / "log")) == 143
    assert (desk.own / "record.json").exists()
    (desk.own / "record.json").unlink()
    assert desk.launch() == 0
    assert desk.server.verbs() == ["POST"] and (desk.own / "record.json").exists()


def test_attempts(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    """What has failed is tried again under the next name, what is complete is taken, what is going is waited for."""

    def fail() -> None:
        desk.server.start()[0].end(1, "rank 0 of 16 failed")
        desk.server.fail()

    desk.server.script = [fail]
    assert desk.launch() == 1
    first = desk.server.job["metadata"]["name"]
    assert first.endswith("-1")

    desk.server.script = [desk.work]
    assert desk.launch() == 0
    second = desk.server.job["metadata"]["name"]
    assert second == f"{first[:-2]}-2"
    assert list(desk.server.jobs) == [second], "Trainer starts a failed job again whose JobSet is gone"

    (desk.own / "record.json").unlink()
    assert desk.launch() == 0
    assert desk.server.job["metadata"]["name"] == second and (desk.own / "record.json").exists()

    desk.server.lingers = [second] * 2
    desk.server.job["metadata"]["deletionTimestamp"] = "2026-01-01T01:00:00Z"
    desk.server.script = [lambda: None, lambda: None, desk.work]
    assert desk.launch() == 0
    assert f"{STEP}: waits until the job {second} is gone" in capsys.readouterr().out
    assert list(desk.server.jobs) == [f"{first[:-2]}-3"]


def test_other_inputs_are_another_job(desk: Desk) -> None:
    """The same paths and configuration, another split: the first job's results are not its own."""
    desk.server.script = [desk.work]
    assert desk.launch() == 0
    (desk.own / "train.parquet").write_text("other images")
    desk.server.script = [desk.work]
    assert desk.launch() == 0
    first, second = desk.server.jobs
    assert first[:-2] != second[:-2]
    assert Path(desk.given()["--train-split"]).read_text() == "other images"


@pytest.mark.parametrize("in_store", [False, True])
def test_a_launcher_between_the_attempts(
    desk: Desk, in_store: bool, monkeypatch: pytest.MonkeyPatch, s3: S3Server, tmp_path: Path
) -> None:
    """One has deleted the failed job and was killed; the next one finds none, and takes no name a second time."""

    def fail() -> None:
        desk.server.start()[0].end(1, "rank 0 of 16 failed")
        desk.server.fail()

    if in_store:
        monkeypatch.setenv("AUTOFORMER_STORE", s3.uri(f"{tmp_path.name}/store"))
    desk.server.script = [fail]
    assert desk.launch() == 1
    first = desk.server.job["metadata"]["name"]
    desk.server.refuses = "no more jobs today"
    assert desk.launch() == 2 and desk.server.jobs == {}
    desk.server.refuses, desk.server.script = None, [fail]
    assert desk.launch() == 1
    assert list(desk.server.jobs) == [f"{first[:-2]}-2"]


# --- really run ---

CONFIG = config_of(STEP, epochs=2)  # 20 steps, a checkpoint every 10


@pytest.fixture(scope="module")
def of_one_machine(tiny_data: TinyData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The supernet that two processes of one machine train."""
    folder = tmp_path_factory.mktemp("of-one-machine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOFORMER_TRACKING", "off")
        patch.setenv("AUTOFORMER_WORK", str(folder / "work"))
        assert run_ranks(STEP, arguments(STEP, tiny_data, folder, folder / "out", CONFIG), folder / "log") == [0, 0]
    return contents(folder / "out")


def test_two_machines_train_what_two_processes_of_one_do(
    desk: Desk, tiny_data: TinyData, tmp_path: Path, of_one_machine: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """From the component's call to the files that KFP expects; the job's pods really run, and meet on a volume."""
    settings = desk.settings(gpus=0, env={"AUTOFORMER_TRACKING": "off", "OMP_NUM_THREADS": "1"})
    monkeypatch.setenv("AUTOFORMER_JOB", settings.to_json())
    Kubelet(desk.server, tmp_path, start_node, ended, free_port)
    call(STEP, argv(arguments(STEP, tiny_data, desk.own, desk.own / "supernet", CONFIG)))
    assert contents(desk.own / "supernet") == of_one_machine
    assert json.loads((desk.own / "supernet.record.json").read_text())["ranks"] == 2
    assert f"{STEP}: 20 steps, train_loss" in capsys.readouterr().out


def test_other_machines_go_on_from_the_store(
    desk: Desk, tiny_data: TinyData, tmp_path: Path, of_one_machine: dict[str, bytes], s3: S3Server,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """No volume: each pod has disks of its own, which nobody sees after it. One is killed; KFP tries the task again."""
    monkeypatch.setenv("AUTOFORMER_STORE", s3.uri(f"{tmp_path.name}/store"))
    settings = desk.settings(gpus=0, volumes=[], env={"AUTOFORMER_TRACKING": "off", "OMP_NUM_THREADS": "1"})
    monkeypatch.setenv("AUTOFORMER_JOB", settings.to_json())
    start = partial(start_node, killed=lambda job, node: job.endswith("-1") and node == "1")
    Kubelet(desk.server, tmp_path, start, ended, free_port, {"AUTOFORMER_WORK": "work"})
    given = argv(arguments(STEP, tiny_data, desk.own, desk.own / "supernet", CONFIG))
    with pytest.raises(SystemExit) as failed:
        call(STEP, given)
    assert failed.value.code == 137
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == f"{STEP}: machine 1 of 2: its container ended with code 137 (Error)"
    assert not (desk.own / "supernet").exists()

    call(STEP, given)
    record = json.loads((desk.own / "supernet.record.json").read_text())
    assert (record["ranks"], record["resumed_from_step"]) == (2, 10)
    monkeypatch.setenv("AUTOFORMER_WORK", str(tmp_path / "work-of-the-reader"))
    assert "weights.safetensors" not in contents(desk.own / "supernet")
    assert contents(local_copy(desk.own / "supernet")) == of_one_machine


def test_bad_input_of_a_real_pod_comes_back_as_its_line(
    desk: Desk, tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = desk.settings(gpus=0, env={"AUTOFORMER_TRACKING": "off"})
    monkeypatch.setenv("AUTOFORMER_JOB", settings.to_json())
    Kubelet(desk.server, tmp_path, start_node, ended, free_port)
    given = arguments(STEP, tiny_data, desk.own, desk.own / "supernet", config_of(STEP, batch_size=5000))
    with pytest.raises(SystemExit) as failed:
        call(STEP, argv(given))
    assert failed.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    told = f"{STEP}.batch_size = 5000: an optimiser step takes 5,000 images, but the train split has 500; choose a"
    assert re.fullmatch(f"{STEP}: machine [01] of 2: {told} smaller one", line)
    assert not (desk.own / "supernet").exists()
