"""A cluster as its user reaches it: `make submit` in a process of its own, and kubectl where it reaches the pods."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from autoformer.errors import AutoFormerError
from pipeline.cluster.kfp_client import KfpClient
from pipeline.cluster.settings import Cluster, cluster_path, load_cluster
from runtime.common.config import ROOT
from runtime.kubernetes.job import POD_JOB, RUN

EXPERIMENT = "autoformer-test-cluster"
LIMIT_SECONDS = 1800.0  # of one run; a slow node takes 5 minutes for the smoke preset
WAIT_FOR_COPY = """import sys, time
from runtime.storage.artifacts import store_uri
from runtime.storage.client import read_object
from runtime.storage.errors import MissingError
from runtime.storage.folders import MANIFEST

while True:
    try:
        if b"checkpoint.pt" in read_object(store_uri() / sys.argv[1] / MANIFEST):
            sys.exit(print("copied"))
    except MissingError:
        pass
    time.sleep(1)
"""
ROWS = pytest.StashKey[list[tuple[str, str, str]]]()


class Submitted(NamedTuple):
    """What `make submit` did."""

    code: int
    printed: str
    run_id: str

    def tasks(self, ending: str) -> set[str]:
        return set(re.findall(rf"^([a-z-]+): {ending}", self.printed, re.MULTILINE))


class OnCluster:
    """The cluster of HOST and CLUSTER."""

    def __init__(self, folder: Path) -> None:
        self.host, self.source, self.data = (os.environ.get(name, "") for name in ("HOST", "CLUSTER", "DATA"))
        self.settings: Cluster = load_cluster(self.source)
        self.client = KfpClient(self.host, self.settings.namespace)
        self.namespace = self.settings.namespace
        self._folder = folder

    def submit(self, *options: str, cluster: str = "", data: str = "", wait: bool = True) -> Submitted:
        command = [sys.executable, "-m", "pipeline.cluster.submit", f"--host={self.host}"]
        command += [f"--cluster={cluster or self.source}", f"--data={data or self.data}"]
        command += [f"--experiment={EXPERIMENT}", "--preset=smoke", *(["--wait"] if wait else []), *options]
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT_SECONDS
        )
        print(done.stdout)
        found = re.search(r"^run ([0-9a-f-]{36})", done.stdout, re.MULTILINE)
        return Submitted(done.returncode, done.stdout, found[1] if found else "")

    def follow(self, run_id: str) -> Submitted:
        return self.submit(f"--run={run_id}", wait=False)._replace(run_id=run_id)

    def state(self, run_id: str, step: str) -> str:
        """The state of a step in a run that is at work; empty if it has none yet."""
        run = self.client.get_run(run_id)
        states = {task.display_name: task.state for task in (run.run_details and run.run_details.task_details) or []}
        state = states.get(step.replace("_", "-")) or ""
        assert state == "SUCCEEDED" or run.state in ("PENDING", "RUNNING"), f"{run_id}: {run.state}"
        return state

    def trained(self, submitted: Submitted) -> None:
        """Wait until the supernet is trained, and end the run: what comes after has been seen."""
        end = time.monotonic() + LIMIT_SECONDS
        while time.monotonic() < end:
            if self.state(submitted.run_id, "train_supernet") == "SUCCEEDED":
                self.client.terminate_run(submitted.run_id)
                return
            time.sleep(5)
        raise TimeoutError(f"{submitted.run_id}: the supernet is not trained after {LIMIT_SECONDS:.0f} s")

    def changed(self, name: str, **steps: dict[str, Any]) -> str:
        """The path of the settings with changes of some steps."""
        settings = yaml.safe_load(cluster_path(self.source).read_text(encoding="utf-8"))
        for step, change in steps.items():
            settings["steps"][step] = {**settings["steps"][step], **change}
        file = self._folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(settings), encoding="utf-8")
        return str(file)

    def kubectl(self, *arguments: str, check: bool = True) -> str:
        command = ["kubectl", "-n", self.namespace, *arguments]
        return subprocess.run(command, check=check, capture_output=True, text=True, timeout=150).stdout

    def pods(self, run_id: str, step: str) -> list[str]:
        """The running pods of a step, without its driver."""
        selector = f"pipeline/runid={run_id},app.kubernetes.io/component={step}"
        found = json.loads(self.kubectl("get", "pods", "-l", selector, "-o", "json"))["items"]
        return [pod["metadata"]["name"] for pod in found if pod["status"].get("phase") == "Running"]

    def run(self, pod: str, program: str) -> None:
        """Run a Python program in a step's container. The container may end before it."""
        done = self.kubectl("exec", pod, "-c", "main", "--", "python", "-c", program, check=False)
        assert "no process of a step" not in done

    def jobs(self, run_id: str) -> list[str]:
        """The names of a run's TrainJobs."""
        names = "jsonpath={.items[*].metadata.name}"
        return self.kubectl("get", "trainjobs", "-l", f"{RUN}={run_id}", "-o", names).split()

    def wait_for_job(self, run_id: str, step: str) -> tuple[str, str]:
        """The running launcher's pod of a step, and its job, once all machines of the job are at work."""
        end = time.monotonic() + LIMIT_SECONDS
        while time.monotonic() < end:
            launchers, jobs = self.pods(run_id, step), self.jobs(run_id)
            if launchers and jobs:
                machines = self.kubectl(
                    "get", "pods", "-l", f"{POD_JOB}={jobs[0]}", "-o", "jsonpath={.items[*].status.phase}"
                )
                if machines.split() and set(machines.split()) == {"Running"}:
                    return launchers[0], jobs[0]
            time.sleep(1)
        raise TimeoutError(f"{step}: no job at work after {LIMIT_SECONDS:.0f} s")

    def wait_for_checkpoint(self, run_id: str, step: str) -> str:
        """The running pod of a step, once the store has a checkpoint of it; empty if the step ended before."""
        find = ("find", self.settings.scratch.mount, "-path", f"*/{step}/*", "-name", "checkpoint.pt")
        end = time.monotonic() + LIMIT_SECONDS
        while time.monotonic() < end and self.state(run_id, step) != "SUCCEEDED":
            for pod in self.pods(run_id, step):
                if found := self.kubectl("exec", pod, "-c", "main", "--", *find, check=False).split():
                    work = f"work/{step}/{Path(found[0]).parent.name}"
                    copied = ("timeout", "120", "python", "-c", WAIT_FOR_COPY, work)
                    if "copied" in self.kubectl("exec", pod, "-c", "main", "--", *copied, check=False):
                        return pod
            time.sleep(3)
        if time.monotonic() < end:
            return ""
        raise TimeoutError(f"{step}: no checkpoint after {LIMIT_SECONDS:.0f} s")


@pytest.fixture(scope="session")
def on_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnCluster]:
    try:
        if missing := [name for name in ("HOST", "CLUSTER", "DATA") if not os.environ.get(name)]:
            raise AutoFormerError(f"{', '.join(missing)} missing: as for `make submit` (docs/cluster.md)")
        cluster = OnCluster(tmp_path_factory.mktemp("cluster"))
        others = [run for run in _runs(cluster.client) if run.state in ("PENDING", "RUNNING", "CANCELING")]
        if others and os.environ.get("YES") != "1":
            raise AutoFormerError(
                f"{len(others)} other runs are at work there, as '{others[0].display_name}'; YES=1 runs beside them"
            )
    except AutoFormerError as error:
        pytest.exit(f"test-cluster: {error}", returncode=2)
    yield cluster
    _remove(cluster.client)


@pytest.fixture(scope="session")
def pods(on_cluster: OnCluster) -> OnCluster:
    """The cluster, where kubectl reaches its pods."""
    try:
        on_cluster.kubectl("get", "pods")
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"kubectl reaches no pods of '{on_cluster.namespace}': set KUBECONFIG ({error})")
    return on_cluster


@pytest.fixture
def seen(request: pytest.FixtureRequest) -> list[str]:
    """Words for the table at the end."""
    words: list[str] = []
    request.node.stash[WORDS] = words
    return words


WORDS: pytest.StashKey[list[str]] = pytest.StashKey()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome: Any = yield
    report = outcome.get_result()
    if report.when == "call" or report.skipped or report.failed:
        claim = item.name.removeprefix("test_").replace("_", " ")
        words: list[str] | None = item.stash.get(WORDS, None)
        reason = str(report.longrepr[2]) if report.skipped else "; ".join(words or [])
        word = {"passed": "seen", "skipped": "SKIPPED", "failed": "FAILED"}[report.outcome]
        item.config.stash.setdefault(ROWS, []).append((claim, f"{word} ({report.duration:.0f} s)", reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash.get(ROWS, [])
    if rows:
        terminalreporter.section(f"seen on {os.environ.get('HOST')}, {time.strftime('%Y-%m-%d')}")
        width, middle = (max(len(row[column]) for row in rows) for column in (0, 1))
        for claim, word, reason in rows:
            terminalreporter.line(f"{claim:{width}}  {word:{middle}}  {reason}".rstrip())


def _runs(client: KfpClient) -> list[Any]:
    return list(client.list_runs(page_size=100, sort_by="created_at desc").runs or [])


def _remove(client: KfpClient) -> None:
    """Remove runs, recurring runs and the experiment. The pipeline's versions stay, for the next time."""
    experiment = client.experiment(EXPERIMENT)
    for name in client.recurring_names(EXPERIMENT):
        for recurring in client.recurring(name, EXPERIMENT):
            client.end_recurring(recurring)
    for run in client.list_runs(page_size=100, experiment_id=experiment).runs or []:
        if run.state in ("PENDING", "RUNNING"):
            client.terminate_run(run.run_id)
        client.delete_run(run.run_id)
    client.delete_experiment(experiment)
