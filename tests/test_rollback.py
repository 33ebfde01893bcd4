"""A loss or weight that is NaN or infinite: named, rolled back by a stated policy, never published."""

import json
import math
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from interrupted import Sandbox, sandbox
from processes import at_step, ended, poison, signal_self, start
from run_steps import SPACE, config_of, contents, run

from autoformer.checkpoint import first_not_finite, load_subnet, load_supernet, save_subnet
from autoformer.errors import AutoFormerError
from autoformer.sampling import sampled_subnet
from autoformer.space import SearchSpace
from autoformer.training import Trainer
from runtime.common.tables import read_table

__all__ = ["sandbox"]
STEP = "train_supernet"


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """An infinite weight before step 23 (from 0), as long as the learning rates are those of the schedule."""
    monkeypatch.setattr(Trainer, "take_step", Trainer.take_step)  # restored after the test
    poison(23)


def test_training_goes_back_to_the_last_checkpoint(
    sandbox: Sandbox, poisoned: None, capsys: pytest.CaptureFixture[str]
) -> None:
    given = sandbox.given(STEP, "back")
    assert run(STEP, given) == 0
    space = SearchSpace.model_validate(SPACE)
    subnet = sampled_subnet(space, 0, 23)
    (rollback,) = json.loads((Path(given["--out"]) / "rollbacks.json").read_text())
    assert rollback == {
        "step": 24,
        "reason": "the loss of step 24 is nan",
        "subnet": json.loads(subnet.to_json()),
        "back_to_step": 20,
        "learning_rate_scale": 0.5,
    }
    told = capsys.readouterr().out
    assert (
        f"the loss of step 24 is nan, with subnet {subnet.to_json()}; back to step 20, learning rates times 0.5" in told
    )
    rows, plain = (
        read_table(folder / "history.csv") for folder in (Path(given["--out"]), sandbox.root / "made/supernet")
    )
    assert [row["step"] for row in rows] == [row["step"] for row in plain]
    assert rows[:4] == plain[:4]  # up to step 20
    halves = [
        float(row["learning_rate"]) / float(other["learning_rate"]) for row, other in zip(rows, plain, strict=True)
    ]
    assert halves == [1.0] * 4 + [0.5] * 8
    weights = load_supernet(Path(given["--out"])).model.state_dict()
    assert first_not_finite(weights) is None
    assert all(math.isfinite(float(row["train_loss"])) for row in rows)


def test_a_rollback_does_not_depend_on_interruptions(sandbox: Sandbox, poisoned: None, tmp_path: Path) -> None:
    """Stopped at step 22, between the checkpoint and the fault, and at step 27 after the rollback."""
    undisturbed, given = sandbox.given(STEP, "undisturbed", config_of(STEP, seed=2)), None
    assert run(STEP, undisturbed) == 0
    given, log = sandbox.given(STEP, "disturbed", config_of(STEP, seed=2)), tmp_path / "log"
    term = partial(signal_self, signal.SIGTERM)
    assert ended(start(STEP, given, log, (poison, 23), (at_step, 22, term))) == 143
    assert ended(start(STEP, given, log, (poison, 23), (at_step, 27, term))) == 143
    assert "back to step 20" in log.read_text() and "at step 27 of 60" in log.read_text()
    assert ended(start(STEP, given, log, (poison, 23), (at_step, 29, partial(signal_self, signal.SIGKILL)))) == -9
    assert run(STEP, given) == 0
    assert sandbox.record(given)["resumed_from_step"] == 27
    assert contents(Path(given["--out"])) == contents(Path(undisturbed["--out"]))


def test_training_that_diverges_ends_in_one_line(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    """Without poison: three rollbacks do not lower this learning rate enough."""
    config = config_of(STEP, learning_rate=1e30, warmup_epochs=0, clip_grad=None)
    given = sandbox.given(STEP, "diverged", config)
    assert run(STEP, given) == 2
    captured = capsys.readouterr()
    assert captured.out.count("back to step 0, learning rates times") == 3
    assert "learning rates times 0.125" in captured.out
    assert captured.err.count("\n") == 1 and "is nan, with subnet {" in captured.err
    assert captured.err.endswith("after 3 rollbacks; lower the learning_rate, or set clip_grad\n")
    assert not Path(given["--out"]).exists()
    assert not sandbox.work(STEP, "checkpoint.pt")


def test_a_weight_that_is_not_finite_is_no_checkpoint(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last step before a checkpoint spoils a weight, which no loss shows yet."""
    take_step = Trainer.take_step

    def spoiling(self: Trainer) -> torch.Tensor:
        loss = take_step(self)
        if self.step == 30 and self.learning_rate_scale == 1.0:
            self.model.get_parameter("head.weight").data[0, 0] = float("nan")
        return loss

    monkeypatch.setattr(Trainer, "take_step", spoiling)
    given = sandbox.given(STEP, "spoilt")
    assert run(STEP, given) == 0
    assert "'head.weight' holds NaN or infinity after step 30" in capsys.readouterr().out
    (rollback,) = json.loads((Path(given["--out"]) / "rollbacks.json").read_text())
    assert rollback["back_to_step"] == 20


def test_no_rollback_is_allowed_where_none_is_wanted(
    sandbox: Sandbox, poisoned: None, capsys: pytest.CaptureFixture[str]
) -> None:
    given = sandbox.given("retrain_subnet", "none", config_of("retrain_subnet", max_rollbacks=0))
    assert run("retrain_subnet", given) == 2
    assert "after 0 rollbacks" in capsys.readouterr().err
    assert not Path(given["--out"]).exists()


def test_weights_that_are_not_finite_are_neither_written_nor_read(sandbox: Sandbox, tmp_path: Path) -> None:
    loaded = load_subnet(sandbox.root / "made/retrain/model")
    name = "head.bias"
    with torch.no_grad():
        loaded.model.get_parameter(name)[3] = float("-inf")
    with pytest.raises(AutoFormerError, match=r"model.safetensors: 'head.bias' holds NaN or infinity"):
        save_subnet(tmp_path / "model", loaded.model, loaded.card)
    assert not list(tmp_path.iterdir())
    from safetensors.torch import load_file, save_file

    target = tmp_path / "model"
    target.mkdir()
    for file in (sandbox.root / "made/retrain/model").iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    weights = load_file(target / "model.safetensors")
    weights[name][3] = float("nan")
    save_file(weights, target / "model.safetensors")
    with pytest.raises(AutoFormerError, match=r"model.safetensors: 'head.bias' holds NaN or infinity"):
        load_subnet(target)
