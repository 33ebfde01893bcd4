"""A small part of `make chaos`: kills at drawn write boundaries, and a clock that jumps."""

import random
import signal
from functools import partial
from pathlib import Path

import pytest
from interrupted import Sandbox, sandbox
from processes import after_its_run, at_step, ended, jump_clock, signal_self, start
from run_steps import config_of, contents, run
from test_tracking import runs
from tracking_fixtures import empty_store, store
from write_boundaries import at_boundary, boundaries

from autoformer.files import is_leftover

__all__ = ["empty_store", "sandbox", "store"]
STEP = "train_supernet"
CONFIG = config_of(STEP, epochs=2)


Counted = tuple[list[str], dict[str, bytes]]


def holds(sandbox: Sandbox, given: dict[str, str], expected: dict[str, bytes]) -> None:
    """The same command gives the same bytes, and nothing unfinished is left."""
    assert run(STEP, given) == 0
    assert contents(Path(given["--out"])) == expected
    assert [path for path in sandbox.root.rglob(".*") if is_leftover(path.name) or path.suffix == ".lock"] == []
    assert sandbox.work(STEP, "*") == []


@pytest.fixture(scope="module")
def counted(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Counted:
    """The boundaries of an undisturbed run, and what it writes."""
    folder, given = tmp_path_factory.mktemp("counted"), sandbox.given(STEP, "counted", CONFIG)
    count = (at_boundary, 0, str(sandbox.root), str(folder / "seen"))
    assert ended(start(STEP, given, folder / "log", count)) == 0
    return boundaries(folder / "seen"), contents(Path(given["--out"]))


def test_a_step_killed_at_any_write_gives_the_same_bytes_the_next_time(
    sandbox: Sandbox, counted: Counted, tmp_path: Path
) -> None:
    """At the rename of a checkpoint, half of which is written, and when it has resumed at a drawn boundary."""
    found, expected = counted
    renames = [number for number, event in enumerate(found, 1) if event.startswith("os.rename")]
    assert len(renames) >= 3 and any("checkpoint" in event for event in found)
    drawn = random.Random(17).randrange(1, len(found) - renames[0])
    given = sandbox.given(STEP, "killed", CONFIG)
    for number, torn in ((renames[0], True), (drawn, False)):
        killed = (at_boundary, number, str(sandbox.root), str(tmp_path / "seen"), torn)
        assert ended(start(STEP, given, tmp_path / "log", killed)) == -signal.SIGKILL
        assert len(boundaries(tmp_path / "seen")) == number
    holds(sandbox, given, expected)


def test_a_step_killed_between_the_end_of_its_mlflow_run_and_its_own_has_one_run(
    sandbox: Sandbox, counted: Counted, store: str, tmp_path: Path
) -> None:
    given = sandbox.given(STEP, "ended", CONFIG)
    assert ended(start(STEP, given, tmp_path / "log", (after_its_run,))) == -signal.SIGKILL
    assert not Path(given["--record"]).exists()
    assert [each.info.status for each in runs(f"tags.stage = '{STEP}'")] == ["FINISHED"]
    assert run(STEP, given) == 0
    assert [each.info.status for each in runs(f"tags.stage = '{STEP}'")] == ["FINISHED"]
    assert contents(Path(given["--out"])) == counted[1]


def test_a_clock_that_jumps_changes_no_result(sandbox: Sandbox, counted: Counted, tmp_path: Path) -> None:
    given, kill = sandbox.given(STEP, "clock", CONFIG), partial(signal_self, signal.SIGKILL)
    events = (at_step, 13, partial(jump_clock, -30)), (at_step, 17, kill)
    assert ended(start(STEP, given, tmp_path / "log", *events)) == -signal.SIGKILL
    holds(sandbox, given, counted[1])
