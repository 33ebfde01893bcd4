"""The step with a race in it: against the exact search, killed on the way, and in two processes."""

import base64
import json
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from interrupted import Sandbox, sandbox
from processes import at_answer, killed, signal_self
from run_steps import argv, config_of, contents, run
from together import run_ranks

from runtime.common.code import step_code
from runtime.common.tables import read_table

__all__ = ["sandbox"]

RACING = {"confidence": 0.9, "first_images": 15, "growth": 1.5}  # of 100 images
CONFIG = config_of("search_subnet", images=None, racing=RACING, parents=2)
STEP = "search_subnet"


@pytest.fixture(autouse=True)
def fresh_code() -> None:
    step_code.cache_clear()


def test_the_exact_search_chooses_no_better(sandbox: Sandbox, tmp_path: Path) -> None:
    """Every row of the race is true: whole scores are those of the exact search, and estimates are marked as such."""
    chosen = {}
    for name, config in (("race", CONFIG), ("exact", config_of(STEP, images=None, racing=None, parents=2))):
        assert run(STEP, sandbox.given(STEP, name, config)) == 0
        rows = read_table(sandbox.root / name / "candidates.csv")
        whole = [row for row in rows if row["loss"]]
        assert [row["images"] == "100" for row in rows] == [row in whole for row in rows]
        metrics = json.loads((sandbox.root / name / "metrics.json").read_text())
        evolved = [row for row in rows if row["origin"] != "baseline"]
        assert metrics["images_scored"] == sum(int(row["images"]) for row in evolved)
        assert metrics["images_scored_percent"] == metrics["images_scored"] / len(evolved)
        progress = read_table(sandbox.root / name / "progress.csv")
        assert int(progress[-1]["images_scored"]) == metrics["images_scored"]
        chosen[name] = metrics["chosen_top1_percent"]
        known = {key(row): (row["top1_percent"], row["loss"]) for row in whole}
        if name == "race":
            raced, of_race = known, metrics["images_scored"]
            assert len(whole) < len(rows)
            by_id = {row["id"]: row for row in rows}
            parents = {parent for row in rows for parent in row["parents"].split(";") if parent}
            assert parents and all(by_id[parent]["loss"] for parent in parents)
        else:
            assert all(known[spec][0] == score for spec, (score, _) in raced.items() if spec in known)
            assert of_race < metrics["images_scored"] == 100 * len(evolved)
    assert chosen["race"] >= chosen["exact"] - 1


def key(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[column] for column in ("depth", "embed_dim", "num_heads", "mlp_ratio"))


def test_a_race_that_was_killed_scores_no_image_again(sandbox: Sandbox, tmp_path: Path) -> None:
    given = sandbox.given(STEP, "killed", CONFIG)
    lines = 0
    for number in (3, 9, 4):  # in the first group, in its rounds, and beyond
        killed(STEP, given, tmp_path / "log", (at_answer, number, partial(signal_self, signal.SIGKILL)))
        (file,) = sandbox.work(STEP, "scores.jsonl")
        lines += number
        assert len(file.read_text().splitlines()) == lines + 1  # the last one is cut off
    images = sum(bits(line["images"]) for line in map(json.loads, file.read_text().splitlines()[:-1]))
    assert run(STEP, given) == 0
    metrics = json.loads((Path(given["--out"]) / "metrics.json").read_text())
    total = metrics["images_scored"] + metrics["random_images_scored"]
    assert sandbox.record(given)["images_scored_now"] == total - images > 0
    assert contents(Path(given["--out"])) == sandbox.undisturbed(STEP, CONFIG)


def bits(text: str) -> int:
    return int(np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8)).sum())


def test_two_processes_find_what_one_does(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that are forked: how a step's are launched is held in test_ranks, and that a search's are, here."""
    config = json.dumps(json.loads(CONFIG) | {"device": "cpu"})
    given = sandbox.given(STEP, "two", config)
    launched: list[tuple[object, ...]] = []
    with monkeypatch.context() as patch:
        patch.setenv("AUTOFORMER_PROCESSES", "2")
        patch.setattr("runtime.steps.command.launch", lambda *told: launched.append(told))
        assert run(STEP, given) == 0
    assert launched == [(STEP, argv(given), 2)] and not Path(given["--out"]).exists()
    assert run_ranks(STEP, given, tmp_path / "log") == [0, 0]
    assert contents(Path(given["--out"])) == sandbox.undisturbed(STEP, config)
    assert sandbox.record(given)["ranks"] == 2
