"""The MLflow experiment of the runs: its name, and its id."""

import os
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from autoformer.errors import AutoFormerError, validated
from autoformer.frozen import Name
from runtime.tracking.moved import FOLDER
from runtime.tracking.store import locked, sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "autoformer"
_FOLDER_NAME = 60  # letters of at most four bytes; a name of a file has 255


def _experiment_name() -> str:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    return validated(TypeAdapter(Name), name, f"MLFLOW_EXPERIMENT_NAME={name}")


def experiment_id(client: "MlflowClient") -> str:
    """The id of the experiment: KFP's, else `MLFLOW_EXPERIMENT_NAME`, else "autoformer"; created if missing.

    With a sqlite file, artifacts are beside it, whatever the working directory; a server has its own location.
    """
    from mlflow.exceptions import MlflowException

    if from_kfp := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return from_kfp
    name, file = _experiment_name(), sqlite_file(client.tracking_uri)
    folder = name.replace("/", "-").lstrip(".")[:_FOLDER_NAME] or EXPERIMENT  # one below `FOLDER`, as `follow` has it
    artifacts = None if file is None else (file.absolute().parent / FOLDER / folder).as_uri()
    with locked(client.tracking_uri):
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return str(client.create_experiment(name, artifact_location=artifacts))
            except MlflowException:  # another machine may just have created it
                experiment = client.get_experiment_by_name(name)
                if experiment is None:
                    raise
    if experiment.lifecycle_stage == "deleted":
        raise AutoFormerError(
            f"the MLflow experiment '{name}' was deleted; restore it, or name another: MLFLOW_EXPERIMENT_NAME"
        )
    return str(experiment.experiment_id)
