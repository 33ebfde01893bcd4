"""Where a checkout may lie: odd letters in its path, no Git, another user's, moved, or a copy that DVC made."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kfp import dsl, local

from pipeline.local import quoted_executable
from runtime.common import git as git_module
from runtime.common.config import ROOT
from runtime.tracking.provenance import git_commit

ODD = "Bob's photos é 数 #1 100% $HOME"


@dsl.component
def where() -> str:
    import sys

    return sys.executable


@pytest.fixture
def interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This environment's Python under an odd path, as a checkout's .venv is."""
    place = tmp_path / ODD / ".venv"
    (place / "bin").mkdir(parents=True)
    real = Path(sys.prefix).resolve()
    (place / "bin" / "python").symlink_to(Path(sys.executable).resolve())
    (place / "lib").symlink_to(real / "lib")
    shutil.copy(real / "pyvenv.cfg", place)
    monkeypatch.setattr(sys, "executable", str(place / "bin" / "python"))
    return place / "bin" / "python"


def test_steps_run_whatever_letters_the_path_of_the_checkout_has(interpreter: Path, tmp_path: Path) -> None:
    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / ODD / "runs"))
    with quoted_executable():
        assert where().output == str(interpreter)
    assert sys.executable == str(interpreter)


def copy_of_sources(folder: Path) -> Path:
    """What an archive of the sources has, as far as a command needs it."""
    for name in ("autoformer", "runtime", "commands", "components", "configs", ".dvc/config", ".dvcignore"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, folder / name)
    for name in ("data.dvc", "dvc.yaml", "params.yaml"):
        shutil.copy2(ROOT / name, folder)
    return folder


def python(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(folder), "DVC_NO_ANALYTICS": "true"}
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, cwd=folder, env=environment, check=False, capture_output=True, text=True)


def test_data_is_recorded_in_an_archive_of_the_sources_which_has_no_git(tmp_path: Path) -> None:
    checkout = copy_of_sources(tmp_path / ODD)
    (checkout / "data" / "mine").mkdir(parents=True)
    (checkout / "data" / "mine" / "a.txt").write_text("an image")
    before = (checkout / "data.dvc").read_text()
    done = python(checkout, "commands.record_data", "--force")
    assert (done.returncode, done.stderr) == (0, "")
    assert (checkout / "data.dvc").read_text() != before
    (checkout / "data.dvc").write_text("outs: 7\n")
    done = python(checkout, "commands.record_data", "--force")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("data: the images are there, but DVC could not record them in data.dvc: ")


def test_the_commit_of_another_users_checkout_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message=x", "--allow-empty"]
    for arguments in (["init", "--quiet"], commit):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # Git's own switch for this
    monkeypatch.delenv("GIT_COMMIT", raising=False)
    monkeypatch.setattr(git_module, "ROOT", tmp_path)
    assert len(git_commit()) == 40


def test_without_the_program_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("GIT_COMMIT", raising=False)
    assert git_module.git("rev-parse", "HEAD") is None
    assert git_commit() == "unknown"
