"""MLflow: runs, metrics, artifacts, models. Only this package imports mlflow, inside functions.

Every call uses `MlflowClient` with an explicit run id; there is no global active run.
"""

from runtime.tracking.history import PipelineRun, find_run_id, list_pipeline_runs, read_pipeline_run
from runtime.tracking.models import (
    ModelVersion,
    aliased_version,
    log_model,
    model_folder,
    move_alias,
    register,
    registration_lock,
    version_with_tag,
)
from runtime.tracking.runs import Status, close_pipeline_run, open_pipeline_run, step_run
from runtime.tracking.step_logger import BUDGET, FAMILY, OBJECTIVES, StepLogger
from runtime.tracking.store import initialise, tracking_uri

__all__ = [
    "BUDGET",
    "FAMILY",
    "OBJECTIVES",
    "ModelVersion",
    "PipelineRun",
    "Status",
    "StepLogger",
    "aliased_version",
    "close_pipeline_run",
    "find_run_id",
    "initialise",
    "list_pipeline_runs",
    "log_model",
    "model_folder",
    "move_alias",
    "open_pipeline_run",
    "read_pipeline_run",
    "register",
    "registration_lock",
    "step_run",
    "tracking_uri",
    "version_with_tag",
]
