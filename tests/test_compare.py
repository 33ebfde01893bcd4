"""The comparison of two pipeline runs, on a real store that real steps have filled."""

import json
import re
import shutil
from pathlib import Path

import pytest
from browser_store import Store
from mlflow.entities import Dataset, DatasetInput
from tracking_fixtures import make_empty_store, use_store

from autoformer.evaluation import wilson_interval
from commands import compare
from commands.compare import Interval, difference_interval, main
from runtime import tracking
from runtime.tracking.operations import PARENT
from runtime.tracking.store import initialise


@pytest.fixture
def store(two_runs: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    use_store(two_runs.uri, tmp_path / "work", monkeypatch)
    return two_runs


def compared(capsys: pytest.CaptureFixture[str], *runs: str) -> str:
    assert main(runs) == 0
    return capsys.readouterr().out


def section(text: str, title: str) -> tuple[str, dict[str, list[str]]]:
    """The line of a section, and its rows as name -> cells."""
    head, *below = text[text.index(f"\n{title}:") + 1 :].split("\n\n")[0].splitlines()
    return head, {cells[0]: cells[1:] for cells in (re.split(r" {3,}", line.strip()) for line in below)}


def test_it_shows_exactly_what_differs(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    text = compared(capsys, store.first, store.second)
    params = tracking.read_pipeline_run(store.first).params
    head, rows = section(text, "parameters")
    assert rows == {
        "seed": ["0", "1", "+1"],
        "search_subnet.limits.max_params_m": ["0.015", "0.006", "-0.009"],
        "search_subnet.limits.min_params_m": ["0.007", "0.002", "-0.005"],
    }
    assert head == f"parameters: 3 differ, {len(params) - 3} equal"
    assert len(params) > 50
    data = {"images", "data.dvc", "card", "train split", "search split", "test split"}
    assert tracking.read_pipeline_run(store.first).data.keys() == data
    assert section(text, "data")[0] == "data: all 6 equal"
    assert section(text, "code") == ("code: all 2 equal", {})


def test_scores_and_architecture_are_those_of_the_files(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    text = compared(capsys, store.first, store.second)
    folders = [store.folder / "runs" / name for name in ("first", "second")]
    metrics = [json.loads((folder / "evaluate-subnet/evaluation/metrics.json").read_text()) for folder in folders]
    cards = [json.loads((folder / "retrain-subnet/retrain/model/model.json").read_text()) for folder in folders]
    _, scores = section(text, "scores")
    tops = [values["test_top1_percent"] for values in metrics]
    ends = [(values["test_top1_low_percent"], values["test_top1_high_percent"]) for values in metrics]
    expected = [f"{top:.2f} % ({low:.2f} to {high:.2f})" for top, (low, high) in zip(tops, ends, strict=True)]
    assert scores["test top-1"][:2] == expected
    assert scores["test top-1"][2].startswith(f"{tops[1] - tops[0]:+.2f} (")
    losses = [values["test_loss"] for values in metrics]
    assert scores["test loss, nats"] == [*(f"{loss:.4f}" for loss in losses), f"{losses[1] - losses[0]:+.4f}"]
    _, architecture = section(text, "architecture")
    subnets = [card["subnet"] for card in cards]
    assert subnets[0] != subnets[1]
    for key, name in (("depth", "depth"), ("embed_dim", "width")):
        if subnets[0][key] != subnets[1][key]:
            assert architecture[name][:2] == [str(subnet[key]) for subnet in subnets]
        else:
            assert name not in architecture


def test_a_run_is_equal_to_itself(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    text = compared(capsys, store.first, store.first)
    for title in ("parameters", "data", "code", "architecture"):
        head, rows = section(text, title)
        assert head.startswith(f"{title}: all ") and not rows
    _, scores = section(text, "scores")
    assert list(scores) == ["test top-1"] and scores["test top-1"][2].startswith("+0.00 (-")
    assert "does not tell the two runs apart" in text


def test_a_run_is_named_by_id_prefix_folder_or_one_of_its_steps(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(compare, "ROOT", store.folder)
    assert compare.find(store.first) == store.first
    assert compare.find(store.second[:8]) == store.second
    assert compare.find("first") == store.first  # runs/first
    assert compare.find(str(store.folder / "runs" / "second")) == store.second
    record = json.loads((store.folder / "runs/second/search-subnet/record").read_text())
    assert compare.find(record["mlflow_run_id"]) == store.second
    # a folder of a run whose first steps came from the cache names an older run too: the newer one counts
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        record_of = store.folder / "runs" / name / "register-model" / "record"
        (tmp_path / name / "record").write_bytes(record_of.read_bytes())
    assert compare.find(str(tmp_path)) == store.second


@pytest.mark.parametrize(
    ("runs", "says"),
    [
        (["0" * 32, "FIRST"], "no such pipeline run; the latest: SECOND FIRST"),
        (["FIRST", "no-such-folder"], "no-such-folder: no such pipeline run"),
        (["FIR", "SECOND"], "FIR: no such pipeline run"),  # too short a prefix to mean anything
        (["FIRST"], "1 run given; give two"),
        (["FIRST", "SECOND", "FIRST"], "3 runs given; give two"),
        (["FIRST", "EMPTY"], "its records name no run of this MLflow store"),
    ],
)
def test_what_is_not_there_is_one_line(
    runs: list[str], says: str, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"FIRST": store.first[:12], "SECOND": store.second[:12], "EMPTY": str(tmp_path)}
    assert main([names.get(run, run) for run in runs]) == 2
    output = capsys.readouterr()
    assert not output.out and output.err.count("\n") == 1
    for name, value in names.items():
        says = says.replace(name, value)
    assert says in output.err


def test_a_pipeline_run_says_what_came_out(store: Store) -> None:
    """Its own metrics, not those of its steps: these are what a table of pipeline runs can show."""
    evaluation = store.folder / "runs/first/evaluate-subnet/evaluation"
    tested = json.loads((evaluation / "metrics.json").read_text())
    searched = json.loads((store.folder / "runs/first/search-subnet/search/metrics.json").read_text())
    logged = initialise(store.uri).get_run(store.first).data
    assert {key: value for key, value in logged.metrics.items() if key.endswith("test_top1_percent")} == {
        key: tested[key] for key in ("test_top1_percent", "inherited_test_top1_percent", "scratch_test_top1_percent")
    }
    assert logged.metrics["val/top1"] == searched["chosen_top1_percent"]
    assert logged.metrics["cost/params_m"] == tested["params"] / 1e6
    assert logged.metrics["cost/macs_g"] == tested["macs"] / 1e9
    chosen = json.loads((evaluation / "provenance.json").read_text())["subnet"]
    assert logged.tags["arch"].startswith(f"depth {chosen['depth']}, width {chosen['embed_dim']}, heads ")


def test_without_runs_it_lists_the_latest(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    header, *lines = compared(capsys).splitlines()
    assert header.split() == ["run", "preset", "started", "state", "test", "top-1"]
    assert [line.split()[0] for line in lines[:2]] == [store.second[:12], store.first[:12]]
    top1 = json.loads((store.folder / "runs/second/evaluate-subnet/evaluation/metrics.json").read_text())
    assert f"{top1['test_top1_percent']:.2f} %" in lines[0]


def test_an_empty_store_has_no_run(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty_store = make_empty_store(tmp_path_factory.getbasetemp() / "mlflow-store")
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    use_store(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "work", monkeypatch)
    assert compare.listing() == "no pipeline run yet; `make run` makes one"


def test_other_test_images_are_no_comparison(store: Store) -> None:
    run = tracking.read_pipeline_run(store.first)
    other = run._replace(data=run.data | {"test split": "f" * 36}, scores=run.scores | {"test_top1_percent": 80.0})
    text = compare.report(run, other)
    head, rows = section(text, "data")
    assert head.startswith("data: 1 differs") and rows["test split"][1] == "f" * 11 + "…"
    assert "the accuracies cannot be compared" in text
    _, scores = section(text, "scores")
    assert "to" not in scores["test top-1"][2]


def test_a_run_that_was_cut_short_is_compared_as_far_as_it_came(store: Store) -> None:
    run = tracking.read_pipeline_run(store.first)
    text = compare.report(run, run._replace(scores={}, architecture={}, status="KILLED"))
    assert section(text, "scores")[1]["test top-1"] == [
        f"{run.scores['test_top1_percent']:.2f} % ({run.scores['test_top1_low_percent']:.2f} to "
        f"{run.scores['test_top1_high_percent']:.2f})",
        "not recorded",
    ]
    assert section(text, "architecture")[1]["depth"][1] == "not recorded"
    assert "has not reached evaluate_subnet" in text


def test_the_interval_of_a_difference_is_newcombes() -> None:
    """56 of 70 against 48 of 80: 0.20, 0.0524 to 0.3339 (Newcombe 1998, table II, method 10)."""
    bounds = []
    for correct, images in ((48, 80), (56, 70)):
        low, high = wilson_interval(correct, images)
        bounds.append(Interval(100 * correct / images, 100 * low, 100 * high))
    assert difference_interval(*bounds) == pytest.approx((5.24, 33.39), abs=0.005)


def test_a_run_whose_first_steps_came_from_the_cache_has_the_splits_of_its_card(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copyfile(store.folder / "mlflow.db", tmp_path / "mlflow.db")
    use_store(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "work", monkeypatch)
    client = initialise(tracking.tracking_uri())
    first = tracking.read_pipeline_run(store.first)
    experiment = client.get_run(store.first).info.experiment_id
    cached = client.create_run(experiment, tags=client.get_run(store.first).data.tags).info.run_id
    for name, value in first.scores.items():
        client.log_metric(cached, name, value)
    step = client.create_run(experiment, tags={"stage": "register_model", PARENT: cached}).info.run_id
    card = Dataset("tiny/card", first.data["card"], "local", "{}")
    client.log_inputs(step, [DatasetInput(card, [])])
    assert tracking.read_pipeline_run(cached).data == first.data
    text = compared(capsys, store.first, cached)
    assert section(text, "data")[0] == "data: all 6 equal"
    assert "does not tell the two runs apart" in text and "not the same" not in text
    unknown = compare.report(first, first._replace(data={}))
    assert "Which test images a run had is not recorded" in unknown and "not the same" not in unknown
