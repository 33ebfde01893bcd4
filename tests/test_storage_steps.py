"""Steps with a store: the supernet's weights by URI, and work that resumes where its machine and its disk are gone."""

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from faulty_proxy import Fault, FaultyProxy
from interrupted import CONFIGS, Sandbox, sandbox
from processes import at_candidate, at_step, ended, killed, poison, signal_self, start, wait_until
from run_steps import arguments, config_of, contents, run
from s3_server import S3Server
from together import run_ranks

from autoformer.files import hash_file, hash_path
from runtime.common.exit_codes import LOST
from runtime.steps.kfp_edge import log_uri
from runtime.storage import S3Uri, mirror
from runtime.storage.artifacts import local_copy
from runtime.storage.errors import MissingError
from runtime.storage.folders import read_manifest
from runtime.storage.objects import list_objects

__all__ = ["sandbox"]  # a fixture


class Artifact:
    """As much of KFP's artifact as a component's body gives to `log_uri`."""

    def __init__(self, path: Path) -> None:
        self.path, self.metadata = str(path), dict[str, Any]()


@pytest.fixture(scope="module")
def stored(sandbox: Sandbox, s3_process: S3Server) -> Path:
    """A supernet that was trained with a store, and nothing else of its run."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (s3_process.environment | {"AUTOFORMER_STORE": s3_process.uri("artifacts-test")}).items():
            patch.setenv(name, value)
        given = sandbox.given("train_supernet", "small/supernet")
        assert run("train_supernet", given) == 0
    return sandbox.root / "small" / "supernet"


def test_the_weights_go_by_uri(stored: Path, sandbox: Sandbox, s3: S3Server) -> None:
    usual = sandbox.root / "made" / "supernet"
    content, kept = hash_path(usual), json.loads((stored / "stored.json").read_text())
    large = {"ema.safetensors", "weights.safetensors"}
    assert {file.name for file in usual.iterdir()} - large == {file.name for file in stored.iterdir()} - {"stored.json"}
    assert kept["uri"] == s3.uri(f"artifacts-test/artifacts/train_supernet/{content}") and kept["hash"] == content
    assert kept["files"] == [
        {"name": name, "bytes": (usual / name).stat().st_size, "sha256": hash_file(usual / name)}
        for name in sorted(large)
    ]
    assert {entry.name for entry in list_objects(kept["uri"])} == large
    shown = Artifact(stored)
    log_uri(shown)
    assert shown.metadata == {"stored_at": kept["uri"]}
    without = Artifact(usual)
    log_uri(without)
    assert without.metadata == {}


def test_a_step_makes_the_same_of_it(stored: Path, sandbox: Sandbox, s3: S3Server) -> None:
    """Without AUTOFORMER_STORE: what is to be read, the folder itself says."""
    out = sandbox.root / "search-of-stored"
    given = arguments("search_subnet", sandbox.data, stored.parent, out, CONFIGS["search_subnet"])
    assert run("search_subnet", given) == 0
    assert contents(out) == contents(sandbox.root / "made" / "search")
    copy = sandbox.root / "work" / "fetched" / hash_path(sandbox.root / "made" / "supernet")
    assert contents(copy) == contents(sandbox.root / "made" / "supernet")
    assert [file.name for file in copy.parent.iterdir()] == [copy.name]


def usual(sandbox: Sandbox, step: str) -> dict[str, bytes]:
    """What the step makes without a store."""
    made = {"train_supernet": "supernet", "search_subnet": "search", "retrain_subnet": "retrain"}
    return contents(sandbox.root / "made" / made[step])


@pytest.fixture
def store(s3: S3Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    uri = s3.uri(f"steps/{request.node.name}")
    monkeypatch.setenv("AUTOFORMER_STORE", uri)
    return uri


def hurry() -> None:
    """A round whenever there is something new, as in trainings that last hours."""
    from runtime.storage import mirror

    mirror.EVERY_SECONDS = mirror.AGAIN_SECONDS = 0.02


def elsewhere(work: str) -> None:
    """Be the first of the ranks of a machine of its own, which sees no other's disk."""
    os.environ |= {"AUTOFORMER_WORK": work, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


def in_store(store: str, step: str) -> dict[str, str]:
    """The sha256 of each file of the step's work, as the store has it."""
    keys = {entry.name.partition("/")[0] for entry in list_objects(f"{store}/work/{step}")}
    try:
        found = [read_manifest(S3Uri.parse(f"{store}/work/{step}/{key}")) for key in keys]
    except MissingError:
        return {}
    return {file.name: file.sha256 for files, _ in found for file in files}


def kill_once_stored(work: str, store: str, step: str) -> None:
    """Die when the store has the work as it is here, with or without a line that is not complete."""

    def has_all() -> bool:
        files = [file for file in Path(work, step).glob("*/*") if not file.name.startswith(".")]
        stored, contents = in_store(store, step), {file.name: file.read_bytes() for file in files}
        whole = {name: content[: content.rfind(b"\n") + 1] for name, content in contents.items()}
        return stored.keys() == contents.keys() and all(
            sha256 in [hashlib.sha256(content).hexdigest() for content in (contents[name], whole[name])]
            for name, sha256 in stored.items()
        )

    wait_until(has_all)
    signal_self(signal.SIGKILL)


def lose_the_disk(sandbox: Sandbox) -> None:
    shutil.rmtree(sandbox.root / "work")


def test_a_killed_training_goes_on_at_another_machine(sandbox: Sandbox, store: str, tmp_path: Path) -> None:
    step, given = "train_supernet", sandbox.given("train_supernet", "stored-kill")
    kill = partial(kill_once_stored, str(sandbox.root / "work"), store, step)
    killed(step, given, tmp_path / "log", (hurry,), (at_step, 25, kill))
    lose_the_disk(sandbox)
    assert run(step, given) == 0
    assert sandbox.record(given)["resumed_from_step"] == 20
    assert contents(local_copy(Path(given["--out"]))) == usual(sandbox, step)
    assert sandbox.work(step, "*") == [] and list_objects(f"{store}/work") == []


def test_the_last_checkpoint_is_waited_for(sandbox: Sandbox, store: str, tmp_path: Path) -> None:
    """The next round would begin half a minute later."""
    step, given = "retrain_subnet", sandbox.given("retrain_subnet", "stored-term")
    term = partial(signal_self, signal.SIGTERM)
    assert ended(start(step, given, tmp_path / "log", (at_step, 13, term))) == 143
    assert set(in_store(store, step)) >= {"model-interrupted.pt"}
    lose_the_disk(sandbox)
    assert run(step, given) == 0
    assert sandbox.record(given)["resumed_from_step"] == 13
    assert contents(Path(given["--out"])) == usual(sandbox, step)
    assert list_objects(f"{store}/work") == []


def test_a_search_scores_no_candidate_again(sandbox: Sandbox, store: str, tmp_path: Path) -> None:
    step, given = "search_subnet", sandbox.given("search_subnet", "stored-search")
    kill = partial(kill_once_stored, str(sandbox.root / "work"), store, step)
    killed(step, given, tmp_path / "log", (hurry,), (at_candidate, 4, kill))
    lose_the_disk(sandbox)
    assert run(step, given) == 0
    total = json.loads((Path(given["--out"]) / "metrics.json").read_text())["candidates_scored"]
    # of the four that were stored, finalists are scored on the images that they lack
    assert total - 4 <= sandbox.record(given)["candidates_scored_now"] < total
    assert contents(Path(given["--out"])) == usual(sandbox, step)


def test_machines_that_share_no_disk_go_on_from_one_step(sandbox: Sandbox, store: str, tmp_path: Path) -> None:
    """A weight is infinite before step 24, which sends all back to 20: the second machine has that from the first."""
    step, log = "train_supernet", tmp_path / "log"
    config = config_of(step, epochs=3)
    undisturbed, given = (sandbox.given(step, name, config) for name in ("ranks-undisturbed", "ranks-stored"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AUTOFORMER_STORE")
        assert run_ranks(step, undisturbed, log, {rank: [(poison, 23)] for rank in range(2)}) == [0, 0]
    works = [str(tmp_path / f"work{rank}") for rank in range(2)]
    events = {rank: [(hurry,), (elsewhere, works[rank]), (poison, 23)] for rank in range(2)}
    kill = (at_step, 15, partial(kill_once_stored, works[0], store, step))
    assert run_ranks(step, given, log, {0: [*events[0], kill], 1: events[1]}) == [-signal.SIGKILL, LOST]
    for work in works:
        shutil.rmtree(work)
    assert run_ranks(step, given, log, events) == [0, 0]
    assert sandbox.record(given)["resumed_from_step"] == 10
    assert contents(local_copy(Path(given["--out"]))) == contents(Path(undisturbed["--out"]))


def at_steps(patch: pytest.MonkeyPatch, do: dict[int, Callable[[], object]]) -> None:
    """In this process: once so many steps are done, do something."""
    from autoformer.training import Trainer

    take_step = Trainer.take_step

    def armed(self: Trainer) -> Any:
        loss = take_step(self)
        do.get(self.step, lambda: None)()
        return loss

    patch.setattr(Trainer, "take_step", armed)


def test_s3_that_is_away_stops_no_training(
    sandbox: Sandbox,
    store: str,
    faulty: FaultyProxy,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    step, given = "train_supernet", sandbox.given("train_supernet", "stored-away")
    monkeypatch.setattr(mirror, "EVERY_SECONDS", 0.02)
    monkeypatch.setattr(mirror, "AGAIN_SECONDS", 0.02)
    told: list[str] = []

    def until(words: str) -> None:
        wait_until(lambda: told.append(capsys.readouterr().err) or words in "".join(told))

    def go() -> None:
        faulty.is_down = True

    def come() -> None:
        until("the work continues, and its checkpoints are sent later")
        faulty.is_down = False
        until("the checkpoints arrive again")

    at_steps(monkeypatch, {12: go, 35: come})
    assert run(step, given) == 0
    lines = "".join(told).splitlines()
    assert len(lines) == 2 and all(line.startswith(f"train_supernet: {store}/work/train_supernet/") for line in lines)
    assert contents(local_copy(Path(given["--out"]))) == usual(sandbox, step)
    assert list_objects(f"{store}/work") == []


def test_weights_that_cannot_be_published_are_not_lost(
    sandbox: Sandbox, store: str, faulty: FaultyProxy, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing appears, and the same command resumes from the last step."""
    step, given = "train_supernet", sandbox.given("train_supernet", "stored-denied")
    faulty.faults = [Fault("answer", "/artifacts/", "AccessDenied")]
    assert run(step, given) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"train_supernet: {store}/artifacts/train_supernet/")
    assert line.endswith("safetensors: access denied; these credentials lack s3:PutObject there")
    assert not Path(given["--out"]).exists()
    assert [file.name for file in Path(given["--out"]).parent.glob(".*stored-denied*")] == []
    faulty.faults = []
    lose_the_disk(sandbox)
    assert run(step, given) == 0
    assert sandbox.record(given)["resumed_from_step"] == 60
    assert contents(local_copy(Path(given["--out"]))) == usual(sandbox, step)


@pytest.mark.parametrize(
    ("code", "line", "ended"),
    [
        (
            "SlowDown",
            "S3 has no capacity or is at fault (SlowDown), after all tries; run the same command again later",
            69,
        ),
        ("NoSuchBucket", "s3://autoformer-tests: there is no such bucket; make it, or correct its name", 2),
        ("ExpiredToken", "the AWS credentials have expired; renew them, and run the same command again", 2),
    ],
)
def test_a_store_that_cannot_be_used_is_told_before_any_work(
    sandbox: Sandbox,
    store: str,
    faulty: FaultyProxy,
    capsys: pytest.CaptureFixture[str],
    code: str,
    line: str,
    ended: int,
) -> None:
    faulty.faults = [Fault("answer", "", code)]
    assert run("train_supernet", sandbox.given("train_supernet", f"stored-{code}")) == ended
    told = capsys.readouterr()
    assert told.err.splitlines() == [f"train_supernet: {told.err.split(': ', 1)[1].strip()}"]
    assert told.err.endswith(f"{line}\n") and "images" not in told.out
    assert sandbox.work("train_supernet", "*.pt") == []


def test_a_store_is_named_by_a_uri(
    sandbox: Sandbox, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOFORMER_STORE", "/somewhere")
    assert run("train_supernet", sandbox.given("train_supernet", "no-uri")) == 2
    assert capsys.readouterr().err == "train_supernet: AUTOFORMER_STORE: /somewhere: expected s3://bucket/folder\n"


def test_weights_that_are_gone_from_the_store_are_named(
    stored: Path, sandbox: Sandbox, s3: S3Server, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    copy = tmp_path / "supernet"
    shutil.copytree(stored, copy)
    other = s3.uri("artifacts-test/artifacts/train_supernet/other")
    text = (copy / "stored.json").read_text()
    uri = json.loads(text)["uri"]
    (copy / "stored.json").write_text(text.replace(uri, other).replace(json.loads(text)["hash"], "f" * 64))
    given = arguments("search_subnet", sandbox.data, tmp_path, tmp_path / "search", CONFIGS["search_subnet"])
    assert run("search_subnet", given) == 2
    assert capsys.readouterr().err == (
        f"search_subnet: {copy}: {other}/ema.safetensors: there is no such object; run the step that makes it again, "
        "not from a cache\n"
    )
