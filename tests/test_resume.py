"""A long step that was killed goes on from its last checkpoint when the same command is given again.

The step is killed as a process of its own, as its users start it. The same command is then given again in this
process, which has torch already: its result must be that of a run that nothing disturbed, to the byte.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from run_steps import arguments, argv, config_of, contents, run, run_all
from tiny import TinyData

from components.config import ROOT
from components.workspace import code_version

# Long enough that the process which watches for the first checkpoint is in time to kill it.
CONFIGS = {
    "train_supernet": config_of("train_supernet", epochs=25, score_steps=100, checkpoint_steps=30),
    "search_subnet": config_of("search_subnet", batch_size=2),
    "retrain_subnet": config_of("retrain_subnet", epochs=25, score_steps=100, checkpoint_steps=30),
}


class Place(NamedTuple):
    data: TinyData
    root: Path

    def given(self, step: str, name: str) -> dict[str, str]:
        return arguments(step, self.data, self.root, self.root / name, CONFIGS[step])

    def work(self, step: str, file: str) -> list[Path]:
        return list((self.root / "work" / step).glob(f"*/{file}"))

    def undisturbed(self, step: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
        with monkeypatch.context() as patch:
            patch.setenv("AUTOFORMER_WORK", str(self.root / "other-work"))
            assert run(step, self.given(step, f"{step}-undisturbed")) == 0
        return contents(self.root / f"{step}-undisturbed")

    def record(self, step: str) -> dict[str, object]:
        values: dict[str, object] = json.loads((self.root / f"{step}-resumed.record.json").read_text())
        return values


@pytest.fixture(scope="module")
def place(tiny_data: TinyData, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("resume")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOFORMER_WORK", str(root / "work"))
        patch.setenv("AUTOFORMER_TRACKING", "off")
        run_all(tiny_data, root)
        yield Place(tiny_data, root)
    torch.set_num_threads(threads)


def kill_when(ready: Callable[[], bool], step: str, given: dict[str, str]) -> None:
    """Start the step as its own process, and kill it, without warning, as soon as `ready()`."""
    command = [sys.executable, "-m", f"components.{step}", *argv(given)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        while process.poll() is None and not ready():
            time.sleep(0.005)
        process.kill()
        output = process.communicate()[0].decode()
    assert process.returncode == -signal.SIGKILL, f"ended before it could be killed:\n{output}"
    out = Path(given["--out"])
    assert not out.exists() and not Path(given["--record"]).exists()
    code_version.cache_clear()  # as the next process would: the source may have been edited since this one began


def test_training_goes_on(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    step = "train_supernet"
    given = place.given(step, f"{step}-resumed")
    kill_when(lambda: bool(place.work(step, "checkpoint.pt")), step, given)
    assert run(step, given) == 0
    assert 0 < int(str(place.record(step)["resumed_from_step"])) < 250
    assert contents(Path(given["--out"])) == place.undisturbed(step, monkeypatch)
    assert place.work(step, "*") == []


def test_a_search_scores_no_candidate_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    step = "search_subnet"
    given = place.given(step, f"{step}-resumed")

    def scored() -> int:
        return sum(file.read_bytes().count(b"\n") for file in place.work(step, "scores.jsonl"))

    kill_when(lambda: scored() >= 3, step, given)
    (file,) = place.work(step, "scores.jsonl")
    known = scored()
    with file.open("a") as torn:
        torn.write('{"subnet": {"depth": 2, "embe')  # a kill in the midst of a line
    assert run(step, given) == 0
    result = contents(Path(given["--out"]))
    total = json.loads(result["metrics.json"])["candidates_scored"]
    assert place.record(step)["candidates_scored_now"] == total - known
    assert 3 <= known < total
    assert result == place.undisturbed(step, monkeypatch)
    assert place.work(step, "*") == []


def test_retraining_goes_on(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in its second training, the reference from scratch; the first one is not repeated."""
    step = "retrain_subnet"
    given = place.given(step, f"{step}-resumed")
    kill_when(lambda: bool(place.work(step, "scratch.pt")), step, given)
    (tuned,) = place.work(step, "model.pt")
    assert torch.load(tuned, weights_only=True)["trainer"]["step"] == 250  # its last
    assert run(step, given) == 0
    assert 0 < int(str(place.record(step)["resumed_from_step"])) < 240
    assert contents(Path(given["--out"])) == place.undisturbed(step, monkeypatch)
    assert place.work(step, "*") == []


def test_a_damaged_checkpoint_is_named(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AUTOFORMER_WORK", str(tmp_path))
    step = "train_supernet"
    with monkeypatch.context() as patch:  # stopped by its user, after a checkpoint
        patch.setattr("components.tracking.StepRun.row", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(step, place.given(step, "stopped"))
    (checkpoint,) = tmp_path.glob(f"{step}/*/checkpoint.pt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    capsys.readouterr()
    assert run(step, place.given(step, "stopped")) == 2
    message = capsys.readouterr().err
    assert f"{checkpoint}: not a readable checkpoint" in message and message.count("\n") == 1
    assert not (place.root / "stopped").exists()


def _interrupt(self: object, row: dict[str, float], prefix: str = "") -> None:
    if row["step"] > 30:  # checkpoint_steps
        raise KeyboardInterrupt
