"""Where a checkout may lie: odd letters in its path, no Git, another user's, moved, or a copy that DVC made."""

# ruff: noqa: F401, F811 - fixtures are imported, and then asked for by name

import getpass
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kfp import dsl, local
from tracking_fixtures import empty_store, use_store

from autoformer.errors import AutoFormerError
from pipeline import repro
from pipeline.local import quoted_executable
from runtime import tracking
from runtime.common import config
from runtime.common import git as git_module
from runtime.common.config import ROOT
from runtime.common.workspace import work_root
from runtime.tracking.experiments import experiment_id
from runtime.tracking.moved import follow
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
    done = python(checkout, "commands.record_data")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "record them: python -m commands.record_data --force" in done.stderr and "-f|" not in done.stderr
    assert (checkout / "data.dvc").read_text() == before
    done = python(checkout, "commands.record_data", "--force")
    assert (done.returncode, done.stderr) == (0, "")
    assert (checkout / "data.dvc").read_text() != before
    (checkout / "data.dvc").write_text("outs: 7\n")
    done = python(checkout, "commands.record_data", "--force")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("data: the images are there, but DVC could not record them in data.dvc: ")


def repository(folder: Path, message: str = "x") -> Path:
    folder.mkdir(exist_ok=True)
    commit = ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", f"--message={message}", "--allow-empty"]
    for arguments in (["init", "--quiet"], commit):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    return folder


def head(folder: Path) -> str:
    return subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("kind", ["clone", "worktree"])
def test_the_commit_is_that_of_the_checkout_also_in_a_git_hook_of_another_repository(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout, other = repository(tmp_path / "checkout"), repository(tmp_path / "other", "y")
    if kind == "worktree":
        subprocess.run(["git", "worktree", "add", "--quiet", tmp_path / "tree"], cwd=checkout, check=True)
        checkout = tmp_path / "tree"
    wanted, not_wanted = head(checkout).strip(), head(other).strip()
    monkeypatch.setattr(git_module, "ROOT", checkout)
    monkeypatch.setattr("runtime.tracking.provenance.ROOT", checkout)
    monkeypatch.delenv("GIT_COMMIT", raising=False)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    assert git_commit() == wanted != not_wanted


def test_the_commit_of_another_users_checkout_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository(tmp_path)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # Git's own switch for this
    monkeypatch.delenv("GIT_COMMIT", raising=False)
    monkeypatch.setattr(git_module, "ROOT", tmp_path)
    assert len(git_commit()) == 40


def test_without_the_program_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("GIT_COMMIT", raising=False)
    assert git_module.git("rev-parse", "HEAD") is None
    assert git_commit() == "unknown"


@pytest.mark.parametrize("how", ["renamed", "copied"])
def test_artifacts_are_found_and_written_in_a_checkout_that_was(
    how: str, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / ODD / "checkout", tmp_path / "else where"
    old.mkdir(parents=True)
    shutil.copyfile(empty_store, old / "mlflow.db")
    use_store(f"sqlite:///{old / 'mlflow.db'}", tmp_path / "work", monkeypatch)
    client = tracking.initialise(tracking.tracking_uri())
    first = client.create_run(experiment_id(client)).info.run_id
    client.log_text(first, "seven", "note.txt")
    before = sorted(old.rglob("*.txt"))
    assert len(before) == 1
    if how == "renamed":
        old.rename(new)
    else:
        shutil.copytree(old, new)
    use_store(f"sqlite:///{new / 'mlflow.db'}", tmp_path / "work", monkeypatch)
    moved = tracking.initialise(tracking.tracking_uri())
    assert f"was in {old}; its addresses of artifacts now name this place" in capsys.readouterr().out
    assert moved.download_artifacts(first, "note.txt", str(tmp_path)) and (tmp_path / "note.txt").read_text() == "seven"
    moved.log_text(moved.create_run(experiment_id(moved)).info.run_id, "eight", "note.txt")
    assert len(sorted(new.rglob("*.txt"))) == 2
    assert old.exists() == (how == "copied") and sorted(old.rglob("*.txt")) == (before if how == "copied" else [])
    assert follow(new / "mlflow.db") is None  # once is enough


def test_a_checkout_behind_a_link_keeps_its_addresses(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "checkout"
    place.mkdir()
    shutil.copyfile(empty_store, place / "mlflow.db")
    (tmp_path / "link").symlink_to(place)
    use_store(f"sqlite:///{place / 'mlflow.db'}", tmp_path / "work", monkeypatch)
    client = tracking.initialise(tracking.tracking_uri())
    client.log_text(client.create_run(experiment_id(client)).info.run_id, "seven", "note.txt")
    assert follow(tmp_path / "link" / "mlflow.db") is None


@pytest.mark.parametrize("queue", ["standalone/tmpa1", "tmpb2"])
def test_an_experiment_in_a_copy_that_dvc_deletes_uses_the_checkouts_store_and_work(
    queue: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_URI", "AUTOFORMER_WORK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(config, "ROOT", tmp_path / ".dvc" / "tmp" / "exps" / queue)
    assert tracking.tracking_uri() == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert work_root() == tmp_path / "work"


@pytest.mark.parametrize(
    ("named", "meant"),
    [("sqlite:///mlflow.db", "sqlite:///{}/mlflow.db"), ("sqlite:////a/b.db?timeout=9", "sqlite:////a/b.db?timeout=9")],
)
def test_an_experiment_in_a_copy_that_dvc_deletes_reads_relative_addresses_as_those_of_the_checkout(
    named: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", named)
    monkeypatch.setenv("AUTOFORMER_WORK", "fast/work")
    assert (tracking.tracking_uri(), work_root()) == (named, Path("fast/work"))
    monkeypatch.setattr(config, "ROOT", tmp_path / ".dvc" / "tmp" / "exps" / "standalone" / "tmpa1")
    assert (tracking.tracking_uri(), work_root()) == (meant.format(tmp_path), tmp_path / "fast" / "work")


@pytest.mark.parametrize("name", ["why?", "100%", "\"both\" and 'both'", "latin-1 \udce9"])
def test_a_checkout_whose_path_no_address_can_hold_is_refused_before_anything_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(config, "ROOT", tmp_path / name)
    with pytest.raises(AutoFormerError, match=r"rename the folder") as error:
        tracking.tracking_uri()
    assert "\n" not in str(error.value) and str(error.value).isprintable()


def test_in_a_log_dvc_draws_no_bars_even_where_the_environment_asks_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = copy_of_sources(tmp_path)
    (checkout / "data").mkdir()
    monkeypatch.setenv("DVC_IGNORE_ISATTY", "1")
    command = [sys.executable, "-m", "dvc", "commit", "--force", "data.dvc"]

    def output(environment: dict[str, str]) -> bytes:
        environment |= git_module.dvc_environment() | {"DVC_SYSTEM_CONFIG_DIR": str(ROOT / "configs/dvc-without-git")}
        return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, check=True).stderr

    assert b"\r" in output(dict(os.environ))
    assert b"\r" not in output(repro._environment())


@pytest.mark.parametrize("has_name", [True, False])
def test_dvc_works_under_a_number_that_has_no_user_name(has_name: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under any number. DVC asks `getpass`, which reads USER first."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    if not has_name:
        monkeypatch.setattr(pwd, "getpwuid", dict[int, object]().__getitem__)
    assert git_module.dvc_environment().get("USER") == (None if has_name else str(os.getuid()))
    for name, value in git_module.dvc_environment().items():
        monkeypatch.setenv(name, value)
    assert getpass.getuser()
