"""Git and DVC in any checkout, also without .git, as in a source archive, and without Git itself."""

import getpass
import os
import subprocess

from autoformer.named import CONFIGS
from runtime.common.config import ROOT

# Variables that name another repository, as in a Git hook of one.
_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_NAMESPACE")
_WITHOUT_GIT = CONFIGS / "dvc-without-git"  # a folder with a `config` of DVC


def git(*arguments: str) -> str | None:
    """The output of a Git command in the checkout; None if it fails or Git is missing.

    A checkout of another user is trusted, since its code runs anyway.
    """
    command = ["git", "-c", f"safe.directory={ROOT}", *arguments]
    others = _REPOSITORY if (ROOT / ".git").exists() else ()
    environment = {name: value for name, value in os.environ.items() if name not in others}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def dvc_environment() -> dict[str, str]:
    """Environment variables that DVC needs if there is no Git repository or no user name."""
    variables = {}
    if not any((folder / ".git").exists() for folder in (ROOT, *ROOT.parents)):
        variables["DVC_SYSTEM_CONFIG_DIR"] = str(_WITHOUT_GIT)
    try:
        getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        variables["USER"] = str(os.getuid())
    return variables
