"""Saved views of the experiment in MLflow's pages: columns, order and charts.

MLflow keeps a user's choice of columns in the browser; a new browser shows source, models and data sets, but no
metrics. A saved view is an experiment tag, listed under "Views", with its own address. The tag has the format of MLflow
3.17's pages; tests/test_browser_mlflow.py opens them.
"""

import json
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from autoformer.front import costs_first, in_words
from runtime.common.search_split import RANKS_ONLY
from runtime.tracking.experiments import experiment_id
from runtime.tracking.operations import PARENT
from runtime.tracking.step_logger import FRONT, OBJECTIVES

if TYPE_CHECKING:
    from mlflow import MlflowClient

PIPELINE_RUNS, CANDIDATES, FRONT_VIEW, BUDGETS = "pipeline-runs", "candidates", "front", "budgets"
MAX_COMPARED = 20  # runs in one address, which is printed to a terminal
_KIND = "workflowType=machine_learning"  # otherwise the pages open the part for language models
_METRICS = {"accuracy": "val/top1", "loss": "val/loss"}  # objective -> metric; costs are below cost/
_COSTS = ["cost/params_m", "cost/macs_g"]
_FIXED_COLUMNS = {"attributes.`Run Name`": 210, "runDateAndNestInfo": 150, "duration": 90}  # widths in pixels
_RUN_COLUMNS = {
    "metrics.`test_top1_percent`": 140,
    "metrics.`val/top1`": 90,
    "metrics.`cost/params_m`": 125,
    "metrics.`cost/macs_g`": 115,
    "tags.`arch`": 390,
    "params.`cfg/dataset`": 120,
    "params.`cfg/space`": 120,
    "params.`cfg/seed`": 90,
}
_CANDIDATE_COLUMNS = {
    "metrics.`val/top1`": 90,
    "metrics.`cost/params_m`": 120,
    "metrics.`cost/macs_g`": 120,
    "params.`arch/depth`": 100,
    "params.`arch/embed_dim`": 125,
    "params.`arch/num_heads`": 130,
    "params.`arch/mlp_ratio`": 130,
    "tags.`origin`": 100,
    "tags.`generation`": 110,
}
_BUDGET_COLUMNS = {
    "metrics.`test_top1_percent`": 140,
    "metrics.`cost/params_m`": 125,
    "metrics.`inherited_test_top1_percent`": 130,
    "metrics.`scratch_test_top1_percent`": 130,
    "tags.`model_name`": 170,
    "tags.`version`": 75,
    "metrics.`cost/macs_g`": 115,
    "metrics.`val/top1`": 90,
    "tags.`arch`": 390,
}
_OLD_NOTE = (
    "Unfold a pipeline run for its steps. Tables and charts worth looking at are under **Views**, at the top right."
)
_NOTE = f"{_OLD_NOTE} `val/top1` is the accuracy on the search split. {RANKS_ONLY}"


_BUDGET_RUNS = "tags.stage = 'budget'"


class Page(NamedTuple):
    """A page: a description of its content, and its address relative to the server."""

    shows: str
    path: str


def save_views(client: "MlflowClient") -> list[Page]:
    """Write the saved views into the experiment, and return the pages. Idempotent."""
    experiment = experiment_id(client)
    tags = client.get_experiment(experiment).tags
    wanted = {"mlflow.experimentKind": "custom_model_development", "mlflow.experiment.primaryMetric.name": "val/top1"}
    if tags.get("mlflow.note.content", _OLD_NOTE) == _OLD_NOTE:  # keep a description written by a user
        wanted["mlflow.note.content"] = _NOTE
    state = _table(_RUN_COLUMNS, "attributes.`Created`", "") | {"orderByKey": "attributes.start_time"}
    wanted |= _view(PIPELINE_RUNS, "Pipeline runs", state)
    searches = _newest(client, experiment, "search_subnet", 1)
    if searches:
        wanted |= _view(CANDIDATES, "Candidates of the latest search", _candidates(searches[0]))
    objectives = _objectives(client, searches)
    if objectives:
        wanted |= _view(FRONT_VIEW, "Pareto front of the latest search", _front(searches[0], objectives))
    budgets = _budgets_of_latest(client, experiment)
    if budgets:
        # not sorted by time, which would fold the runs into their parent
        state = _table(_BUDGET_COLUMNS, "tags.`model_name`", _BUDGET_RUNS) | {"orderByAsc": True}
        wanted |= _view(BUDGETS, "Budgets side by side", state)
    for key, value in wanted.items():
        if tags.get(key) != value:
            client.set_experiment_tag(experiment, key, value)
    return _pages(client, experiment, searches, budgets, has_front=bool(objectives))


def _pages(
    client: "MlflowClient", experiment: str, searches: list[str], budgets: list[str], has_front: bool
) -> list[Page]:
    runs = f"/#/experiments/{experiment}/runs?{_KIND}"
    pages = [Page("pipeline runs", f"{runs}&viewStateShareKey={PIPELINE_RUNS}")]
    if searches:
        charts = f"{runs}&viewStateShareKey={CANDIDATES}&compareRunsMode=CHART"
        pages.append(Page("candidates of the latest search, in charts", charts))
        best = _run_ids(client, experiment, _children(searches[0]), "metrics.`val/top1` DESC", MAX_COMPARED)
        if len(best) > 1:
            pages.append(Page("the same candidates compared", _compare_path(experiment, best)))
    if has_front:
        charts = f"{runs}&viewStateShareKey={FRONT_VIEW}&compareRunsMode=CHART"
        pages.append(Page("the Pareto front of the latest search", charts))
    latest = _newest(client, experiment, "pipeline", 2)
    if len(latest) == 2:
        pages.append(Page("the two latest pipeline runs, side by side", _compare_path(experiment, latest)))
    if budgets:
        pages.append(Page("the budgets of all runs", f"{runs}&viewStateShareKey={BUDGETS}"))
        pages.append(Page("the budgets of the latest run compared", _compare_path(experiment, budgets)))
    return pages


def _compare_path(experiment: str, run_ids: list[str]) -> str:
    runs, experiments = (quote(json.dumps(ids, separators=(",", ":"))) for ids in (run_ids, [experiment]))
    return f"/#/compare-runs?runs={runs}&experiments={experiments}&{_KIND}"


def _newest(client: "MlflowClient", experiment: str, stage: str, limit: int) -> list[str]:
    finished = f"tags.stage = '{stage}' and attributes.status = 'FINISHED'"
    return _run_ids(client, experiment, finished, "attributes.start_time DESC", limit)


def _run_ids(client: "MlflowClient", experiment: str, matching: str, order_by: str, limit: int) -> list[str]:
    runs = client.search_runs([experiment], matching, order_by=[order_by], max_results=limit)
    return [run.info.run_id for run in runs]


def _budgets_of_latest(client: "MlflowClient", experiment: str) -> list[str]:
    """The runs of the budgets of the latest pipeline run with several budgets, smallest first."""
    newest = client.search_runs([experiment], _BUDGET_RUNS, order_by=["attributes.start_time DESC"], max_results=1)
    if not newest:
        return []
    same = f"{_BUDGET_RUNS} and tags.`{PARENT}` = '{newest[0].data.tags[PARENT]}'"
    return _run_ids(client, experiment, same, "attributes.start_time ASC", MAX_COMPARED)  # in order of creation


def _children(search: str) -> str:
    return f"tags.`{PARENT}` = '{search}' and tags.stage = 'candidate'"


def _objectives(client: "MlflowClient", searches: list[str]) -> list[str]:
    """The objectives of the latest search's front, costs first; empty if its runs do not name them."""
    tag = client.get_run(searches[0]).data.tags.get(OBJECTIVES, "") if searches else ""
    return costs_first(tag.split(", ")) if tag else []


def _view(key: str, name: str, state: dict[str, Any]) -> dict[str, str]:
    view = {"name": name, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)}
    return {f"mlflow.sharedViewState.{key}": json.dumps(view)}


def _candidates(search: str) -> dict[str, Any]:
    """The candidates view: a table, parallel coordinates from architecture over cost to score, and a scatter plot."""
    parallel = {
        "type": "PARALLEL",
        "uuid": "parallel-coordinates",
        "displayName": "Architecture, cost, accuracy",
        "selectedParams": ["arch/depth", "arch/embed_dim", "arch/mean_num_heads", "arch/mean_mlp_ratio"],
        "selectedMetrics": [*_COSTS, "val/top1"],
        "showAllRuns": True,
    }
    charts = [parallel, _scatter("params_m", "accuracy")]
    return _table(_CANDIDATE_COLUMNS, "metrics.`val/top1`", _children(search)) | _charts(CANDIDATES, charts)


def _front(search: str, objectives: list[str]) -> dict[str, Any]:
    """The front view: a table, and a scatter plot of the score against each cost."""
    *costs, score = objectives
    columns = {f"metrics.`{_metric(name)}`": 120 for name in objectives} | _CANDIDATE_COLUMNS
    matching = f"{_children(search)} and tags.{FRONT} = 'True'"
    charts = [_scatter(cost, score) for cost in costs]
    return _table(columns, f"metrics.`{_metric(costs[0])}`", matching) | _charts(FRONT_VIEW, charts)


def _metric(objective: str) -> str:
    return _METRICS.get(objective, f"cost/{objective}")


def _scatter(cost: str, score: str) -> dict[str, Any]:
    return {
        "type": "SCATTER",
        "uuid": f"{score}-against-{cost}",
        "displayName": in_words([score]).capitalize() + f" against {in_words([cost])}",
        "xaxis": {"key": _metric(cost), "type": "METRIC"},
        "yaxis": {"key": _metric(score), "type": "METRIC"},
    }


def _charts(key: str, charts: list[dict[str, Any]]) -> dict[str, Any]:
    """The charts of a view, in one section."""
    section = {"uuid": key, "name": "Candidates", "display": True, "isReordered": False, "deleted": False}
    shared = {"metricSectionId": key, "deleted": False, "isGenerated": False, "runsCountToCompare": 100}
    return {
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": [shared | chart for chart in charts],
        "compareRunSections": [section | {"isGenerated": False, "columns": 1, "cardHeight": 420}],
    }


def _table(columns: dict[str, int], order_by: str, matching: str) -> dict[str, Any]:
    return {
        "searchFilter": matching,
        "orderByKey": order_by,
        "orderByAsc": False,
        "selectedColumns": list(columns),
        "columnOrder": [*_FIXED_COLUMNS, *columns],  # widths apply only to columns in this list
        "columnWidths": _FIXED_COLUMNS | columns,
    }
