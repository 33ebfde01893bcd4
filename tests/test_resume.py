"""A long step that was killed, at any moment, is resumed by the same command.

Each is killed three times, as a process of its own, at steps that a seed has drawn, and given the same command each
time. At the end its result must be that of a run that nothing disturbed, to the byte.
"""

import json
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from interrupted import Sandbox, sandbox
from processes import at_candidate, at_step, in_a_checkpoint, killed, signal_self
from run_steps import arguments, config_of, contents, run

from runtime.common.code import step_code

__all__ = ["sandbox"]


KILL = partial(signal_self, signal.SIGKILL)


def moments(low: int, high: int, seed: int) -> list[int]:
    """Three different numbers of [low, high), in order."""
    return sorted((low + np.random.default_rng(seed).choice(high - low, 3, replace=False)).tolist())


@pytest.fixture(autouse=True)
def fresh_code() -> None:
    step_code.cache_clear()  # as in a new process: the source may have been edited since this one began


@pytest.mark.parametrize("seed", [0, 1])
def test_training_is_resumed(sandbox: Sandbox, tmp_path: Path, seed: int) -> None:
    step, log = "train_supernet", tmp_path / "log"
    given = sandbox.given(step, f"{step}-{seed}")
    steps = moments(3, 59, seed)
    for number in steps:
        printed = killed(step, given, log, (at_step, number, KILL))
    resumed = steps[-2] // 10 * 10  # the last checkpoint before the second kill
    assert (f"resumed from step {resumed} of 60" in printed) == (resumed > 0)
    assert run(step, given) == 0
    assert sandbox.record(given)["resumed_from_step"] == steps[-1] // 10 * 10
    assert contents(Path(given["--out"])) == sandbox.undisturbed(step)
    assert sandbox.work(step, "*") == []


def test_a_kill_while_a_checkpoint_is_written_leaves_the_former_one(sandbox: Sandbox, tmp_path: Path) -> None:
    step, given = "train_supernet", sandbox.given("train_supernet", "in-a-checkpoint")
    killed(step, given, tmp_path / "log", (at_step, 25, in_a_checkpoint))
    assert len(sandbox.work(step, ".checkpoint.pt.*.tmp")) == 1
    assert run(step, given) == 0
    assert sandbox.record(given)["resumed_from_step"] == 20
    assert contents(Path(given["--out"])) == sandbox.undisturbed(step)
    assert sandbox.work(step, "*") == []


def test_a_resumed_search_scores_no_candidate_again(sandbox: Sandbox, tmp_path: Path) -> None:
    step, log = "search_subnet", tmp_path / "log"
    config = config_of(step, images=None)  # so that the finalists need no more images
    given = sandbox.given(step, step, config)
    gaps = moments(1, 6, seed=0)  # candidates of each try
    for gap in gaps:
        killed(step, given, log, (at_candidate, gap, KILL))
    assert run(step, given) == 0
    result = contents(Path(given["--out"]))
    total = json.loads(result["metrics.json"])["candidates_scored"]
    assert sandbox.record(given)["candidates_scored_now"] == total - sum(gaps) > 0
    assert result == sandbox.undisturbed(step, config)
    assert sandbox.work(step, "*") == []


def test_retraining_is_resumed(sandbox: Sandbox, tmp_path: Path) -> None:
    """Killed in its first training and twice in its second, the reference from scratch; the first is not repeated."""
    step, log = "retrain_subnet", tmp_path / "log"
    given = sandbox.given(step, step)
    first, second, third = moments(3, 29, seed=0)
    killed(step, given, log, (at_step, third, KILL, 0))
    killed(step, given, log, (at_step, first, KILL, 1))
    printed = killed(step, given, log, (at_step, second, KILL, 1))
    assert "retrain_subnet (finetune): resumed from step 30 of 30" in printed
    assert run(step, given) == 0
    assert contents(Path(given["--out"])) == sandbox.undisturbed(step)
    assert sandbox.work(step, "*") == []


def test_retraining_of_several_budgets_is_resumed_in_the_budget_where_it_was_killed(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    """Killed twice in its last training: what the first budget has is kept, to the byte of a quiet run."""
    before, changes = tmp_path / "budgets", {"budgets": [0.0035, 0.0138], "limits": {}}
    before.mkdir()
    (before / "supernet").symlink_to(sandbox.root / "made" / "supernet")
    config = config_of("search_subnet", **changes)
    assert run("search_subnet", arguments("search_subnet", sandbox.data, before, before / "search", config)) == 0
    step, log, config = "retrain_subnet", tmp_path / "log", config_of("retrain_subnet", epochs=1)
    given = arguments(step, sandbox.data, before, tmp_path / "out", config)
    killed(step, given, log, (at_step, 7, KILL, 3))
    printed = killed(step, given, log, (at_step, 9, KILL, 3))
    for training in ("0.0035m (finetune)", "0.0035m (scratch)", "0.0138m (finetune)"):
        assert f"{training}: resumed from step " in printed
    assert run(step, given) == 0
    resumed = contents(tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOFORMER_WORK", str(tmp_path / "other-work"))
        assert run(step, given | {"--out": str(tmp_path / "quiet")}) == 0
    assert resumed == contents(tmp_path / "quiet") and "budgets/0.0035m/scratch/model.safetensors" in resumed
    assert sandbox.work(step, "*") == []


def test_a_damaged_checkpoint_is_named(sandbox: Sandbox, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    step, config = "train_supernet", config_of("train_supernet", seed=5)
    given = sandbox.given(step, "damaged", config)
    killed(step, given, tmp_path / "log", (at_step, 12, KILL))
    (checkpoint,) = sandbox.work(step, "checkpoint.pt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert run(step, given) == 2
    message = capsys.readouterr().err
    assert f"{checkpoint}: not a readable checkpoint" in message and message.count("\n") == 1
    assert not Path(given["--out"]).exists()
