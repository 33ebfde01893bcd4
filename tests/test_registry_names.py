"""Names that reach a later system: one name for two data sets, and experiments named as in other tools."""

# ruff: noqa: F401, F811 - fixtures are imported, and then asked for by name

from pathlib import Path

import pytest
from tracking_fixtures import empty_store, store

from autoformer.errors import AutoFormerError
from components.register_model.gate import CLASSES, hash_classes
from pipeline.local import other_classes
from runtime import tracking
from runtime.common.config import load_config
from runtime.tracking.experiments import experiment_id
from runtime.tracking.moved import FOLDER, follow
from runtime.tracking.store import connect


@pytest.mark.parametrize("budgets", ["", "search_subnet.budgets=[0.1,1.5]"])
def test_one_name_for_data_sets_of_other_classes_is_reported_before_the_training(budgets: str, store: str) -> None:
    settings = ["register_model.model_name=images", *[budgets] * bool(budgets)]
    config = load_config("photos", settings)
    assert other_classes(config, ["finch", "crow"]) == []
    client = connect()
    experiment = experiment_id(client)
    run = client.create_run(experiment).info.run_id
    for name in ("images", "images-1.5m"):
        logged = client.create_logged_model(experiment, name=name.replace(".", "_"), source_run_id=run)
        tags = {CLASSES: hash_classes(["crow", "finch"])}
        assert tracking.register(name, "champion", f"models:/{logged.model_id}", run, tags, "")
    assert other_classes(config, ["finch", "crow"]) == []  # in any order
    (note,) = other_classes(config, ["audi", "fiat"])
    name = "images-1.5m" if budgets else "images"
    assert note.startswith(f"registry: {name}@champion has other classes, so this run's model will not take")
    assert note.endswith("give it a name of its own: register_model.model_name")


@pytest.mark.parametrize("name", ["/Users/me@x.org/flowers", "../up", "..", ".", "a/b", "x" * 400, "数" * 200, "a#b"])
def test_an_experiment_of_any_name_has_its_artifacts_beside_the_store_and_in_a_moved_one(
    name: str, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path as Databricks names experiments would be one of the machine; longer names than files have are none."""
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
    client = connect()
    experiment = experiment_id(client)
    assert client.get_experiment(experiment).name == name
    client.log_text(client.create_run(experiment).info.run_id, "seven", "note.txt")
    (note,) = tmp_path.rglob("note.txt")
    assert note.relative_to(tmp_path).parts[0] == FOLDER and len(note.relative_to(tmp_path).parts) == 5
    tmp_path.rename(tmp_path.with_name("moved"))
    try:
        assert follow(tmp_path.with_name("moved") / "mlflow.db") == tmp_path
    finally:
        tmp_path.with_name("moved").rename(tmp_path)


def test_an_experiment_of_two_lines_is_refused(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "two\nlines")
    with pytest.raises(AutoFormerError, match="MLFLOW_EXPERIMENT_NAME=two lines: a name holds no line break"):
        experiment_id(connect())


def test_the_name_of_a_run_is_as_short_as_databases_of_mlflow_take_it() -> None:
    with pytest.raises(AutoFormerError, match=r"name.*at most 200"):
        load_config("photos", [f"name={'x' * 201}"])
