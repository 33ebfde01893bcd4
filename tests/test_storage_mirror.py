"""The store's copy of a work folder: the folder as it was at one moment, and the newest of all machines'."""

import os
import signal
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_proxy import Fault, FaultyProxy
from mlflow import MlflowClient
from run_steps import contents
from s3_server import S3Server
from tracking_fixtures import empty_store, store

from runtime.common import stopping
from runtime.common.config import load_config
from runtime.common.stopping import SIGNALS, Stopped, stoppable
from runtime.steps import command, rank_launch
from runtime.steps.step_context import open_step
from runtime.storage import connect, uploads
from runtime.storage import mirror as module
from runtime.storage.client import S3Uri
from runtime.storage.errors import StorageError
from runtime.storage.mirror import Mirror
from runtime.storage.objects import list_objects

__all__ = ["empty_store", "store"]  # fixtures


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.01)


def uri_of(server: S3Server, name: str) -> S3Uri:
    return S3Uri.parse(server.uri(f"mirror/{name}"))


def made(folder: Path, seconds: int, **files: str) -> Path:
    """A work folder whose files were written at that time; `a_pt` is called a.pt."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        file = folder / name.replace("_", ".")
        file.write_text(text)
        os.utime(file, (seconds, seconds))
    return folder


def kept(folder: Path, uri: S3Uri) -> None:
    """Bring the folder into the store."""
    mirror = Mirror("step", folder, uri)
    mirror.request_upload()
    mirror.flush()


def recalled(folder: Path, uri: S3Uri) -> dict[str, bytes]:
    Mirror("step", folder, uri).restore()
    return contents(folder)


@pytest.mark.parametrize(
    ("here", "wins"), [({}, "store"), ({"a_pt": "old"}, "store"), ({"a_pt": "new", "b_pt": "more"}, "here")]
)
def test_the_newer_folder_wins_as_a_whole(s3: S3Server, tmp_path: Path, here: dict[str, str], wins: str) -> None:
    uri = uri_of(s3, f"newer-{len(here)}")
    kept(made(tmp_path / "other", 1000, a_pt="stored", scores_jsonl="1\n"), uri)
    folder = made(tmp_path / "here", 999 if wins == "store" else 1001, **here)
    before = contents(folder)
    expected = {"a.pt": b"stored", "scores.jsonl": b"1\n"} if wins == "store" else before
    assert recalled(folder, uri) == expected


def test_what_is_gone_from_the_folder_is_gone_from_the_store(s3: S3Server, tmp_path: Path) -> None:
    uri, folder = uri_of(s3, "gone"), made(tmp_path / "work", 1000, a_pt="one", beginning_pt="none")
    kept(folder, uri)
    (folder / "beginning.pt").unlink()
    kept(made(folder, 1001, a_pt="two"), uri)
    assert recalled(tmp_path / "other", uri) == {"a.pt": b"two"}
    assert sorted(entry.name.partition(".")[0] for entry in list_objects(uri)) == ["_manifest", "_opened", "a"]
    mirror = Mirror("step", folder, uri)
    mirror.restore()
    mirror.clear()
    assert list_objects(uri) == []


def gone(uri: S3Uri, name: str) -> None:
    """Remove the object of a file, as a rule of the bucket does that lets old objects expire."""
    found = next(entry.name for entry in list_objects(uri) if entry.name.startswith(f"{name}."))
    connect().delete_object(Bucket=uri.bucket, Key=f"{uri.key}/{found}")


@pytest.mark.parametrize(
    ("work", "then"), [({}, "the step starts from the beginning"), ({"a_pt": "old"}, "the work in {} continues")]
)
def test_a_copy_that_is_not_whole_stops_nobody(
    s3: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], work: dict[str, str], then: str
) -> None:
    uri = uri_of(s3, f"not-whole-{len(work)}")
    kept(made(tmp_path / "other", 1000, a_pt="one", found_json="{}"), uri)
    gone(uri, "found.json")
    folder = made(tmp_path / "here", 999, **work)
    before = contents(folder)
    assert recalled(folder, uri) == before
    line = capsys.readouterr().err
    assert line.startswith(f"step: {uri}/found.json.") and line.count("\n") == 1
    assert line.endswith(f": there is no such object; the copy there is not whole, and {then.format(folder)}\n")
    assert not [file for file in tmp_path.iterdir() if file.name.endswith(".part")]
    kept(made(folder, 1001, a_pt="two"), uri)
    assert recalled(tmp_path / "third", uri) == {"a.pt": b"two"}


def test_a_copy_that_is_replaced_while_it_is_brought_is_brought_anew(faulty: FaultyProxy, tmp_path: Path) -> None:
    """The machine that had the work before is about to end, and sends its last checkpoint."""
    uri, folder = uri_of(faulty.server, "replaced"), made(tmp_path / "other", 1000, a_pt="one")
    kept(folder, uri)
    lines: list[str] = []

    def replace(line: str) -> None:
        if "/a.pt." in line and not lines:
            lines.append(line)
            kept(made(folder, 1001, a_pt="two"), uri)

    faulty.before = replace
    assert recalled(tmp_path / "here", uri) == {"a.pt": b"two"} and lines


@pytest.mark.parametrize("lost", ["a.pt", "_manifest.json", "everything"])
def test_what_somebody_has_removed_is_sent_again(s3: S3Server, tmp_path: Path, lost: str) -> None:
    uri, folder = uri_of(s3, f"removed-{lost}"), made(tmp_path / "work", 1000, a_pt="one", b_jsonl="1\n")
    mirror = Mirror("step", folder, uri)
    mirror.restore()
    mirror._upload()
    before = {entry.name for entry in list_objects(uri)}
    for name in before if lost == "everything" else [name for name in before if name.startswith(lost)]:
        connect().delete_object(Bucket=uri.bucket, Key=f"{uri.key}/{name}")
    mirror._upload()
    assert {entry.name for entry in list_objects(uri)} == before
    assert recalled(tmp_path / "other", uri) == contents(folder)


def test_a_copy_that_another_has_opened_since_is_left_to_it(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = uri_of(s3, "owners")
    first = Mirror("step", made(tmp_path / "first", 1000, a_pt="one"), uri)
    first.restore()
    first.request_upload()
    monkeypatch.setenv("KFP_RUN_ID", "run-2")
    monkeypatch.setenv("KFP_POD_NAME", "pod-2")
    second = Mirror("step", tmp_path / "second", uri)
    first._end()
    second.restore()
    first.clear()
    line = capsys.readouterr().err
    assert line.startswith(f"step: {uri}: run-2/pod-2/") and line.endswith(" has opened it since, and it is left to "
                                                                           "that one\n")  # fmt: skip
    assert recalled(tmp_path / "third", uri) == {"a.pt": b"one"}
    second._sign()
    second.clear()
    assert list_objects(uri) == []


def test_who_could_not_sign_at_the_beginning_does_later(faulty: FaultyProxy, tmp_path: Path) -> None:
    """Else the copy would be left for ever to the process that began the work, and is gone."""
    uri, folder = uri_of(faulty.server, "signed"), made(tmp_path / "work", 1000, a_pt="one")
    recalled(tmp_path / "other", uri)
    mirror = Mirror("step", folder, uri)
    faulty.is_down = True
    mirror.restore()
    faulty.is_down = False
    mirror._upload()
    mirror.clear()
    assert list_objects(uri) == []


def test_a_copy_that_cannot_be_deleted_is_named(
    faulty: FaultyProxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = uri_of(faulty.server, "undeleted")
    mirror = Mirror("step", made(tmp_path / "work", 1000, a_pt="one"), uri)
    mirror.restore()
    faulty.is_down = True
    mirror.clear()
    line = capsys.readouterr().err
    assert line.startswith(f"step: {uri}/_opened.json: S3 at ") and line.count("\n") == 1
    assert line.endswith("; it holds work that is done with, and may be removed\n")


def test_a_round_that_fails_midway_leaves_the_former_one(
    faulty: FaultyProxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first file of the second round arrives, the second does not."""
    uri, folder = uri_of(faulty.server, "midway"), made(tmp_path / "work", 1000, a_pt="one", b_pt="one")
    kept(folder, uri)
    faulty.faults = [Fault("answer", "PUT", "AccessDenied", skip=1)]
    kept(made(folder, 1001, a_pt="two", b_pt="two"), uri)
    faulty.faults = []
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"step: {uri}/b.pt.") and line.endswith(f"; the last checkpoint is in {folder} alone")
    assert recalled(tmp_path / "other", uri) == {"a.pt": b"one", "b.pt": b"one"}


def test_a_snapshot_is_not_touched_by_what_comes_later(
    faulty: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two requests of a round a checkpoint is replaced, and a line is added to another file."""
    uri, folder = uri_of(faulty.server, "snapshot"), made(tmp_path / "work", 1000, a_pt="one", b_jsonl="1\n")

    def meddle(line: str) -> None:
        if line.startswith("HEAD") and "/a.pt." in line:
            made(folder, 1001, new_pt="two")
            (folder / "new.pt").replace(folder / "a.pt")
        if line.startswith("HEAD") and "/b.jsonl." in line:
            with (folder / "b.jsonl").open("a") as file:
                file.write("2\n")

    faulty.before = meddle
    kept(folder, uri)
    faulty.before = lambda line: None
    assert recalled(tmp_path / "other", uri) == {"a.pt": b"one", "b.jsonl": b"1\n"}


@pytest.mark.parametrize("work", [True, False], ids=["work", "no work"])
def test_a_store_that_is_away_at_the_beginning(
    faulty: FaultyProxy, tmp_path: Path, capsys: pytest.CaptureFixture[str], work: bool
) -> None:
    """Local work continues; nobody starts from the beginning where there may be work in the store."""
    uri, folder = uri_of(faulty.server, "away"), made(tmp_path / "work", 1000, **({"a_pt": "one"} if work else {}))
    faulty.is_down = True
    if work:
        assert recalled(folder, uri) == {"a.pt": b"one"}
        assert capsys.readouterr().err.endswith(f"; the work in {folder} continues\n")
    else:
        with pytest.raises(StorageError, match="cannot be reached"):
            recalled(folder, uri)


def test_a_store_that_may_only_be_read_is_told_at_the_beginning(faulty: FaultyProxy, tmp_path: Path) -> None:
    faulty.faults = [Fault("answer", "PUT", "AccessDenied")]
    with pytest.raises(StorageError, match="these credentials lack s3:PutObject there"):
        recalled(tmp_path / "work", uri_of(faulty.server, "read-only"))


def test_a_manifest_that_leads_out_of_the_folder_is_refused(s3: S3Server, tmp_path: Path) -> None:
    uri = uri_of(s3, "out")
    text = b'{"newest_ns": 5, "files": [{"name": "../out", "bytes": 1, "sha256": "0"}]}'
    connect().put_object(Bucket=uri.bucket, Key=f"{uri.key}/_manifest.json", Body=text)
    with pytest.raises(StorageError, match=r"_manifest.json: not a list of files; remove the folder"):
        recalled(tmp_path / "work", uri)


@pytest.fixture
def listens(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Signals are heard as in a step, and that one has come is forgotten afterwards."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    for name in ("received", "listening"):
        monkeypatch.setattr(stopping._State, name, getattr(stopping._State, name))
    monkeypatch.setattr(stopping, "RAISE_AGAIN_SECONDS", 600)  # the tests catch `Stopped` themselves
    with stoppable():
        yield
        stopping._State.received = None
    for number, handler in handlers.items():
        signal.signal(number, handler)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_stopped_step_ends_its_run_before_its_last_checkpoint_has_arrived(
    faulty: FaultyProxy, store: str, listens: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 takes it only then. A process that is killed while it sends would leave a run that seems to go on."""
    monkeypatch.setenv("AUTOFORMER_STORE", faulty.server.uri("mirror/run"))
    arguments = Namespace(out=tmp_path / "out", record=tmp_path / "record.json")
    run_ids: list[str] = []
    found: list[str] = []

    def hold(line: str) -> None:
        if line.startswith("PUT") and "/checkpoint.pt." in line:
            give_up, status = time.monotonic() + 10, "RUNNING"
            while status == "RUNNING" and time.monotonic() < give_up:
                status = MlflowClient(store).get_run(run_ids[0]).info.status
            found.append(status)

    faulty.before = hold
    with (
        pytest.raises(Stopped),
        open_step("train_supernet", arguments, load_config("smoke"), has_checkpoints=True) as opened,
    ):
        run_ids.append(opened.tracked.run_id)
        opened.workspace.file("checkpoint.pt").write_text("one")
        opened.mirror.request_upload()
        stop()
    assert found == ["KILLED"]
    stored = {entry.name.split("/")[-1].partition(".")[0] for entry in list_objects(faulty.server.uri("mirror/run"))}
    assert stored == {"_manifest", "_opened", "checkpoint"}


@pytest.mark.parametrize("when", ["before", "while it waits"])
def test_a_stopped_step_does_not_wait_until_it_is_killed(
    faulty: FaultyProxy,
    listens: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    when: str,
) -> None:
    """It reports what is lost. Its threads are daemons, for which no process waits at its end."""
    assert min(rank_launch.GRACE_SECONDS, command.GRACE_SECONDS) > module.STOPPED_SECONDS
    monkeypatch.setattr(module, "STOPPED_SECONDS", 0.3)
    monkeypatch.setattr(uploads, "PART_BYTES", 2)
    before = set(threading.enumerate())
    uri, folder = uri_of(faulty.server, f"late-{when[0]}"), made(tmp_path / "work", 1000, a_pt="of five parts")
    mirror, asked, goes_on = Mirror("step", folder, uri), threading.Event(), threading.Event()

    def hold(line: str) -> None:
        if "partNumber=" in line:
            asked.set()
            goes_on.wait(20)

    faulty.before = hold
    mirror.request_upload()
    assert asked.wait(20)
    if when == "before":
        with pytest.raises(Stopped):
            stop()
        mirror.flush()
    else:
        timer = threading.Timer(0.1, stop)
        timer.daemon = True
        timer.start()
        with pytest.raises(Stopped):
            mirror.flush()
    late = f"step: {uri}: the last checkpoint was not sent within 0.3 s of the signal; it is in {folder} alone\n"
    assert capsys.readouterr().err == late
    assert all(thread.daemon for thread in set(threading.enumerate()) - before)
    goes_on.set()
    assert mirror._has_ended.wait(20)
    assert capsys.readouterr().err == ""
