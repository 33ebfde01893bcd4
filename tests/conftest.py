"""Data that several tests read. Nothing may be written into it."""

import gc
import multiprocessing
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser_store import Store, make_store
from faulty_proxy import FaultyProxy
from s3_server import S3Server, s3_server
from started import restore_signals
from tiny import TinyData, make_tiny_data
from tracking_fixtures import make_empty_store
from whole_run import Checkout, WholeRun, check_out, whole_run

from commands.fetch import fetch
from runtime.common.config import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from xdist.scheduler import LoadScopeScheduling

TOGETHER = {
    "whole run": ("test_dvc", "test_dvc_s3", "test_pipeline"),
    "forked steps": (  # from one server, which takes ten seconds of imports to start
        "test_chaos", "test_ranks", "test_interrupt", "test_full_disk", "test_locks", "test_resume",
        "test_rollback", "test_search_race", "test_storage_steps", "test_tracking", "test_trainjob",
    ),
    "registry": ("test_budgets", "test_outages", "test_register_model"),  # what exports a model is slow to import, too
    "two runs": ("test_browser_mlflow", "test_compare"),
}  # fmt: skip
LONGEST = (
    "test_dvc", "test_dvc_s3", "test_pipeline", "test_ranks", "test_interrupt", "test_outages", "test_register_model",
    "test_s3_data", "test_own_run", "test_prepare_data",
)  # fmt: skip
NO_BROWSER = "there is no Chromium on this machine: `make browser` installs it (as root, on Debian)"


def pytest_configure(config: pytest.Config) -> None:
    """Undo what a shell and make hand on.

    Signals not in the process that starts the workers: they would inherit handlers as defaults, and miss nohup's.
    """
    for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):  # of `make test`: a test's own make would print as a part of it
        os.environ.pop(name, None)
    if hasattr(config, "workerinput") or not getattr(config.option, "numprocesses", None):
        restore_signals()


@pytest.fixture(scope="session")
def fashion_mnist() -> Path:
    """The folder of the real archives, `data/fashion-mnist`; fetched where they are missing."""
    data = ROOT / "data" / "fashion-mnist"
    fetch(data)
    return data


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    """A small data set that every step but prepare_data accepts: 500 train, 100 search and 100 test images.

    prepare_data itself checks the archives against the published checksums, which these are not; so the card
    and the splits come from `prepare` and `write_prepared`, what the step calls after that check. The images
    are synthetic, so that no test that needs only some images needs a download.
    """
    return make_tiny_data(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def kfp_run(tmp_path_factory: pytest.TempPathFactory, fashion_mnist: Path) -> WholeRun:
    """The pipeline, run through `kfp.local` on real images: killed on the way, and given the same command again."""
    store = make_empty_store(tmp_path_factory.getbasetemp() / "mlflow-store")
    return whole_run(check_out(tmp_path_factory.mktemp("kfp"), fashion_mnist, store))


@pytest.fixture(scope="session")
def dvc_checkout(tmp_path_factory: pytest.TempPathFactory, fashion_mnist: Path) -> Checkout:
    """A git and DVC repository in which nothing has run."""
    store = make_empty_store(tmp_path_factory.getbasetemp() / "mlflow-store")
    return check_out(tmp_path_factory.mktemp("dvc"), fashion_mnist, store)


@pytest.fixture(scope="session")
def dvc_repro(dvc_checkout: Checkout) -> "subprocess.CompletedProcess[str]":
    """`make repro` with the tiny preset in it, to the end."""
    return dvc_checkout.python("pipeline.repro", "--preset", str(dvc_checkout.preset))


@pytest.fixture(scope="session")
def two_runs(tmp_path_factory: pytest.TempPathFactory, tiny_data: TinyData) -> Store:
    """An MLflow store with two pipeline runs on tiny data, their folders beside it."""
    empty = make_empty_store(tmp_path_factory.getbasetemp() / "mlflow-store")
    return make_store(tmp_path_factory.mktemp("two-runs"), empty, tiny_data)


@pytest.fixture(scope="session")
def s3_process() -> Iterator[S3Server]:
    """moto's server, one a worker; tests share its bucket, each in a folder of its own name."""
    with s3_server() as server:
        yield server


@pytest.fixture
def s3(s3_process: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The same, with the AWS environment of this process turned to it."""
    for name, value in s3_process.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    return s3_process


@pytest.fixture(scope="session")
def proxy_process(s3_process: S3Server) -> Iterator[FaultyProxy]:
    """A proxy before that server, one a worker."""
    with FaultyProxy(s3_process).running() as proxy:
        yield proxy


@pytest.fixture
def faulty(s3: S3Server, proxy_process: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """The same server behind a proxy that does as it is told, with few tries and short pauses."""
    from runtime.storage import errors

    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy_process.server.endpoint)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    monkeypatch.setattr(errors, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01)
    yield proxy_process
    proxy_process.forget()


@pytest.fixture(autouse=True)
def no_forked_process_outlives_a_test() -> Iterator[None]:
    """A forked process keeps this one's pipes and sockets open: what waits for their end would wait for ever."""
    before = set(multiprocessing.active_children())
    yield
    if set(multiprocessing.active_children()) > before:
        gc.collect()  # an iterator over batches ends its workers when it is collected
    left = set(multiprocessing.active_children()) - before
    for process in left:
        process.kill()
        process.join()
    assert not left


@pytest.fixture(scope="module")  # while it is open, its event loop runs in this thread, and asyncio.run refuses
def browser() -> "Iterator[Browser]":
    """Chromium. Where there is none its tests are skipped, unless `REQUIRE_BROWSER` says that there must be one."""
    from docs.screenshots import CHROMIUM, chromium

    if not Path(CHROMIUM).exists():
        if os.environ.get("REQUIRE_BROWSER"):
            pytest.fail(NO_BROWSER)
        pytest.skip(NO_BROWSER)
    with chromium() as found:
        yield found


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tests that were left out for want of a browser are said aloud, not by a letter among six hundred."""
    left_out = [report for report in terminalreporter.stats.get("skipped", []) if NO_BROWSER in str(report.longrepr)]
    if left_out:
        terminalreporter.section("NOT TESTED", sep="!", red=True, bold=True)
        terminalreporter.line(f"{len(left_out)} tests of MLflow's pages and of the report were skipped: {NO_BROWSER}")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> "LoadScopeScheduling":
    """A file's tests stay on one worker, for its fixtures' sake; so do files that share what is dear to make.

    Not xdist's own groups: those of xdist 3.8 mark a test by an attribute that pytest has given up with 9.2, and since
    then every test is silently a group of its own, and each fixture made on each worker.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.partition("::")[0]).stem
            return next((group for group, files in TOGETHER.items() if file in files), file)

    config.option.loadscopereorder = False  # in the order of collection, not by how many tests a file has
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that no worker is left with it at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
