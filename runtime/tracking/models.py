"""Log models to MLflow with everything that serving needs, and register versions under an alias."""

import contextlib
import io
import math
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import autoformer
from autoformer.errors import AutoFormerError
from runtime.common.redaction import without_password
from runtime.tracking.bounded import check_listing
from runtime.tracking.step_logger import FAMILY
from runtime.tracking.store import (
    connect,
    is_refusal,
    locked,
    sqlite_file,
    tracking_uri,
    translate_errors,
)

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion as Version
    from mlflow.models import ModelSignature

_CODE = Path(__file__).with_name("served_model.py")
_PACKAGES = ("mlflow", "numpy", "pandas", "pillow", "pydantic", "pyyaml", "safetensors", "timm", "torch", "torchvision")


class ModelVersion(NamedTuple):
    """A version of a registered model."""

    version: str
    tags: dict[str, str]


def aliased_version(name: str, alias: str) -> ModelVersion | None:
    """The version with the alias; None if there is none yet."""
    from mlflow.exceptions import MlflowException

    client = connect()
    with translate_errors(tracking_uri()):
        try:
            aliased = client.get_model_version_by_alias(name, alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
    return ModelVersion(str(aliased.version), dict(aliased.tags))


def version_with_tag(name: str, tag: str, value: str) -> ModelVersion | None:
    """The newest version of a model with the tag; None if there is none."""
    matching = f"name = '{name}' and tags.`{tag}` = '{value}'"
    with translate_errors(tracking_uri()):
        versions = connect().search_model_versions(matching, max_results=1, order_by=["version_number DESC"])
    return ModelVersion(str(versions[0].version), dict(versions[0].tags)) if versions else None


def log_model(run_id: str, name: str, model: Path, program: Path, card: Path, tags: Mapping[str, str]) -> str:
    """Log a subnet to a run, ready to be served; return its MLflow address.

    The logged model contains the unchanged folder (safetensors, spec, preprocessing, class names), the exported
    program, the serving code, and a signature. `mlflow.pyfunc.log_model` would start its own run with system metrics.

    Args:
        model: folder of `autoformer.checkpoint.save_subnet`.
        program: file of `autoformer.export.export_program`.
        card: the model's card, in Markdown.
    """
    client = connect()
    import mlflow
    from mlflow.models import Model

    name = name.replace(".", "_")  # MLflow allows dots in names of registered models, but not of logged models

    # hide MLflow's advice on type hints and input examples; errors are exceptions
    with translate_errors(tracking_uri()), contextlib.redirect_stderr(io.StringIO()):
        experiment = client.get_run(run_id).info.experiment_id
        logged = client.create_logged_model(experiment, name=name, source_run_id=run_id, tags=dict(tags))
        info = Model.log(
            artifact_path=None,
            name=name,
            flavor=mlflow.pyfunc,
            model_id=logged.model_id,
            run_id=run_id,
            python_model=str(_CODE),
            artifacts={"model": str(model), "program": str(program), "card": str(card)},
            code_paths=[str(Path(autoformer.__file__).parent)],
            pip_requirements=[f"{package}=={version(package)}" for package in _PACKAGES],
            signature=_signature(),
        )
    return str(info.model_uri)


def _signature() -> "ModelSignature":
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array

    inputs = [
        ColSpec(DataType.string, "image", required=False),  # base64 of a PNG or JPEG file
        ColSpec(DataType.string, "b64", required=False),  # the same
        # nested lists, or their JSON: MLflow passes lists through, but cannot read a CSV if the type is `AnyType`
        ColSpec(DataType.string, "pixels", required=False),
    ]
    outputs = [
        ColSpec(DataType.string, "class"),
        ColSpec(DataType.double, "probability"),
        ColSpec(Array(DataType.string), "classes"),
        ColSpec(Array(DataType.double), "probabilities"),
    ]
    params = ParamSchema([ParamSpec("top", DataType.integer, 5)])
    return ModelSignature(Schema(inputs), Schema(outputs), params)


@contextlib.contextmanager
def registration_lock() -> Iterator[None]:
    """Lock for one registering process of this machine; others wait."""
    with locked(tracking_uri(), "registration", wait_seconds=math.inf):
        yield


def register(
    name: str,
    alias: str,
    model_uri: str,
    run_id: str,
    tags: Mapping[str, str],
    description: str,
    replaces: str | None = None,
) -> str | None:
    """Create a version of a logged model, and move the alias to it; return the version.

    If the alias is refused, the version is deleted again.

    Args:
        replaces: expected version with the alias. If another version has it, nothing changes, and None is returned.
    """
    from mlflow.exceptions import MlflowException

    client = connect()
    with translate_errors(tracking_uri()):
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        model_id = model_uri.removeprefix("models:/")
        created = client.create_model_version(
            name, source=model_uri, run_id=run_id, tags=dict(tags), description=description, model_id=model_id
        )
        version = str(created.version)
        holder = aliased_version(name, alias)
        if (holder.version if holder else None) != replaces:
            client.delete_model_version(name, version)
            return None
        try:
            client.set_registered_model_alias(name, alias, version)
        except Exception as error:
            if is_refusal(error):  # after an outage the repeated step finds the version
                client.delete_model_version(name, version)
            raise
    return version


def move_alias(name: str, alias: str, to_version: str) -> None:
    with translate_errors(tracking_uri()):
        connect().set_registered_model_alias(name, alias, to_version)


def _newest_model(alias: str) -> str | None:
    """The registered model whose version with the alias is the newest.

    Raises:
        AutoFormerError: that version belongs to one of several budgets, so the choice is ambiguous.
    """
    with translate_errors(tracking_uri()):
        names = [model.name for model in connect().search_registered_models() if alias in model.aliases]
        versions = [connect().get_model_version_by_alias(name, alias) for name in names]
    newest = max(versions, key=lambda version: int(version.creation_timestamp), default=None)
    if newest is None:
        return None
    family = newest.tags.get(FAMILY)
    relatives = sorted((v for v in versions if family and v.tags.get(FAMILY) == family), key=_params)
    if len(relatives) > 1:
        listed = ", ".join(f"{version.name} ({_params(version):,} parameters)" for version in relatives)
        raise AutoFormerError(f"the last run registered several models: choose one with MODEL=name: {listed}")
    return str(newest.name)


def _params(version: "Version") -> int:
    return int(version.tags.get("params", "0"))


def model_folder(name: str | None, alias: str) -> Path:
    """Download the registered model with the alias; return the folder, for `autoformer.checkpoint.load_subnet`.

    Args:
        name: name of the registered model; None for the last registered one.

    Raises:
        AutoFormerError: nothing is registered under that name and alias.
    """
    what = f"model '{name}'" if name else "model"
    missing = AutoFormerError(
        f"no {what} with the alias '{alias}' is registered in {without_password(tracking_uri())}; run `make run` first"
    )
    database = sqlite_file(tracking_uri())
    if database is not None and not database.exists():
        raise missing
    name = name or _newest_model(alias)
    registered = aliased_version(name, alias) if name else None
    if registered is None:
        with translate_errors(tracking_uri()):
            there = [f"{model.name} ({', '.join(model.aliases)})" for model in connect().search_registered_models()]
        if name is None or not there:
            raise missing
        raise AutoFormerError(f"no {what} with the alias '{alias}' is registered; there are: {', '.join(there)}")
    from mlflow.artifacts import download_artifacts

    model = f"models:/{name}/{registered.version}"
    with translate_errors(tracking_uri()):
        check_listing(model)
        logged = Path(download_artifacts(model))
    cards = list(logged.glob("artifacts/*/model.json"))
    if not cards:
        raise AutoFormerError(
            f"version {registered.version} of '{name}' was not registered by this project; choose another"
        )
    return cards[0].parent
