"""Code shared by the bodies of the KFP components. Imports neither torch nor kfp, which an image may lack."""

import importlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autoformer.errors import AutoFormerError
from autoformer.reading import as_kind, in_short, parse_json, read_json
from runtime.common.code import step_code
from runtime.common.console import report_failure
from runtime.common.exit_codes import BAD_INPUT
from runtime.common.records import read_metrics
from runtime.kubernetes.settings import job_settings
from runtime.steps.job_launch import launch

IMAGE = os.environ.get("AUTOFORMER_IMAGE", "autoformer:dev")
"""The image of the components in a compiled pipeline. On a cluster it is named by digest, since KFP's cache would
otherwise serve results of other code. The local runner replaces it by the hash of the source."""

CODE = "AUTOFORMER_STEP_CODE"
"""Environment variable: step -> hash of its code in the run's cache keys, as JSON."""


def call(step: str, arguments: Sequence[str]) -> None:
    """Run a step like its command line, and fail the task with the step's exit code.

    If `AUTOFORMER_JOB` is set, the step runs on several machines, and this process follows the job. It does not import
    the step then, since the light image lacks its packages.
    """
    try:
        _check_code(step)
        job = job_settings()
    except AutoFormerError as error:
        raise SystemExit(report_failure(step, str(error), BAD_INPUT)) from None
    if job is None:
        code = importlib.import_module(f"components.{step}.step").main(list(arguments))
    else:
        code = launch(step, arguments, job)
    if code:
        raise SystemExit(code)


def _check_code(step: str) -> None:
    """Raise `AutoFormerError` if the code differs from that in the run's cache keys: KFP would cache a wrong result."""
    expected = _expected_code().get(step)
    if expected is not None and expected != step_code(step):
        raise AutoFormerError(
            "the code was edited while the pipeline ran; the same command runs what the edit concerns"
        )


def _expected_code() -> dict[str, str]:
    try:
        return as_kind(dict[str, str], parse_json(os.environ.get(CODE, "{}")), CODE, "unset it")
    except (ValueError, RecursionError) as error:
        raise AutoFormerError(f"{CODE}: not the hashes of steps ({in_short(error)}); unset it") from None


def log_metrics(artifact: Any, file: str | Path) -> None:
    """Show the numbers of a step's `metrics.json` as a table of scalars in the KFP UI.

    The file becomes the artifact's content: kfp.local does not cache tasks with metadata but no file.
    """
    for name, value in read_metrics(Path(file)).items():
        artifact.log_metric(name, value)
    shutil.copyfile(file, artifact.path)


def log_uri(artifact: Any) -> None:
    """Show the address of a step's large files in the KFP UI, if they are in the store.

    Not under `uri`: the UI shows that name for KFP's own copy, which has the small files alone.
    """
    file = Path(artifact.path) / "stored.json"
    if file.is_file():
        artifact.metadata["stored_at"] = read_json(file)["uri"]
