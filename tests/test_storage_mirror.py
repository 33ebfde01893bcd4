"""The store's copy of a work folder: the folder as it was at one moment, and the newest of all machines'."""

import os
from pathlib import Path

import pytest
from faulty_proxy import Fault, FaultyProxy
from run_steps import contents
from s3_server import S3Server

from components.storage import StorageError, connect, listing
from components.storage import mirror as module
from components.storage.mirror import Mirror
from components.storage.uris import S3Uri


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
    mirror.changed()
    mirror.settle()


def recalled(folder: Path, uri: S3Uri) -> dict[str, bytes]:
    Mirror("step", folder, uri).recall()
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
    assert sorted(entry.name.partition(".")[0] for entry in listing(uri)) == ["_manifest", "_opened", "a"]
    mirror = Mirror("step", folder, uri)
    mirror.recall()
    mirror.clear()
    assert listing(uri) == []


def gone(uri: S3Uri, name: str) -> None:
    """Remove the object of a file, as a rule of the bucket does that lets old objects expire."""
    found = next(entry.name for entry in listing(uri) if entry.name.startswith(f"{name}."))
    connect().delete_object(Bucket=uri.bucket, Key=f"{uri.key}/{found}")


@pytest.mark.parametrize(
    ("work", "then"), [({}, "the step begins anew"), ({"a_pt": "old"}, "the work that is in {} goes on")]
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
    mirror.recall()
    mirror._round(uri)
    before = {entry.name for entry in listing(uri)}
    for name in before if lost == "everything" else [name for name in before if name.startswith(lost)]:
        connect().delete_object(Bucket=uri.bucket, Key=f"{uri.key}/{name}")
    mirror._round(uri)
    assert {entry.name for entry in listing(uri)} == before
    assert recalled(tmp_path / "other", uri) == contents(folder)


def test_a_copy_that_another_has_opened_since_is_left_to_it(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = uri_of(s3, "owners")
    first = Mirror("step", made(tmp_path / "first", 1000, a_pt="one"), uri)
    first.recall()
    first.changed()
    monkeypatch.setenv("KFP_RUN_ID", "run-2")
    monkeypatch.setenv("KFP_POD_NAME", "pod-2")
    second = Mirror("step", tmp_path / "second", uri)
    first._end()
    second.recall()
    first.clear()
    line = capsys.readouterr().err
    assert line.startswith(f"step: {uri}: run-2/pod-2/") and line.endswith(" has opened it since, and it is left to "
                                                                           "that one\n")  # fmt: skip
    assert recalled(tmp_path / "third", uri) == {"a.pt": b"one"}
    second._sign(uri)
    second.clear()
    assert listing(uri) == []


def test_who_could_not_sign_at_the_beginning_does_later(faulty: FaultyProxy, tmp_path: Path) -> None:
    """Else the copy would be left for ever to the process that began the work, and is gone."""
    uri, folder = uri_of(faulty.server, "signed"), made(tmp_path / "work", 1000, a_pt="one")
    recalled(tmp_path / "other", uri)
    mirror = Mirror("step", folder, uri)
    faulty.is_down = True
    mirror.recall()
    faulty.is_down = False
    mirror._round(uri)
    mirror.clear()
    assert listing(uri) == []


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
    """Work that is here goes on; nobody begins anew where there may be work in the store."""
    uri, folder = uri_of(faulty.server, "away"), made(tmp_path / "work", 1000, **({"a_pt": "one"} if work else {}))
    faulty.is_down = True
    if work:
        assert recalled(folder, uri) == {"a.pt": b"one"}
        assert capsys.readouterr().err.endswith(f"; the work that is in {folder} goes on\n")
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
