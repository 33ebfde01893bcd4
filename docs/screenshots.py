"""Take the pictures of docs/ from a real MLflow store, a real report and real runs in KFP's UI:
`python -m docs.screenshots --help`.

The tests of the same pages use this module's browser.
"""

import argparse
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Locator, Page

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
# Without these, Chromium calls its maker's hosts at every start. The sandbox needs rights that a container lacks.
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
LARGEST_PICTURE = 300_000  # bytes
START_SECONDS, PAGE_SECONDS = 120, 60
# The windows that MLflow opens on a first visit: an assistant for language models, a note on usage data.
_SEEN_BEFORE = """
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
localStorage.setItem("mlflow.settings.telemetry.enabled_v1", "false");
"""


class Watched(NamedTuple):
    """A page and its faults."""

    page: "Page"
    errors: list[str]  # console errors and uncaught exceptions
    requests: list[str]  # addresses outside the page's own host; of a file, any but itself


@contextlib.contextmanager
def chromium() -> "Iterator[Browser]":
    """Debian's Chromium, headless, until the block ends."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        with contextlib.closing(browser):
            yield browser


@contextlib.contextmanager
def watched(
    browser: "Browser",
    width: int = 1440,
    height: int = 900,
    dark: bool = False,
    touch: bool = False,
    own: str = "http://127.0.0.1",
) -> Iterator[Watched]:
    """A page in a session of its own, as a first visitor has it, that collects errors and foreign requests."""
    session = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",
        has_touch=touch,
    )
    session.set_default_timeout(1000 * PAGE_SECONDS)
    session.add_init_script(_SEEN_BEFORE if own.startswith("http") else "")
    seen = Watched(session.new_page(), [], [])

    def on_console(message: "ConsoleMessage") -> None:
        if message.type == "error" and not _is_mlflows_own(message):
            seen.errors.append(f"{message.text} ({message.location.get('url', '')})")

    def on_request(url: str) -> None:
        if not url.startswith((own, "data:", "blob:")):
            seen.requests.append(url)

    seen.page.on("console", on_console)
    seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
    seen.page.on("request", lambda request: on_request(request.url))
    with contextlib.closing(session):
        yield seen


def _is_mlflows_own(message: "ConsoleMessage") -> bool:
    """Two messages are ignored. MLflow's pages ask at every load who is logged in; a server without accounts answers
    404, which Chromium reports. And on a slow machine MLflow's script observes an element that changes its size within
    one frame, which browsers report by the specification of ResizeObserver."""
    url = message.location.get("url", "")
    asks_for_user = url.endswith("/ajax-api/2.0/mlflow/users/current") and "404" in message.text
    return asks_for_user or ("ResizeObserver loop" in message.text and "/static-files/static/js/" in url)


class Served(NamedTuple):
    """A running `make ui`: the addresses that it printed, by their titles."""

    pages: dict[str, str]
    process: subprocess.Popen[str]

    def page(self, word: str) -> str:
        return next(address for title, address in self.pages.items() if word in title)


@contextlib.contextmanager
def mlflow_pages(uri: str, log: Path, command: Sequence[str] = ()) -> Iterator[Served]:
    """Start the server of a store by `command` (that of `make ui`), wait until it answers, and end it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    full = [*command, f"PORT={port}"] if command else [sys.executable, "-m", "commands.ui", "--port", str(port)]
    with log.open("w") as errors:
        start = partial(subprocess.Popen, cwd=ROOT, env=os.environ | {"MLFLOW_TRACKING_URI": uri}, text=True)
        process = start(full, stdout=subprocess.PIPE, stderr=errors, start_new_session=True)
    try:
        assert process.stdout is not None
        lines = [line.strip() for line in takewhile(lambda line: not line.startswith("Ctrl-C"), process.stdout)]
        titles = [(title.strip(" :"), address) for title, address in pairwise(lines) if title.endswith(":")]
        wait_for(f"http://127.0.0.1:{port}/health", process, log)
        yield Served({title: address for title, address in titles if address.startswith("http")}, process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(address: str, process: subprocess.Popen[str], log: Path) -> None:
    give_up = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}") from None
            time.sleep(0.2)


def show_pipeline_runs(page: "Page", address: str) -> None:
    page.goto(address)
    page.get_by_text("matching runs").wait_for()
    page.locator(".ag-cell").first.wait_for()


def unfold_first(page: "Page") -> None:
    """Show the steps below the first pipeline run."""
    page.locator(".ag-row-first [col-id*='Run Name'] button").first.click()
    page.get_by_role("link", name="search_subnet").first.wait_for()


def show_candidates(page: "Page", address: str) -> None:
    page.goto(address)
    page.get_by_text("matching runs").wait_for()
    page.locator(".dimension text.label").last.wait_for()


def show_comparison(page: "Page", address: str) -> None:
    page.goto(address)
    page.get_by_text(re.compile("Comparing .* Runs")).wait_for()
    page.locator(".js-plotly-plot .parcoords").first.wait_for()


def picture(page: "Page", file: Path, part: "Locator | None" = None) -> None:
    """Write a PNG of the window or a part of it; of 256 colours where more would make a large file."""
    from PIL import Image

    page.wait_for_timeout(1500)  # charts and banners settle after the page has loaded
    (part or page).screenshot(path=file)
    if file.stat().st_size > LARGEST_PICTURE / 2:
        with Image.open(file) as image:
            image.convert("RGB").quantize(256).save(file, optimize=True)
    if file.stat().st_size > LARGEST_PICTURE:
        raise RuntimeError(f"{file}: larger than {LARGEST_PICTURE:,} bytes")


def take_mlflow(browser: "Browser", served: Served, out: Path) -> None:
    with watched(browser, 1600, 900) as seen:
        show_pipeline_runs(seen.page, served.page("pipeline runs"))
        unfold_first(seen.page)
        picture(seen.page, out / "mlflow-experiment.png")
    with watched(browser, 1600, 900) as seen:
        show_candidates(seen.page, served.page("in charts"))
        picture(seen.page, out / "mlflow-candidates.png")
    with watched(browser, 1600, 1200) as seen:
        show_comparison(seen.page, served.page("side by side"))
        picture(seen.page, out / "mlflow-runs.png")


def take_report(browser: "Browser", report: Path, out: Path) -> None:
    """A picture of the report's top, and the report itself as a sample."""
    shutil.copyfile(report, out / "sample-report.html")
    with watched(browser, 1440, 1180, own=report.resolve().as_uri()) as seen:
        seen.page.goto(report.resolve().as_uri())
        picture(seen.page, out / "report.png")


def take_kfp(browser: "Browser", runs: Sequence[str], out: Path) -> None:
    """The graph, the confusion matrix and the report of the first run, and its comparison with the second."""
    home = runs[0].partition("#")[0]
    with watched(browser, 2250, 900, own=home) as seen:
        seen.page.goto(runs[0])
        seen.page.locator(".react-flow__node").first.wait_for()
        picture(seen.page, out / "kfp-run.png", seen.page.locator(".react-flow"))
        seen.page.set_viewport_size({"width": 2250, "height": 1150})
        for name, text in (("confusion", "Predicted"), ("report", "Static HTML")):
            pane = show_kfp_artifact(seen.page, name, text)
            picture(seen.page, out / f"kfp-{name}.png", pane)
    if len(runs) > 1:
        with watched(browser, 2000, 1400, own=home) as seen:
            seen.page.goto(f"{home}#/compare?runlist={','.join(run.rpartition('/')[2] for run in runs)}")
            seen.page.get_by_text("evaluate-subnet > metrics").first.wait_for()
            picture(seen.page, out / "kfp-compare.png")


def show_kfp_artifact(page: "Page", name: str, text: str) -> "Locator":
    """Open an artifact of evaluate_subnet from a run's graph and wait for a text in its pane; returns the pane."""
    node = page.locator(f'.react-flow__node[data-id="artifact.evaluate-subnet.{name}"] button')
    node.first.dispatch_event("click")  # it may lie outside the window
    page.get_by_role("button", name="Visualization", exact=True).click()
    page.get_by_text(text).first.wait_for()
    return page.get_by_role("button", name="close").locator("xpath=../..")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m docs.screenshots", description=__doc__.splitlines()[0])
    parser.add_argument("--store", help="MLflow's address, such as sqlite:///mlflow.db, with two pipeline runs")
    parser.add_argument("--report", type=Path, help="a report.html")
    parser.add_argument(
        "--kfp", nargs="+", default=[], help="addresses of runs in KFP's UI, as `make submit` prints them"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of the pictures (default: docs)")
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        if arguments.store:
            with mlflow_pages(arguments.store, arguments.out / ".mlflow-ui.log") as served:
                take_mlflow(browser, served, arguments.out)
            (arguments.out / ".mlflow-ui.log").unlink()
        if arguments.report:
            take_report(browser, arguments.report, arguments.out)
        if arguments.kfp:
            take_kfp(browser, arguments.kfp, arguments.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
