"""MLflow's pages in a real browser, on a real store, served by `make ui`."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser_store import Store
from tracking_fixtures import make_empty_store, use_store

from commands import ui
from docs.screenshots import (
    LARGEST_PICTURE,
    Served,
    mlflow_pages,
    picture,
    show_candidates,
    show_comparison,
    show_pipeline_runs,
    unfold_first,
    watched,
)
from runtime.common.config import ROOT
from runtime.tracking.store import connect, initialise
from runtime.tracking.views import save_views

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# `make ui`, but for the check whether the environment is up to date, which may rebuild it under the running tests
MAKE_UI = ("make", "--silent", "--old-file=.venv/.installed", "ui")


@pytest.fixture(scope="module")
def served(two_runs: Store, browser: "Browser") -> Iterator[Served]:
    with mlflow_pages(two_runs.uri, two_runs.folder / "ui.log", MAKE_UI) as found:
        yield found


def columns(page: "Page") -> list[str]:
    """The titles of the table's columns, from left to right."""
    cells = page.locator(".ag-header-cell").all()
    placed = [((cell.bounding_box() or {"x": 0.0})["x"], cell.inner_text().strip()) for cell in cells]
    return [text for _, text in sorted(placed) if text]


def cell(page: "Page", row: str, column: str) -> str:
    """What the table says in a row, found by MLflow's run id."""
    return page.locator(f'.ag-row[row-id="{row}"] [col-id="{column}"]').first.inner_text().strip()


def axes(page: "Page") -> list[str]:
    """The titles of the axes of the page's parallel coordinates, from left to right."""
    titles = page.locator(".parcoords .axis-title, .dimension text.label")
    placed = [
        ((title.bounding_box() or {"x": 0.0})["x"], (title.text_content() or "").strip()) for title in titles.all()
    ]
    return [text for _, text in sorted(placed) if text]


def test_the_experiment_page_shows_what_came_out(served: Served, browser: "Browser", two_runs: Store) -> None:
    with watched(browser, 1600) as seen:
        show_pipeline_runs(seen.page, served.page("pipeline runs"))
        shown = columns(seen.page)
        run = initialise(two_runs.uri).get_run(two_runs.second)
        metrics = run.data.metrics
        for column, value in (
            ("metrics.`test_top1_percent`", metrics["test_top1_percent"]),
            ("metrics.`val/top1`", metrics["val/top1"]),
            ("metrics.`cost/params_m`", metrics["cost/params_m"]),
        ):
            assert float(cell(seen.page, two_runs.second, column)) == pytest.approx(value, rel=1e-3)
        assert cell(seen.page, two_runs.second, "tags.`arch`") == run.data.tags["arch"]
        assert seen.page.locator(".ag-row [col-id*='Run Name'] a").count() == 2  # pipeline runs; their steps are folded
        unfold_first(seen.page)
        for step in ("train_supernet", "search_subnet", "retrain_subnet"):
            assert seen.page.get_by_role("link", name=step).count() == 1
        assert seen.errors == [] and seen.requests == []
    order = ["Run Name", "Created", "Duration", "test_top1_percent", "val/top1", "cost/params_m", "cost/macs_g", "arch"]
    assert [column for column in shown if column in order] == order


def test_the_views_are_in_the_pages_own_menu(served: Served, browser: "Browser") -> None:
    with watched(browser) as seen:
        show_pipeline_runs(seen.page, served.page("pipeline runs"))
        seen.page.get_by_test_id("saved-views-trigger").click()
        seen.page.get_by_text("Candidates of the latest search").click()
        seen.page.get_by_role("link", name="candidate").first.wait_for()
        assert "viewStateShareKey=candidates" in seen.page.url
        assert seen.errors == []


def test_candidates_lie_on_parallel_coordinates_of_architecture_cost_and_accuracy(
    served: Served, browser: "Browser", two_runs: Store
) -> None:
    with watched(browser, 1600) as seen:
        show_candidates(seen.page, served.page("in charts"))
        assert axes(seen.page) == [
            "arch/depth", "arch/embed_dim", "arch/m..._heads", "arch/mean_mlp_ratio", "cost/params_m", "cost/macs_g",
            "val/top1",
        ]  # fmt: skip
        client = initialise(two_runs.uri)
        experiment = client.get_run(two_runs.second).info.experiment_id
        search = client.search_runs(
            [experiment], f"tags.`mlflow.parentRunId` = '{two_runs.second}' and tags.stage = 'search_subnet'"
        )[0]
        children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{search.info.run_id}'")
        names = {child.info.run_name for child in children}
        links = seen.page.get_by_role("link", name="candidate")
        assert {link.inner_text() for link in links.all()} == names  # of the latest search, and none of the other
        assert len(names) > 2
        assert seen.errors == [] and seen.requests == []


def test_the_front_of_the_latest_search_has_a_page_of_its_own(
    served: Served, browser: "Browser", two_runs: Store
) -> None:
    client = initialise(two_runs.uri)
    experiment = client.get_run(two_runs.second).info.experiment_id
    (search,) = client.search_runs(
        [experiment], f"tags.`mlflow.parentRunId` = '{two_runs.second}' and tags.stage = 'search_subnet'"
    )
    assert search.data.tags["method"] == "evolution"
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{search.info.run_id}'")
    front = {child.info.run_name for child in children if child.data.tags["front"] == "True"}
    assert 0 < len(front) < len(children)
    with watched(browser, 1600) as seen:
        seen.page.goto(served.page("Pareto front"))
        seen.page.locator(".js-plotly-plot .scatterlayer .points path").first.wait_for()
        links = seen.page.get_by_role("link", name="candidate")
        assert {link.inner_text() for link in links.all()} == front
        assert seen.page.locator(".js-plotly-plot .scatterlayer .points path").count() == len(front)
        titles = [seen.page.locator(f".js-plotly-plot .{axis}title").text_content() for axis in "xy"]
        assert titles == ["cost/params_m", "val/top1"]
        assert seen.errors == [] and seen.requests == []


def test_the_compare_page_of_candidates_draws_them(served: Served, browser: "Browser") -> None:
    with watched(browser) as seen:
        show_comparison(seen.page, served.page("candidates compared"))
        shown = axes(seen.page)
        assert shown[-1] == "val/top1" and any(title.startswith("arch/") for title in shown[:-1])
        assert seen.errors == [] and seen.requests == []


def test_two_pipeline_runs_stand_side_by_side(
    served: Served, browser: "Browser", two_runs: Store, tmp_path: Path
) -> None:
    with watched(browser) as seen:
        show_comparison(seen.page, served.page("side by side"))
        text = seen.page.locator("body").inner_text()
        assert two_runs.first in text and two_runs.second in text
        picture(seen.page, tmp_path / "runs.png")  # as docs/ has it
        assert 20_000 < (tmp_path / "runs.png").stat().st_size <= LARGEST_PICTURE
        seen.page.get_by_role("switch").first.click()  # "Show diff only", of the parameters
        seen.page.get_by_text("cfg/evaluate_subnet.batch_size").wait_for(state="detached")
        text = seen.page.locator("body").inner_text()
        assert "cfg/search_subnet.limits.max_params_m" in text and "test_top1_percent" in text
        assert seen.errors == [] and seen.requests == []


def test_runs_on_a_server_need_no_second_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], served: Served, tmp_path: Path
) -> None:
    """`MLFLOW_TRACKING_URI` names a server: its addresses are printed, and nothing is started."""
    server = served.page("pipeline runs").partition("/#")[0]
    use_store(server, tmp_path, monkeypatch)
    assert ui.main([]) == 0
    told = capsys.readouterr().out
    assert f"{server}/#/experiments/" in told and "Ctrl-C" not in told


def test_ctrl_c_ends_the_server(served: Served) -> None:
    """Last: it ends the server of this file."""
    os.killpg(served.process.pid, signal.SIGINT)
    served.process.wait(timeout=30)
    address = served.page("pipeline runs").removeprefix("http://127.0.0.1:").partition("/")[0]
    with socket.socket() as probe:
        give_up = time.monotonic() + 10
        while probe.connect_ex(("127.0.0.1", int(address))) == 0 and time.monotonic() < give_up:
            time.sleep(0.2)
        assert probe.connect_ex(("127.0.0.1", int(address))) != 0


def test_a_port_that_is_taken_is_one_line(two_runs: Store, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        environment = os.environ | {"MLFLOW_TRACKING_URI": two_runs.uri}
        command = [sys.executable, "-m", "commands.ui", "--port", port]
        run = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr.splitlines() == [
        f"ui: port {port} is taken, perhaps by an earlier `make ui`; choose another: make ui PORT=…"
    ]


def test_views_may_be_saved_again_and_leave_a_persons_text_alone(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = make_empty_store(tmp_path_factory.getbasetemp() / "mlflow-store")
    (tmp_path / "mlflow.db").write_bytes(empty.read_bytes())
    use_store(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "work", monkeypatch)
    client = connect()
    assert [page.shows for page in save_views(client)] == ["pipeline runs"]  # nothing has run yet
    experiment = client.get_experiment_by_name("autoformer")
    note = experiment.tags["mlflow.note.content"]
    assert "`val/top1` is the accuracy on the search split" in note and "no estimate of test accuracy" in note
    client.set_experiment_tag(experiment.experiment_id, "mlflow.note.content", note.partition(" `val/top1`")[0])
    save_views(client)  # the note of an earlier version is replaced
    assert client.get_experiment(experiment.experiment_id).tags["mlflow.note.content"] == note
    client.set_experiment_tag(experiment.experiment_id, "mlflow.note.content", "mine")
    save_views(client)
    assert client.get_experiment(experiment.experiment_id).tags["mlflow.note.content"] == "mine"
