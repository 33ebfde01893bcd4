"""The origin of a run as MLflow tags: commit, data and KFP run."""

import getpass
import os

from autoformer.errors import AutoFormerError
from autoformer.reading import read_yaml
from runtime.common.config import ROOT
from runtime.common.git import git

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
    """`GIT_COMMIT`, which images set, else the commit of the checkout, with "-dirty" if tracked files differ."""
    if commit := os.environ.get("GIT_COMMIT"):
        return commit
    head = git("rev-parse", "HEAD") if (ROOT / ".git").exists() else None
    if head is None:
        return UNKNOWN
    return f"{head}-dirty" if git("status", "--porcelain", "--untracked-files=no") else head


def dvc_revision() -> str:
    """The data's md5 in data.dvc; "unknown" without that file, for example in an image."""
    try:
        return str(read_yaml(ROOT / "data.dvc")["outs"][0]["md5"])
    except (AutoFormerError, KeyError, IndexError, TypeError):
        return UNKNOWN


def user() -> str:
    """The name of the user, or the number if it has no name, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
