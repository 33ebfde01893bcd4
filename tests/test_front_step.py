"""The search step with method front: its files, its choice, MLflow's copy, and what a kill leaves."""

import json
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from evaluation_sample import read_search
from interrupted import Sandbox, sandbox
from mlflow import MlflowClient
from processes import at_candidate, killed, signal_self
from run_steps import config_of, contents, run
from test_choice import WHOLE, scored_by, searched
from test_choice import config_of as choice_config
from tracking_fixtures import empty_store, store

from autoformer.candidates import Candidate, ScoredCandidate
from autoformer.named import NamedSubnet
from autoformer.racing import ScoringTask
from components.search_subnet.search_loop import SearchResult
from components.search_subnet.step import _log, write_results
from runtime.common.code import step_code
from runtime.common.config import Config
from runtime.common.sections import SearchSubnet
from runtime.common.tables import read_table
from runtime.tracking import StepLogger
from runtime.tracking.views import save_views

__all__ = ["empty_store", "sandbox", "store"]

STEP = "search_subnet"
OBJECTIVES = ["loss", "params_m", "macs_g"]
CONFIG = config_of(STEP, method="front", objective="loss", objectives=OBJECTIVES, images=None)


@pytest.fixture(autouse=True)
def fresh_code() -> None:
    step_code.cache_clear()


def dominated(one: ScoredCandidate, rivals: Sequence[ScoredCandidate]) -> bool:
    def costs(each: ScoredCandidate) -> tuple[float, int, int]:
        return each.loss or 0.0, each.candidate.params, each.candidate.macs

    better = (costs(rival) for rival in rivals if costs(rival) != costs(one))
    return any(all(a <= b for a, b in zip(rival, costs(one), strict=True)) for rival in better)


def test_the_front_is_written_logged_and_the_choice_is_the_best_within_the_limits(
    sandbox: Sandbox, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = sandbox.given(STEP, "front", CONFIG)
    assert run(STEP, given) == 0
    out = Path(given["--out"])
    candidates = [ScoredCandidate.from_row(row) for row in read_table(out / "candidates.csv")]
    front = [ScoredCandidate.from_row(row) for row in read_table(out / "front.csv")]
    assert all(one.complete and one.images == 100 for one in candidates)
    first = {one.candidate.spec: one for one in reversed(candidates)}
    expected = [one for one in first.values() if not dominated(one, candidates)]
    assert front == sorted(expected, key=lambda one: (one.candidate.params, one.candidate.macs, one.loss))
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["front_candidates"] == len(front) > 1
    assert metrics["images_scored_percent"] == 100
    best = min(candidates, key=lambda one: one.rank("loss"))
    chosen = NamedSubnet.from_yaml(out / "chosen.yaml")
    assert chosen.subnet == best.candidate.spec and best.candidate.params <= 15_000
    assert f"{STEP} ({'random search' if best.is_baseline else 'NSGA-II'})" in chosen.source
    assert read_search(out, chosen.subnet, 100).candidates == candidates
    printed = capsys.readouterr()
    lines = (printed.out + printed.err).splitlines()
    assert f"{STEP}: front of loss, params_m, macs_g: no race, every candidate is scored on 100 images" in lines
    client = MlflowClient(store)
    experiments = [one.experiment_id for one in client.search_experiments()]
    (logged,) = client.search_runs(experiments, f"tags.stage = '{STEP}'")
    assert {"front.csv", "front.json"} <= {file.path for file in client.list_artifacts(logged.info.run_id)}
    assert logged.data.metrics["front_candidates"] == len(front)
    children = client.search_runs(experiments, "tags.stage = 'candidate'")
    ids = {int(child.info.run_name.split()[1]) for child in children}
    assert {one.candidate.id for one in front} <= ids and len(ids) <= len(front) + 10
    tagged = {child.info.run_name for child in children if child.data.tags["front"] == "True"}
    assert tagged == {f"candidate {one.candidate.id}" for one in front}
    expected_tags = {"method": "NSGA-II", "objectives": ", ".join(OBJECTIVES)}
    expected_tags["found_by"] = "random search" if best.is_baseline else "NSGA-II"
    assert expected_tags.items() <= logged.data.tags.items()
    assert any(", parameters, MACs and loss: " in line for line in lines if line.startswith(f"{STEP}: generation"))
    assert "the Pareto front of the latest search" in [page.shows for page in save_views(client)]
    saved = client.get_experiment(logged.info.experiment_id).tags["mlflow.sharedViewState.front"]
    state = json.loads(json.loads(saved)["state"])
    axes = [(chart["xaxis"]["key"], chart["yaxis"]["key"]) for chart in state["compareRunCharts"]]
    assert axes == [("cost/params_m", "val/loss"), ("cost/macs_g", "val/loss")]
    found = client.search_runs(experiments, state["searchFilter"])
    assert {child.info.run_name for child in found} == tagged


def test_a_killed_front_search_is_resumed_to_the_same_bytes(sandbox: Sandbox, tmp_path: Path) -> None:
    given = sandbox.given(STEP, "killed", CONFIG)
    killed(STEP, given, tmp_path / "log", (at_candidate, 9, partial(signal_self, signal.SIGKILL)))
    assert run(STEP, given) == 0
    result = contents(Path(given["--out"]))
    assert "front.csv" in result and result == sandbox.undisturbed(STEP, CONFIG)


def test_a_front_that_mlflow_gets_only_a_part_of_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """70 subnets, each larger and better than the one before: ten and as many as fit into 50 runs."""
    config = choice_config(method="front", objective="loss")
    spec = config.space.smallest
    front = [
        ScoredCandidate(
            Candidate(n, replace(spec, embed_dim=32 * (n + 1)), "initial", 0, (), n + 1, 1), 10.0 + n, 9 - n / 10, 100
        )
        for n in range(70)
    ]
    for name in ("candidates.csv", "front.csv"):
        (tmp_path / name).write_text("id\n")
    metrics = {"chosen_top1_percent": 79.0, "front_candidates": 70}
    result = SearchResult(front, front[-1:], [], metrics, front)
    for count, line in (
        (50, ""),
        (70, "runs of 50 candidates, without 20 of the 70 on the front; candidates.csv has all"),
    ):
        some = result._replace(candidates=front[-count:], front=front[-count:])
        _log(StepLogger("", None), tmp_path, {"": some}, config.section(SearchSubnet))
        printed = [text for text in capsys.readouterr().out.splitlines() if "MLflow gets" in text]
        assert printed == ([f"{STEP}: MLflow gets {line}"] if line else [])


def test_evolution_writes_no_front(sandbox: Sandbox) -> None:
    config = config_of(STEP, images=None, random_baseline=False, generations=0)
    given = sandbox.given(STEP, "evolution", config)
    assert run(STEP, given) == 0
    assert not (Path(given["--out"]) / "front.csv").exists()
    assert "front_candidates" not in json.loads((Path(given["--out"]) / "metrics.json").read_text())


class KilledError(Exception):
    pass


def written(folder: Path, config: Config, kill_after: int | None = None) -> dict[str, bytes]:
    """The files of a search in `folder`, which keeps the scores of former tries; `kill_after` so many tasks."""
    done = 0

    def score(tasks: Sequence[ScoringTask]) -> Iterator[Any]:
        nonlocal done
        for task in tasks:
            if done == kill_after:
                raise KilledError
            done += 1
            yield task, scored_by(task.spec, task.images)

    folder.mkdir(exist_ok=True)
    result, _ = searched(folder, config, score)
    write_results(folder / "out", config, {"": result}, {"code": "c0de", "inputs": {"supernet": "none"}})
    assert len(result.front) > 3
    return contents(folder / "out")


def test_a_kill_in_any_generation_and_between_two_changes_no_byte(tmp_path: Path) -> None:
    """Three generations of 8, the random baseline in groups of 8, the finalists: killed after each 4 new candidates."""
    config = choice_config(method="front", objective="loss", finalists=3)
    whole = written(tmp_path / "whole", config)
    for tasks in range(0, 52, 4):
        folder = tmp_path / str(tasks)
        if tasks < 48:
            with pytest.raises(KilledError):
                written(folder, config, tasks)
        assert written(folder, config) == whole, tasks
    assert WHOLE > 400  # the finalists are scored on images that the search did not use
