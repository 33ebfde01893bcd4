"""What the documents claim of a cluster, on a real one: `make test-cluster HOST=… CLUSTER=… DATA=…`.

Not part of `make test`: it needs a KFP server, and 20 minutes on an idle one of 2 cores. Where KUBECONFIG
reaches the pods, steps are killed as well. It removes the runs that it made. The models that they register stay in
MLflow, under the name of the smoke preset.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import pytest
import yaml
from conftest import EXPERIMENT, OnCluster

from pipeline.cluster.follow_run import TASKS
from runtime.common.config import ROOT

TRAINING = "train_supernet"
EPOCHS = (1, 4, 16)  # of 460 steps, with a checkpoint every 20; more where a training ended before its fault
STEPS = """import os, pathlib, signal, sys
steps = [
    int(folder.name)
    for folder in pathlib.Path("/proc").glob("[0-9]*")
    if {b"python3", b"kfp.dsl.executor_main"} <= set((folder / "cmdline").read_bytes().split(b"\\0"))
]
if not steps:
    sys.exit(print("no process of a step is here"))
"""
KILL, STOP = (f"{STEPS}[os.kill(step, signal.{name}) for step in steps]" for name in ("SIGKILL", "SIGTERM"))
EXHAUST = (
    STEPS.replace("sys", "sys, time", 1)
    + """
def at_work():
    return all(pathlib.Path(f"/proc/{step}").exists() for step in steps)

for step in steps:  # the kernel ends first what is largest and offers itself
    pathlib.Path(f"/proc/{step}/oom_score_adj").write_text("1000")
while at_work():
    if os.fork() == 0:
        taken = b"x" * 2**26
        while at_work():
            time.sleep(0.1)
        os._exit(0)
    time.sleep(0.1)
"""
)
FAULTS = {"process killed": KILL, "process stopped": STOP, "memory exhausted": EXHAUST}
DELETED = "pod deleted"
UNDISTURBED = ("nothing", "nothing, beside the same")
CACHED = set(TASKS) - {"resolve-config", "register-model"}  # data and registry may have changed


class Trained(NamedTuple):
    """A training, and what became of it."""

    figures: str  # the line at its end
    attempts: int  # pods that it had
    has_resumed: bool


def train(cluster: OnCluster, fault: str, *settings: str) -> Trained:
    """Train, with a fault once the store has a checkpoint. A training that ends before has one attempt."""
    submitted = cluster.submit(f"--set={' '.join(settings)}", wait=False)
    if fault not in UNDISTURBED and (pod := cluster.wait_for_checkpoint(submitted.run_id, TRAINING)):
        if fault == DELETED:
            cluster.kubectl("delete", "pod", pod, "--wait=false", check=False)
        else:
            cluster.run(pod, FAULTS[fault])
    cluster.trained(submitted)
    workflow = cluster.client.workflow(submitted.run_id)
    assert workflow is not None
    selector = f"pipeline/runid={submitted.run_id},app.kubernetes.io/component={TRAINING}"
    lines = cluster.kubectl("logs", "-l", selector, "-c", "main", "--tail=-1").splitlines()  # of all its pods
    figures = [line for line in lines if line.startswith(f"{TRAINING}: ") and "top1_percent" in line]
    has_resumed = any(line.startswith(f"{TRAINING}: resumed from step ") for line in lines)
    return Trained(figures[-1], workflow.attempts("train-supernet"), has_resumed)


def test_smoke_runs_to_a_registered_model(on_cluster: OnCluster, seen: list[str]) -> None:
    started = time.monotonic()
    submitted = on_cluster.submit()
    done, cached = submitted.tasks("done"), submitted.tasks("taken from the cache")
    seen.append(f"{len(done)} tasks done, {len(cached)} from the cache, {time.monotonic() - started:.0f} s")
    assert submitted.code == 0
    assert done | cached == set(TASKS)
    assert "the run succeeded: " in submitted.printed


def test_the_same_again_comes_from_the_cache(on_cluster: OnCluster, seen: list[str]) -> None:
    started = time.monotonic()
    submitted = on_cluster.submit()
    seen.append(f"{time.monotonic() - started:.0f} s")
    assert submitted.code == 0
    assert submitted.tasks("taken from the cache") >= CACHED


def test_a_failed_run_ends_with_the_words_of_the_step(on_cluster: OnCluster, seen: list[str]) -> None:
    submitted = on_cluster.submit(data=f"{on_cluster.data}/nowhere")
    last = submitted.printed.rstrip().splitlines()[-1]
    seen.append(last[:300])
    assert submitted.code == 1
    assert "nowhere" in last
    assert f"kubectl -n {on_cluster.namespace} logs " in last


def test_a_terminated_run_says_so(on_cluster: OnCluster) -> None:
    run_id = on_cluster.submit("--fresh", f"--set={TRAINING}.epochs={EPOCHS[-1]}", wait=False).run_id
    time.sleep(20)
    assert on_cluster.submit(f"--terminate={run_id}", wait=False).code == 0
    followed = on_cluster.follow(run_id)
    assert followed.code == 1
    assert f"the run was terminated: {on_cluster.client.page(run_id)}" in followed.printed


def test_a_recurring_run_starts_and_ends(on_cluster: OnCluster) -> None:
    assert on_cluster.submit("--every=1h", wait=False).code == 0
    assert on_cluster.client.recurring_names(EXPERIMENT) == ["smoke"]
    assert on_cluster.submit("--every=never", wait=False).code == 0
    assert on_cluster.client.recurring_names(EXPERIMENT) == []


@pytest.fixture(scope="session")
def trainings(pods: OnCluster) -> dict[str, Future[Trained]]:
    """The same training under each fault, all at once, so that their pods' starts overlap.

    Checkpoints at other steps give each its own work folder in the store; only the two undisturbed ones share theirs.
    A warm-up that no earlier training had makes KFP compute them anew.
    """
    warmup_epochs = f"0.02{int(time.time()) % 1_000_000:06}"
    for epochs in EPOCHS:
        common = (f"{TRAINING}.epochs={epochs}", f"{TRAINING}.warmup_epochs={warmup_epochs}")
        with ThreadPoolExecutor(len(UNDISTURBED) + 1 + len(FAULTS)) as pool:
            begun = {fault: pool.submit(train, pods, fault, *common) for fault in UNDISTURBED}
            for number, fault in enumerate((DELETED, *FAULTS), start=3):
                begun[fault] = pool.submit(train, pods, fault, *common, f"{TRAINING}.checkpoint_steps={number}0")
        faults = [begun[fault] for fault in begun if fault not in UNDISTURBED]
        if not any(each.exception() is None and each.result().attempts == 1 for each in faults):
            break
        print(f"{epochs} epochs were over before a fault")
    return begun


def test_two_equal_trainings_at_once_agree(trainings: dict[str, Future[Trained]], seen: list[str]) -> None:
    first, second = (trainings[fault].result() for fault in UNDISTURBED)
    seen.append(first.figures)
    assert (first.figures, first.attempts, second.attempts) == (second.figures, 1, 1)


@pytest.mark.parametrize("fault", [DELETED, *FAULTS])
def test_a_lost_step_resumes_to_the_same_result(trainings: dict[str, Future[Trained]], fault: str) -> None:
    undisturbed = trainings[UNDISTURBED[0]].result()
    assert trainings[fault].result() == Trained(undisturbed.figures, 2, True)


@pytest.fixture
def two_machines(pods: OnCluster) -> str:
    """Settings that train on two machines."""
    if "trainjobs" not in pods.kubectl("api-resources", "--api-group=trainer.kubeflow.org", check=False):
        pytest.skip("no Kubeflow Trainer there: pipeline/manifests/platform/controllers")
    if not pods.kubectl("get", "trainingruntimes", "-o", "name", check=False):
        pytest.skip("no runtime of our jobs there: pipeline/manifests/training")
    return pods.changed("two-machines", train_supernet={"nodes": 2})


def test_a_step_runs_on_two_machines(pods: OnCluster, two_machines: str) -> None:
    pods.trained(pods.submit("--fresh", cluster=two_machines, wait=False))


def test_a_killed_launcher_finds_its_job_again(pods: OnCluster, two_machines: str) -> None:
    submitted = pods.submit("--fresh", f"--set={TRAINING}.epochs=1", cluster=two_machines, wait=False)
    pod, job = pods.wait_for_job(submitted.run_id, TRAINING)
    pods.run(pod, KILL)
    pods.trained(submitted)
    workflow = pods.client.workflow(submitted.run_id)
    assert workflow is not None and workflow.attempts("train-supernet") == 2
    assert pods.jobs(submitted.run_id) == [job]


def test_training_runs_on_a_gpu(pods: OnCluster) -> None:
    gpus = pods.kubectl("get", "nodes", "-o", r"jsonpath={.items[*].status.allocatable.nvidia\.com/gpu}", check=False)
    if not gpus.strip():
        pytest.skip("no node has a GPU")
    pods.trained(pods.submit("--fresh", cluster=pods.changed("gpu", train_supernet={"gpus": 1}), wait=False))


def test_a_task_may_do_what_it_needs_and_no_more(pods: OnCluster) -> None:
    role = next(yaml.safe_load_all((ROOT / "pipeline/manifests/training/rbac.yaml").read_text()))
    account = f"--as=system:serviceaccount:{pods.namespace}:{pods.settings.service_account or 'pipeline-runner'}"
    if "autoformer-launcher" not in pods.kubectl("get", "roles", "-o", "name"):
        pytest.skip("pipeline/manifests/training is not applied there")

    def may(verb: str, resource: str) -> bool:
        return pods.kubectl("auth", "can-i", verb, resource, account, check=False).strip() == "yes"

    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                name = f"{resource}.{group}" if group else resource
                assert all(may(verb, name) for verb in rule["verbs"]), name
    assert not may("update", "trainjobs.trainer.kubeflow.org")
    assert not may("create", "secrets")
