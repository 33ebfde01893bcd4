"""A copy of the repository, and one whole run of the pipeline in it, for the tests from end to end.

Every step is a process that imports torch, timm and MLflow, some fifteen seconds; so the tests share one run.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from planted import SECRETS
from tracking_fixtures import VARIABLES

from runtime.common.config import ROOT

# Real images, everything else as small as it goes. Training is just long enough to be killed on the way.
TINY = """\
name: tiny
seed: 0
threads: 1
device: cpu
dataset: fashion-mnist
space: fashion-mnist
prepare_data:
  search_images: 200
train_supernet:
  epochs: 0.05
  batch_size: 64
  learning_rate: 0.002
  warmup_epochs: 0.01
  ema_decay: 0.9
  augmentation: {crop_padding: 1, flip: true}
  log_steps: 2
  score_steps: 20
  score_images: 200
  checkpoint_steps: 2
search_subnet:
  population: 4
  generations: 1
  parents: 2
  mutations: 2
  crossovers: 2
  images: 200
  limits: {max_params_m: 0.5}
retrain_subnet:
  mode: finetune
  epochs: 0.01
  batch_size: 64
  learning_rate: 0.001
  log_steps: 2
  score_steps: 4
  score_images: 200
  checkpoint_steps: 4
evaluate_subnet:
  mistakes: 4
register_model:
  model_name: fashion-mnist-tiny
  min_top1_percent: 0.0
"""
LIMIT_SECONDS = 1800  # of one command, so that a hang ends; a busy machine takes many times what a quiet one does


class Checkout(NamedTuple):
    """A copy of the repository as it is, with its own MLflow store and its own work in progress."""

    root: Path
    environment: dict[str, str]

    @property
    def preset(self) -> Path:
        return self.root.parent / "tiny.yaml"

    @property
    def store(self) -> str:
        return self.environment["MLFLOW_TRACKING_URI"]

    @property
    def work(self) -> Path:
        return Path(self.environment["AUTOFORMER_WORK"])

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, cwd=self.root, env=self.environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def command(self, *command: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run to the end; the exit code must be `code`, any where that is None."""
        process = self.start(*command)
        try:
            out, err = process.communicate(timeout=LIMIT_SECONDS)
        finally:
            process.kill()  # an interrupted test leaves none behind
        assert code is None or process.returncode == code, f"{command}: {process.returncode}\n{out}\n{err}"
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def python(self, module: str, *arguments: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        return self.command(sys.executable, "-m", module, *arguments, code=code)

    def run(self, *arguments: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """`make run` with the tiny preset."""
        return self.python("pipeline.local", "--preset", str(self.preset), *arguments, code=code)


class WholeRun(NamedTuple):
    """A run that was killed while it trained the supernet, and the same command again."""

    checkout: Checkout
    orphan_seconds: float  # how long the step outlived its runner
    first_output: str
    output: str
    folder: Path  # runs/<id> of the second
    first_folder: Path


def check_out(parent: Path, data: Path, empty_store: Path) -> Checkout:
    """Copy the files that git knows or would know, and the images, below `parent`."""
    root = parent / "repository"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():  # a file that was deleted is listed until that is committed
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    shutil.copytree(data, root / "data" / data.name)
    shutil.copyfile(empty_store, parent / "mlflow.db")
    (parent / "tiny.yaml").write_text(TINY)
    checkout = Checkout(root, _environment(parent, root))
    checkout.command("git", "init", "--quiet", "--initial-branch=main")
    checkout.command("git", "add", "--all")
    checkout.command("git", "commit", "--quiet", "--message=as it is")
    return checkout


def _environment(parent: Path, root: Path) -> dict[str, str]:
    ours = (*VARIABLES, "AUTOFORMER_TRACKING", "AUTOFORMER_TTY", "AUTOFORMER_IMAGE", "GIT_COMMIT", "GIT_DIR")
    inherited = {key: value for key, value in os.environ.items() if key not in ours}
    who = {f"GIT_{role}_{what}": "tests" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return inherited | who | SECRETS | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(root),  # before the installed project, which is the repository itself
        "MLFLOW_TRACKING_URI": f"sqlite:///{parent / 'mlflow.db'}",
        "AUTOFORMER_WORK": str(parent / "work"),
        "OMP_NUM_THREADS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DVC_NO_ANALYTICS": "true",
        "DVC_SITE_CACHE_DIR": str(parent / "dvc"),
    }  # fmt: skip


def whole_run(checkout: Checkout) -> WholeRun:
    """Start the pipeline, kill the runner when the supernet has its first checkpoint, run the same command again."""
    runner = checkout.start(sys.executable, "-m", "pipeline.local", "--preset", str(checkout.preset))
    try:
        give_up = time.monotonic() + LIMIT_SECONDS
        while not list(checkout.work.glob("train_supernet/*/checkpoint.pt")):
            assert runner.poll() is None, runner.communicate(timeout=60)
            assert time.monotonic() < give_up, "no checkpoint"
            time.sleep(0.05)
        assert steps_of(runner.pid), "a step is at work"
    finally:
        runner.kill()
    runner.wait(60)
    killed_at = time.monotonic()
    while steps_of(runner.pid) and time.monotonic() < killed_at + 60:
        time.sleep(0.1)
    orphan_seconds = time.monotonic() - killed_at
    first_output = runner.communicate(timeout=60)[0]
    first_folder = only(checkout.root.glob("runs/autoformer-*"))
    output = checkout.run().stdout
    folder = only(set(checkout.root.glob("runs/autoformer-*")) - {first_folder})
    return WholeRun(checkout, orphan_seconds, first_output, output, folder, first_folder)


def steps_of(runner: int) -> list[int]:
    """The processes that a runner has told its own process id, by /proc."""
    wanted = f"AUTOFORMER_RUNNER_PID={runner}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
        except OSError:  # it has ended, or is another person's
            continue
    return found


def only(folders: Iterable[Path]) -> Path:
    (folder,) = folders
    return folder


def bytes_below(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
