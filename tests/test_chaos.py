"""A small part of `make chaos`: kills at drawn write boundaries, and a clock that jumps."""

import random
import signal
from functools import partial
from pathlib import Path

from interrupted import Sandbox, sandbox
from processes import at_step, ended, jump_clock, signal_self, start
from run_steps import config_of, contents, run
from write_boundaries import at_boundary, boundaries

from autoformer.files import is_leftover

__all__ = ["sandbox"]
STEP = "train_supernet"
CONFIG = config_of(STEP, epochs=2)


def holds(sandbox: Sandbox, given: dict[str, str]) -> None:
    """The same command gives the same bytes, and nothing unfinished is left."""
    assert run(STEP, given) == 0
    assert contents(Path(given["--out"])) == sandbox.undisturbed(STEP, CONFIG)
    assert [path for path in sandbox.root.rglob(".*") if is_leftover(path.name) or path.suffix == ".lock"] == []
    assert sandbox.work(STEP, "*") == []


def test_a_step_killed_at_any_write_gives_the_same_bytes_the_next_time(sandbox: Sandbox, tmp_path: Path) -> None:
    """At the rename of a checkpoint, half of which is written, and at a drawn boundary."""
    counted = tmp_path / "counted"
    given = sandbox.given(STEP, "counted", CONFIG)
    assert ended(start(STEP, given, tmp_path / "log", (at_boundary, 0, str(sandbox.root), str(counted)))) == 0
    found = boundaries(counted)
    renames = [number for number, event in enumerate(found, 1) if event.startswith("os.rename")]
    assert len(renames) >= 3 and any("checkpoint" in event for event in found)
    drawn = random.Random(17).randrange(1, len(found) + 1)
    for number, torn in ((renames[0], True), (drawn, False)):
        given = sandbox.given(STEP, f"killed-{number}", CONFIG)
        killed = (at_boundary, number, str(sandbox.root), str(tmp_path / "seen"), torn)
        assert ended(start(STEP, given, tmp_path / "log", killed)) == -signal.SIGKILL
        assert len(boundaries(tmp_path / "seen")) == number
        holds(sandbox, given)


def test_a_clock_that_jumps_changes_no_result(sandbox: Sandbox, tmp_path: Path) -> None:
    given, kill = sandbox.given(STEP, "clock", CONFIG), partial(signal_self, signal.SIGKILL)
    events = (at_step, 13, partial(jump_clock, -30)), (at_step, 17, kill)
    assert ended(start(STEP, given, tmp_path / "log", *events)) == -signal.SIGKILL
    holds(sandbox, given)
