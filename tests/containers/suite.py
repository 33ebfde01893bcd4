"""The images as they are built, and the pipeline in them: `make test-containers`.

Not part of `make test`: it downloads gigabytes and takes minutes. What it needs is a Docker daemon in `DOCKER_HOST`, as
`tests/containers/with-docker.sh` gives it one.
"""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import boto3
import pytest
from mlflow_server import free_port, server, wait_for
from s3_server import S3Server
from tracking_fixtures import make_empty_store
from whole_run import LIMIT_SECONDS, Checkout, bytes_below, check_out, only

from pipeline.containers import CHECKOUT_LABEL, Containers, MountedPath
from pipeline.images import connect, images_of_checkout
from pipeline.step_processes import StepProcesses
from runtime.common.code import package_code
from runtime.common.config import ROOT, STEPS

if TYPE_CHECKING:
    from docker import DockerClient

MARKER = "marker-of-a-package-index"  # in the builder's package index, which no layer may hold
BUILD = "--network host --quiet"
REBUILD_SECONDS = 60.0  # after a change of code; measured: 10 on two cores
# As on a cluster that is strict: any user, a read-only root, nothing but a /tmp to write to, and here no network.
STRICT = {"read_only": True, "tmpfs": {"/tmp": ""}, "network_mode": "none", "security_opt": ["no-new-privileges"]}


class Built(NamedTuple):
    """The images by name, and what the command printed of them."""

    images: dict[str, str]
    printed: str


@pytest.fixture(scope="session")
def client() -> Iterator["DockerClient"]:
    client = connect()
    yield client
    client.close()


def build(root: Path = ROOT, environment: dict[str, str] | None = None) -> tuple[str, float]:
    """`make images`; what it printed, and its seconds."""
    started = time.monotonic()
    command = [sys.executable, "-m", "pipeline.images", f"--build={BUILD}"]
    result = subprocess.run(command, cwd=root, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return result.stdout, time.monotonic() - started


@pytest.fixture(scope="session")
def built(client: "DockerClient", measured: list[str]) -> Built:
    """Both images, from a builder whose package index holds a secret."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PIP_TRUSTED_HOST": f"{MARKER}.invalid"}
    printed, seconds = build(environment=environment)
    measured += [f"the images, built in {seconds:.0f} s:", *printed_lines(printed)]
    return Built(images_of_checkout(client), printed)


def printed_lines(printed: str) -> list[str]:
    """Those of the command itself: name, id and size."""
    return [line for line in printed.splitlines() if line.startswith("autoformer-")]


def said(client: "DockerClient", image: str, *command: str, **options: object) -> str:
    """What a command prints in a container that may do as little as possible."""
    return client.containers.run(image, list(command), remove=True, **STRICT | options).decode()


# What is in them


def test_names_ids_and_sizes_are_printed(built: Built, client: "DockerClient") -> None:
    lines = printed_lines(built.printed)
    assert [line.split()[0] for line in lines] == [built.images["launcher"], built.images["training"]]
    for line, most_gb in zip(lines, (0.7, 8.0), strict=True):
        name, identity, size, unit = line.split()
        assert client.images.get(name).id == identity
        assert (float(size) < most_gb, unit) == (True, "GB")


@pytest.mark.parametrize("user", ["", "54321:0", "54321:54321"])
def test_any_user_on_a_read_only_root_compiles_and_resolves(built: Built, client: "DockerClient", user: str) -> None:
    """The user of the image itself is none that has a password, or a name, or is root."""
    code = "import os, sys; from components.resolve_config.step import resolve; "
    code += "from runtime.common.code import package_code; "
    code += "from pipeline.cluster.compile import write_package; from pathlib import Path; "
    code += "write_package(Path('/tmp/x.yaml')); "
    code += "print(os.getuid(), resolve('demo').name, package_code(), 'torch' in sys.modules)"
    told = said(client, built.images["launcher"], "python", "-c", code, user=user).split()
    assert told == [user.partition(":")[0] or "1000", "demo", package_code(), "False"]


def test_each_image_has_what_its_steps_import_and_no_more(built: Built, client: "DockerClient") -> None:
    code = "import importlib.util as u; print(*[p for p in {} if u.find_spec(p)])"
    asked = ["torch", "timm", "mlflow", "dvc", "boto3", "kfp", "kubernetes", "pytest", "moto", "pip", "uv"]
    found = {name: said(client, image, "python", "-c", code.format(asked)) for name, image in built.images.items()}
    assert found["launcher"].split() == ["boto3", "kfp", "kubernetes"]
    assert found["training"].split() == ["torch", "timm", "mlflow", "boto3", "kfp"]
    steps = ", ".join(f"components.{step}.step" for step in STEPS)
    code = f"import torch, torchvision, scipy, psutil, tqdm, {steps}; from components.resolve_config import step; "
    code += "print(torch.version.cuda is not None, step.package_code())"
    told = said(client, built.images["training"], "python", "-c", code, user="54321:0")
    assert told.split() == ["True", package_code()]


def test_no_secret_and_no_cache_is_in_a_layer(built: Built, client: "DockerClient") -> None:
    """A layer that the next one hides would be seen in none of them alone, so sizes are held against the whole."""
    bundle = Path("/etc/ssl/certs/ca-certificates.crt").read_text()
    for image in built.images.values():
        told = json.dumps([client.images.get(image).attrs, client.images.get(image).history()])
        assert MARKER not in told
        search = "grep -rIl --exclude-dir=proc --exclude-dir=sys {} / 2>/dev/null; true"
        assert said(client, image, "sh", "-c", search.format(MARKER), user="0:0") == ""
        left = "find / -xdev ( -path /cache/* -o -path /opt/uv/* -o -path */.cache/* -o -name index -path /run/* )"
        assert said(client, image, *left.split(), user="0:0") == ""
        base = said(client, "python:3.11-slim-bookworm", "cat", "/etc/ssl/certs/ca-certificates.crt")
        assert said(client, image, "cat", "/etc/ssl/certs/ca-certificates.crt") == base
        if bundle != base:
            assert bundle not in told
        files = int(said(client, image, "du", "-sxb", "--apparent-size", "/", user="0:0").split()[0])
        assert client.images.get(image).attrs["Size"] < 1.15 * files, "no layer hides what another holds"


def test_labels_say_where_an_image_comes_from(built: Built, client: "DockerClient") -> None:
    for name, image in built.images.items():
        found = client.images.get(image)
        assert found.labels["org.opencontainers.image.title"] == f"autoformer-{name}"
        assert found.labels["org.opencontainers.image.licenses"] == "MIT"
        revision = found.labels["org.opencontainers.image.revision"]
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", revision)
        assert f"GIT_COMMIT={revision}" in found.attrs["Config"]["Env"]
        assert image.partition(":")[2] != "latest"


# A container of KFP's runner


def contained(client: "DockerClient", seen: Sequence[MountedPath], image: str, *command: str) -> int:
    """Run a command as KFP's runner does; its exit code."""
    options = Containers(StepProcesses()).runner(seen).container_run_args
    return Containers(StepProcesses()).run(client, image, list(command), {}, **options)


def test_exit_codes_and_lines_arrive(built: Built, client: "DockerClient", capfd: pytest.CaptureFixture[str]) -> None:
    """A hundred lines at once, and a code at once after them: KFP's own function sometimes sees neither whole."""
    for code in (0, 3, 2, 1):
        command = f'i=0; while [ $i -lt 100 ]; do echo "line $i"; i=$((i+1)); done; echo err >&2; echo end; exit {code}'
        assert contained(client, [], built.images["launcher"], "sh", "-c", command) == code
        out = capfd.readouterr().out.splitlines()
        assert sorted(out) == sorted([*(f"line {i}" for i in range(100)), "err", "end"])
    assert ours(client) == []


def ours(client: "DockerClient", root: Path = ROOT) -> list[str]:
    """The containers of a checkout, running or not."""
    found = client.containers.list(all=True, filters={"label": f"{CHECKOUT_LABEL}={root}"})
    return [str(container.name) for container in found]


def test_files_belong_to_the_caller(built: Built, client: "DockerClient", tmp_path: Path) -> None:
    """To a caller who is not root, and has Docker by the group of its socket, as users do."""
    socket = Path(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://"))
    if os.getuid() != 0 or not socket.exists():
        pytest.skip("only root can become another user")
    (place := tmp_path / "place").mkdir()
    os.chown(place, 54321, 54322)
    for folder in (place, *place.parents):
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(folder.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)
    containers = Containers(StepProcesses())
    containers.runner([])  # so that all is imported, which the other user may not read
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([socket.stat().st_gid])
            os.setgid(54322)
            os.setuid(54321)
            options = containers.runner([MountedPath(place, writable=True)]).container_run_args
            command = ["sh", "-c", f"echo done >{place}/file"]
            code = containers.run(connect(), built.images["launcher"], command, {}, **options)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert ((place / "file").stat().st_uid, (place / "file").stat().st_gid) == (54321, 54322)


LOYAL = """
import time
from runtime.steps.command import run_step, step_parser
def body(arguments, config):
    print("at work", flush=True)
    time.sleep(600)
raise SystemExit(run_step("prepare_data", step_parser("prepare_data", ""), body, ["--config", "smoke"]))
"""
RUNNER = """
import os, sys
from pathlib import Path
from pipeline.containers import Containers, MountedPath
from pipeline.step_processes import StepProcesses
os.environ["AUTOFORMER_RUNNER_PID"] = str(os.getpid())
containers = Containers(StepProcesses())
options = containers.runner([]).container_run_args
containers.run(containers._client, sys.argv[1], ["sh", "-ec", f"python -c '{sys.argv[2]}'\\n"], {}, **options)
"""


def test_a_runner_that_is_killed_takes_its_container_with_it(built: Built, client: "DockerClient") -> None:
    command = [sys.executable, "-c", RUNNER, built.images["training"], LOYAL]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as runner:
        assert runner.stdout is not None
        assert runner.stdout.readline() == "at work\n"
        runner.kill()
    (container,) = client.containers.list(filters={"label": f"{CHECKOUT_LABEL}={ROOT}"})
    assert container.wait(timeout=35)["StatusCode"] == 143
    assert container.logs().decode().splitlines()[-1].startswith("prepare_data: stopped by SIGTERM")
    Containers(StepProcesses()).runner([])  # the next one removes it
    assert ours(client) == []


# The pipeline


@pytest.fixture(scope="session")
def checkouts(tmp_path_factory: pytest.TempPathFactory, fashion_mnist: Path) -> dict[str, Checkout]:
    """Copies of the repository: one whose steps are processes, and one whose steps are containers."""
    store = make_empty_store(tmp_path_factory.getbasetemp() / "mlflow-store")
    names = ("processes", "containers")
    return {name: check_out(tmp_path_factory.mktemp(name), fashion_mnist, store) for name in names}


class Run(NamedTuple):
    checkout: Checkout
    folder: Path  # runs/<id>
    output: str
    seconds: float


@pytest.fixture(scope="session")
def runs(checkouts: dict[str, Checkout], built: Built, measured: list[str]) -> dict[str, Run]:
    """The same pipeline by both runners, at the same time: each has one thread."""
    started = time.monotonic()
    command = [sys.executable, "-m", "pipeline.local", "--preset"]
    processes = {
        name: checkout.start(*command, str(checkout.preset), *(["--runner", "docker"] if name == "containers" else []))
        for name, checkout in checkouts.items()
    }
    found = {}
    for name, process in processes.items():
        out, err = process.communicate(timeout=LIMIT_SECONDS)
        assert process.returncode == 0, f"{name}: {out}\n{err}"
        folder = only(checkouts[name].root.glob("runs/autoformer-*"))
        found[name] = Run(checkouts[name], folder, out, time.monotonic() - started)
    measured += [f"the pipeline by both runners side by side: {time.monotonic() - started:.0f} s"]
    return found


def chosen(run: Path) -> dict[str, bytes]:
    """What was scored, what was chosen, and the weights that it was given at the end."""
    files = {f"search/{name}": run / "search-subnet" / "search" / name for name in ("candidates.csv", "chosen.yaml")}
    return {name: file.read_bytes() for name, file in files.items()} | bytes_below(run / "retrain-subnet/retrain/model")


def test_containers_choose_what_processes_choose(runs: dict[str, Run]) -> None:
    """Every candidate and its score, the subnet, and its weights after retraining, to the byte."""
    assert chosen(runs["containers"].folder) == chosen(runs["processes"].folder)


def test_a_person_sees_the_same_lines(runs: dict[str, Run]) -> None:
    def without_clocks(output: str) -> list[str]:
        """No progress either, nor that something is waited for, which a slow machine tells of more often."""
        clocks = r"\d+ s$|[\d.]+ min|run [0-9a-f]{32}|\d{4}(-\d\d){5}(-\d+)?"
        lines = [re.sub(clocks, "", line) for line in output.splitlines()]
        return [line.rstrip() for line in lines if not re.search(r": \d+/\d+ \w+, |tracking: waiting", line)]

    assert without_clocks(runs["containers"].output) == without_clocks(runs["processes"].output)


def test_nothing_is_written_but_what_a_run_writes(runs: dict[str, Run]) -> None:
    checkout = runs["containers"].checkout
    assert checkout.command("git", "status", "--porcelain", "--untracked-files=all").stdout == ""
    assert {path.name for path in checkout.root.parent.iterdir()} == {
        "repository", "tiny.yaml", "mlflow.db", "mlflow.db.lock", "mlflow.db.registration.lock", "mlruns", "work",
        "dvc",
    } - ({"dvc"} if not (checkout.root.parent / "dvc").exists() else set())  # fmt: skip
    everything = [path for path in checkout.root.parent.rglob("*") if not path.is_symlink()]
    assert {(path.stat().st_uid, path.stat().st_gid) for path in everything} == {(os.getuid(), os.getgid())}


class Remote(NamedTuple):
    """A run that was stopped by Ctrl-C while it trained the supernet, and the same command again."""

    stopped: "subprocess.CompletedProcess[str]"
    left: list[str]  # containers, once it had ended
    checkpoints: list[Path]
    run: Run


@pytest.fixture(scope="session")
def remote(
    checkouts: dict[str, Checkout],
    built: Built,
    client: "DockerClient",
    s3_process: S3Server,
    fashion_mnist: Path,
    tmp_path_factory: pytest.TempPathFactory,
    measured: list[str],
) -> Iterator[Remote]:
    """In containers, as on a cluster: data in S3, weights and checkpoints in S3, and MLflow behind a server.

    No container is given a folder but `runs/` and the one for work: what else it has comes by the network.
    """
    for file in fashion_mnist.iterdir():
        s3_client(s3_process).upload_file(str(file), s3_process.bucket, f"data/fashion-mnist/{file.name}")
    folder, port = tmp_path_factory.mktemp("remote"), free_port()
    aws = s3_process.environment | {"AWS_ENDPOINT_URL_S3": s3_process.endpoint}
    environment = checkouts["containers"].environment | aws | {
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}",
        "AUTOFORMER_STORE": s3_process.uri("store"),
        "AUTOFORMER_WORK": str(folder / "work"),
    }  # fmt: skip
    checkout = Checkout(checkouts["containers"].root, environment)
    arguments = ["--runner", "docker", "--data", s3_process.uri("data/fashion-mnist")]
    with server(folder, port, s3_process.uri("mlflow"), aws):
        wait_for(port)
        started = time.monotonic()
        stopped = stopped_in_training(checkout, arguments)
        left, checkpoints = ours(client, checkout.root), list(checkout.work.glob("train_supernet/*/checkpoint*.pt"))
        before = set(checkout.root.glob("runs/autoformer-*"))
        output = checkout.run(*arguments).stdout
        seconds = time.monotonic() - started
        measured += [f"the pipeline in containers with S3 and an MLflow server, stopped once: {seconds:.0f} s"]
        found = only(set(checkout.root.glob("runs/autoformer-*")) - before)
        yield Remote(stopped, left, checkpoints, Run(checkout, found, output, seconds))


def stopped_in_training(checkout: Checkout, arguments: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Start the pipeline, and press Ctrl-C when the supernet has its first checkpoint."""
    command = [sys.executable, "-m", "pipeline.local", "--preset", str(checkout.preset), *arguments]
    runner = checkout.start(*command)
    give_up = time.monotonic() + LIMIT_SECONDS
    while not list(checkout.work.glob("train_supernet/*/checkpoint.pt")):
        assert runner.poll() is None, runner.communicate()
        assert time.monotonic() < give_up, "no checkpoint"
        time.sleep(0.05)
    runner.send_signal(signal.SIGINT)
    out, err = runner.communicate(timeout=120)
    return subprocess.CompletedProcess(command, runner.returncode, out, err)


def s3_client(s3: S3Server) -> Any:
    told = s3.environment
    keys = {"aws_access_key_id": told["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": told["AWS_SECRET_ACCESS_KEY"]}
    return boto3.client("s3", endpoint_url=s3.endpoint, region_name=told["AWS_DEFAULT_REGION"], **keys)


def test_ctrl_c_ends_the_container_with_a_checkpoint(remote: Remote) -> None:
    lines = remote.stopped.stderr.splitlines()
    assert remote.stopped.returncode == 130
    assert re.match(r"train_supernet: stopped by SIGTERM at step \d+ of 47; the same command resumes", lines[-2])
    assert lines[-1] == "pipeline: stopped by SIGINT; the same command resumes from there"
    assert remote.left == []
    assert "checkpoint-interrupted.pt" in {path.name for path in remote.checkpoints}
    assert re.search(r"train_supernet: resumed from step \d+ of 47", remote.run.output)


def test_with_s3_and_a_server_they_choose_the_same(remote: Remote, runs: dict[str, Run]) -> None:
    """As the processes did with files and sqlite: every candidate and its score, the subnet, and its weights."""
    theirs = runs["processes"].folder / "search-subnet" / "search"
    here = remote.run.folder / "search-subnet" / "search"
    for name in ("candidates.csv", "chosen.yaml"):
        assert (here / name).read_bytes() == (theirs / name).read_bytes()
    tested = "evaluate-subnet/evaluation/metrics.json"
    assert (remote.run.folder / tested).read_bytes() == (runs["processes"].folder / tested).read_bytes()


def test_large_things_are_in_the_store_and_the_rest_in_mlflow(remote: Remote, s3_process: S3Server) -> None:
    import mlflow

    pages = s3_client(s3_process).get_paginator("list_objects_v2").paginate(Bucket=s3_process.bucket)
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
    stored = {Path(key).name for key in keys if key.startswith("store/")}
    assert "ema.safetensors" in stored
    assert any(key.startswith("mlflow/") for key in keys)
    assert not list(remote.run.folder.rglob("train-supernet/**/*.safetensors")), "of the supernet KFP has the address"
    client = mlflow.MlflowClient(remote.run.checkout.store, remote.run.checkout.store)
    experiment = client.get_experiment_by_name("autoformer")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    names = {run.info.run_name for run in found}
    assert set(STEPS) <= names
    assert {run.info.status for run in found} == {"FINISHED"}, "what was stopped went on in its own run"
    assert client.get_model_version_by_alias("fashion-mnist-tiny", "champion").version == "1"


def test_the_same_run_again_is_taken_from_the_cache(runs: dict[str, Run]) -> None:
    checkout = runs["containers"].checkout
    again = checkout.run("--runner", "docker").stdout
    assert again.count("taken from the cache") == 5


def test_a_step_that_refuses_says_why_in_one_line(runs: dict[str, Run], client: "DockerClient") -> None:
    checkout = runs["containers"].checkout
    result = checkout.run("--runner", "docker", "--set", "search_subnet.images=1000000", code=2)
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("search_subnet: search_subnet.images = 1000000: the search split has ")
    assert ours(client, checkout.root) == []


def test_changed_code_is_refused_until_it_is_built_which_takes_seconds(
    runs: dict[str, Run], built: Built, client: "DockerClient", measured: list[str]
) -> None:
    checkout = runs["containers"].checkout
    edited = checkout.root / "components" / "train_supernet" / "step.py"
    text = edited.read_text()
    edited.write_text(f"{text}\n# edited\n")
    result = checkout.run("--runner", "docker", code=2)
    assert "was built from other source than this checkout holds; `make images` builds it again" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    printed, seconds = build(checkout.root, checkout.environment)
    measured += [f"the images, built again after a change of code: {seconds:.0f} s"]
    assert seconds < REBUILD_SECONDS
    after = {line.split()[0] for line in printed_lines(printed)}
    assert after.isdisjoint(built.images.values()), "another tag, and so another key of KFP's cache"
    edited.write_text(text)
    build(checkout.root, checkout.environment)
    assert images_of_checkout(client) == built.images, "the code of before has the tag of before"
