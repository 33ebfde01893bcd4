"""Saved views of the experiment in MLflow's pages: which columns, which order, which charts.

The pages keep a user's columns in the browser, and a new browser shows source, models and data sets, none of the
figures. What can be kept in the store is a saved view: an experiment tag, listed under "Views" and opened by address.
The form of such a tag is that of MLflow 3.17's own pages; tests/test_browser_mlflow.py holds that they take it.
"""

import json
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from runtime.tracking.store import experiment_id

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PIPELINE_RUNS, CANDIDATES = "pipeline-runs", "candidates"
MOST_COMPARED = 20  # runs in one address, which a terminal has to show
_KIND = "workflowType=machine_learning"  # the pages' other half is about language models, and is what they open with
_ARCHITECTURE = ("arch/depth", "arch/embed_dim", "arch/mean_num_heads", "arch/mean_mlp_ratio")
_COSTS = ("cost/params_m", "cost/macs_g")
_FIXED_COLUMNS = {"attributes.`Run Name`": 210, "runDateAndNestInfo": 150, "duration": 90}  # width in pixels
_NOTE = "Unfold a pipeline run for its steps. Tables and charts worth looking at are under **Views**, at the top right."


class Page(NamedTuple):
    """A page worth opening: what it shows, and its address after that of the server."""

    shows: str
    path: str


def save_views(client: "MlflowClient") -> list[Page]:
    """Write the saved views into the experiment, and name the pages worth opening. Safe to repeat."""
    experiment = experiment_id(client)
    tags = client.get_experiment(experiment).tags
    wanted = {"mlflow.experimentKind": "custom_model_development", "mlflow.experiment.primaryMetric.name": "val/top1"}
    if "mlflow.note.content" not in tags:  # a text that a person wrote stays
        wanted["mlflow.note.content"] = _NOTE
    searches = _newest(client, experiment, "search_subnet", 1)
    wanted |= _saved(PIPELINE_RUNS, "Pipeline runs", _pipeline_runs())
    if searches:
        title = "Candidates of the latest search"
        wanted |= _saved(CANDIDATES, title, _candidates(searches[0].info.run_id))
    for key, value in wanted.items():
        if tags.get(key) != value:
            client.set_experiment_tag(experiment, key, value)
    return _pages(client, experiment, searches)


def _pages(client: "MlflowClient", experiment: str, searches: "list[Run]") -> list[Page]:
    runs = f"/#/experiments/{experiment}/runs?{_KIND}"
    pages = [Page("pipeline runs", f"{runs}&viewStateShareKey={PIPELINE_RUNS}")]
    if searches:
        charts = f"{runs}&viewStateShareKey={CANDIDATES}&compareRunsMode=CHART"
        pages.append(Page("candidates of the latest search, in charts", charts))
        found = _children(client, experiment, searches[0].info.run_id)
        if len(found) > 1:
            pages.append(Page("the same candidates compared", compare_path(experiment, found)))
    latest = [run.info.run_id for run in _newest(client, experiment, "pipeline", 2)]
    if len(latest) == 2:
        pages.append(Page("the two latest pipeline runs, side by side", compare_path(experiment, latest)))
    return pages


def compare_path(experiment: str, run_ids: list[str]) -> str:
    """The address of the page that compares runs."""
    runs, experiments = (quote(json.dumps(ids, separators=(",", ":"))) for ids in (run_ids, [experiment]))
    return f"/#/compare-runs?runs={runs}&experiments={experiments}&{_KIND}"


def _newest(client: "MlflowClient", experiment: str, stage: str, most: int) -> "list[Run]":
    matching = f"tags.stage = '{stage}' and attributes.status = 'FINISHED'"
    found = client.search_runs([experiment], matching, order_by=["attributes.start_time DESC"], max_results=most)
    return list(found)


def _children(client: "MlflowClient", experiment: str, parent: str) -> list[str]:
    matching = f"tags.`mlflow.parentRunId` = '{parent}' and tags.stage = 'candidate'"
    found = client.search_runs([experiment], matching, order_by=["metrics.`val/top1` DESC"], max_results=MOST_COMPARED)
    return [run.info.run_id for run in found]


def _saved(key: str, name: str, state: dict[str, Any]) -> dict[str, str]:
    view = {"name": name, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)}
    return {f"mlflow.sharedViewState.{key}": json.dumps(view)}


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"


def _pipeline_runs() -> dict[str, Any]:
    columns = {
        _column("metrics", "test_top1_percent"): 140,
        _column("metrics", "val/top1"): 90,
        _column("metrics", "cost/params_m"): 125,
        _column("metrics", "cost/macs_g"): 115,
        _column("tags", "arch"): 390,
        _column("params", "cfg/dataset"): 120,
        _column("params", "cfg/space"): 120,
        _column("params", "cfg/seed"): 90,
    }
    return _table(columns, _column("attributes", "Created"), "") | {"orderByKey": "attributes.start_time"}


def _candidates(search: str) -> dict[str, Any]:
    columns = {
        _column("metrics", "val/top1"): 90,
        **{_column("metrics", name): 120 for name in _COSTS},
        _column("params", "arch/depth"): 100,
        _column("params", "arch/embed_dim"): 125,
        _column("params", "arch/num_heads"): 130,
        _column("params", "arch/mlp_ratio"): 130,
        _column("tags", "origin"): 100,
        _column("tags", "generation"): 110,
    }
    matching = f"tags.`mlflow.parentRunId` = '{search}' and tags.stage = 'candidate'"
    section = {"uuid": CANDIDATES, "name": "Candidates", "display": True, "isReordered": False, "deleted": False}
    return _table(columns, _column("metrics", "val/top1"), matching) | {
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": _charts(),
        "compareRunSections": [section | {"isGenerated": False, "columns": 1, "cardHeight": 420}],
    }


def _table(columns: dict[str, int], order_by: str, matching: str) -> dict[str, Any]:
    return {
        "searchFilter": matching,
        "orderByKey": order_by,
        "orderByAsc": False,
        "selectedColumns": list(columns),
        "columnOrder": [*_FIXED_COLUMNS, *columns],  # widths count for columns that are named here
        "columnWidths": _FIXED_COLUMNS | columns,
    }


def _charts() -> list[dict[str, Any]]:
    """Parallel coordinates from architecture over cost to accuracy, which colours the lines; and a scatter plot."""
    shared = {"metricSectionId": CANDIDATES, "deleted": False, "isGenerated": False, "runsCountToCompare": 100}
    parallel = {
        "type": "PARALLEL",
        "uuid": "parallel-coordinates",
        "displayName": "Architecture, cost, accuracy",
        "selectedParams": list(_ARCHITECTURE),
        "selectedMetrics": [*_COSTS, "val/top1"],
        "showAllRuns": True,
    }
    scatter = {
        "type": "SCATTER",
        "uuid": "accuracy-against-parameters",
        "displayName": "Accuracy against parameters",
        "xaxis": {"key": "cost/params_m", "type": "METRIC"},
        "yaxis": {"key": "val/top1", "type": "METRIC"},
    }
    return [shared | parallel, shared | scatter]
