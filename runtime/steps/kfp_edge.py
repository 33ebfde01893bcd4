"""What the bodies of the KFP components share. No torch, and no kfp: an image without kfp can run it."""

import importlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autoformer.errors import AutoFormerError
from runtime.common.code import step_code
from runtime.common.console import report_error
from runtime.kubernetes.settings import job_settings
from runtime.steps.job_launch import launch

IMAGE = os.environ.get("AUTOFORMER_IMAGE", "autoformer:dev")
"""The image that the components name when the pipeline is compiled: by digest on a cluster, or a cached result
of other code is served. The local runner puts the hash of the source in its place."""


CODE = "AUTOFORMER_STEP_CODE"
"""Environment variable: by step, as JSON, the hash of the code that stands in the run's cache keys."""


def call(step: str, arguments: Sequence[str]) -> None:
    """Run a step as its command line would, and fail the task with the step's exit code.

    Where the task's environment says so (`AUTOFORMER_JOB`), the step runs on several machines, and this process
    follows it; the step itself is then not imported, which a light image could not.
    """
    try:
        _check_code(step)
        job = job_settings()
    except AutoFormerError as error:
        raise SystemExit(report_error(step, error)) from None
    if job is None:
        code = importlib.import_module(f"components.{step}.step").main(list(arguments))
    else:
        code = launch(step, arguments, job)
    if code:
        raise SystemExit(code)


def _check_code(step: str) -> None:
    """Raise `AutoFormerError` where the code is not what the run's cache keys name: they would keep its result."""
    expected = json.loads(os.environ.get(CODE, "{}")).get(step)
    if expected is not None and expected != step_code(step):
        raise AutoFormerError(
            "the code was edited while the pipeline ran; the same command runs what the edit concerns"
        )


def log_metrics(artifact: Any, file: str | Path) -> None:
    """Show the numbers of a step's `metrics.json` as a table of scalars in the KFP UI.

    The file itself becomes the artifact's content: kfp.local takes no task from its cache that has an output
    which is metadata only, since it finds no file there.
    """
    for name, value in json.loads(Path(file).read_text()).items():
        if isinstance(value, int | float):
            artifact.log_metric(name, value)
    shutil.copyfile(file, artifact.path)


def log_uri(artifact: Any) -> None:
    """Show in the KFP UI where the large files of a step's folder are, where they are not in the folder."""
    file = Path(artifact.path) / "stored.json"
    if file.is_file():
        artifact.metadata["uri"] = json.loads(file.read_text())["uri"]
