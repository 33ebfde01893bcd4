"""Where a run comes from: commit, data and KFP run, as MLflow tags."""

import getpass
import os
import shutil
import subprocess

from autoformer.errors import AutoFormerError
from autoformer.files import read_yaml
from runtime.common.config import ROOT

UNKNOWN = "unknown"


def provenance_tags() -> dict[str, str]:
    commit = git_commit()
    tags = {
        "git_commit": commit,
        "dvc_revision": dvc_revision(),
        "mlflow.source.name": "autoformer-pipeline",
        "mlflow.source.type": "PROJECT",
        "mlflow.user": user(),
    }
    if commit != UNKNOWN:
        tags["mlflow.source.git.commit"] = commit.removesuffix("-dirty")
    if kfp_run := os.environ.get("KFP_RUN_ID"):
        tags["kfp_run_id"] = kfp_run
    return tags


def git_commit() -> str:
    """The commit of the code, with "-dirty" where tracked files differ from it. An image says it in `GIT_COMMIT`."""
    given = os.environ.get("GIT_COMMIT")
    if given:
        return given
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return UNKNOWN
    head = _git("rev-parse", "HEAD")
    return f"{head}-dirty" if _git("status", "--porcelain", "--untracked-files=no") else head or UNKNOWN


def _git(*arguments: str) -> str:
    result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else ""


def dvc_revision() -> str:
    """The md5 that data.dvc gives to the data; "unknown" where there is none, as in an image."""
    try:
        outs = read_yaml(ROOT / "data.dvc")["outs"]
        return str(outs[0]["md5"])
    except (AutoFormerError, KeyError, IndexError, TypeError):
        return UNKNOWN


def user() -> str:
    """Who runs this; a container may run under a number that has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
