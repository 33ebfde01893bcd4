"""Faults while the steps run, and what holds after each: `make chaos`.

After each fault the same command gives the same bytes, no process and no unfinished file is left, each step has one
MLflow run, and no model replaces a better champion. Moments are drawn from `SEED`. Stores that are away: services.py.
Long runs: memory.py. Full disks: tests/test_full_disk.py.
"""

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest
from faulted_steps import (
    SIGNALS,
    House,
    Row,
    champion,
    count_boundaries,
    house,
    kill_at,
    leftovers,
    results,
    signalled,
    step_runs,
)  # fmt: skip
from processes import at_step, ended, jump_clock, register_quickly, signal_self, start
from run_steps import run
from test_register_model import Made
from tiny import make_tiny_data

from runtime.common.config import STEPS

__all__ = ["house"]
SEED = os.environ["SEED"]
STRIDE = int(os.environ.get("STRIDE") or 1)  # kill at every n-th boundary
PARTS = 4  # of the longest test
RUN_STEPS = [step for step in STEPS if step != "register_model"]


@pytest.mark.parametrize("part", range(PARTS))
def test_a_registration_killed_at_every_boundary(part: int, house: House, tmp_path: Path, row: Row) -> None:
    """Of files and of the database: one boundary in `PARTS`, so that several workers share them."""
    found = registration_boundaries(f"counted-{part}", house, house.models.better, tmp_path / "log")
    first = 1 + part + PARTS * random.Random(SEED).randrange(STRIDE)
    kills = kill_registrations(range(first, len(found) + 1, PARTS * STRIDE), True, house, tmp_path / "log")
    model = f"a better model, part {part + 1} of {PARTS}"
    row("register_model", f"SIGKILL at a write or SQL statement, {len(found)} in all; {model}", kills)


def test_a_registration_of_a_worse_model_killed_at_some_boundaries(
    house: House, tmp_path: Path, rng: random.Random, row: Row
) -> None:
    found = registration_boundaries("counted", house, house.models.worse, tmp_path / "log")
    kills = kill_registrations(rng.sample(range(1, len(found) + 1), 8), False, house, tmp_path / "log")
    row("register_model", f"SIGKILL at a write or SQL statement, {len(found)} in all; a worse model", kills)


def registration_boundaries(name: str, house: House, made: Made, log: Path) -> list[str]:
    with house.own_store(name):
        given, quickly = house.registration(name, made), (register_quickly, str(house.models.program))
        return count_boundaries("register_model", given, house.root, log, quickly, database=True)


def kill_registrations(numbers: Iterable[int], better: bool, house: House, log: Path) -> int:
    """The champion is the old or the new one at any time, and the better one at the end; how many were killed."""
    step, kills = "register_model", 0
    made, top1_percent = (house.models.better, 90.0) if better else (house.models.worse, 88.0)
    quickly = (register_quickly, str(house.models.program))
    for number in numbers:
        name = f"registration-{better}-{number}"
        given = house.registration(name, made)
        with house.own_store(name):
            if not kill_at(number, step, given, house.root, log, quickly, database=True):
                continue
            kills += 1
            assert champion()[2] in (88.0, top1_percent)
            assert run(step, given) == 0
            versions, version, accuracy = champion()
            assert (accuracy, versions[-1]) == (top1_percent, version)
            assert versions == (["1", "2"] if better else ["1"])
            assert leftovers(house.root, given) == []
            assert step_runs(step) == ["FINISHED"]
    assert kills > 4
    return kills


@pytest.mark.parametrize("step", RUN_STEPS)
def test_a_step_killed_at_every_write_boundary(
    step: str, house: House, tmp_path: Path, rng: random.Random, row: Row
) -> None:
    house.expected(step)
    with house.experiment(f"{step}-counted"):
        found = count_boundaries(step, house.given(step, f"{step}-counted"), house.root, tmp_path / "log")
    numbers = range(1 + rng.randrange(STRIDE), len(found) + 1, STRIDE)
    kills = Counter(house.survives_a_kill(step, number, tmp_path / "log") for number in numbers)
    assert len(found) > 9 and kills["before"] > kills["not killed"]
    row(step, f"SIGKILL at a write, {len(found)} in all", kills["before"])
    row(step, "SIGKILL at a write after the end of its MLflow run", kills["after its run"])


@pytest.mark.parametrize("step", RUN_STEPS)
def test_a_step_killed_between_statements_of_its_database(
    step: str, house: House, tmp_path: Path, rng: random.Random, row: Row
) -> None:
    house.expected(step)
    with house.experiment(f"{step}-sql"):
        found = count_boundaries(step, house.given(step, f"{step}-sql"), house.root, tmp_path / "log", database=True)
    statements = [number for number, event in enumerate(found, 1) if event.startswith("sql")]
    numbers = rng.sample(statements, 4)
    kills = Counter(house.survives_a_kill(step, n, tmp_path / "log", database=True) for n in numbers)
    assert kills["before"] + kills["after its run"]
    row(step, f"SIGKILL at a SQL statement, {len(statements)} in all", kills["before"] + kills["after its run"])


@pytest.mark.parametrize("step", RUN_STEPS)
def test_a_step_signalled_at_four_moments(
    step: str, house: House, tmp_path: Path, rng: random.Random, row: Row
) -> None:
    house.expected(step)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOFORMER_WORKERS", "1")
        began = time.monotonic()
        assert ended(start(step, house.given(step, f"{step}-timed"), tmp_path / "log")) == 0
        seconds = time.monotonic() - began
        for number in SIGNALS:
            name = f"{step}-{number.name}"
            given = house.given(step, name)
            with house.experiment(name):
                code = signalled(number, rng.uniform(0.05, 0.95) * seconds, step, given, tmp_path / "log")
                assert code in (0, 128 + number, -number), (tmp_path / "log").read_text()
                if code != 0:
                    house.holds(step, given)
    row(step, "SIGTERM, SIGINT, SIGHUP, SIGKILL at drawn moments", len(SIGNALS))


@pytest.mark.parametrize("hours", [-30, 30])
@pytest.mark.parametrize("step", ["train_supernet", "retrain_subnet"])
def test_the_clock_jumps(step: str, hours: int, house: House, tmp_path: Path, row: Row) -> None:
    name, log, kill = f"{step}-clock-{hours}", tmp_path / "log", partial(signal_self, signal.SIGKILL)
    given, jump = house.given(step, name), partial(jump_clock, hours)
    with house.experiment(name):
        assert ended(start(step, given, log, (at_step, 13, jump), (at_step, 17, kill))) == -signal.SIGKILL
        house.holds(step, given)
    row(step, f"the clock jumps by {hours} hours, then SIGKILL", 1)


def test_the_data_change_in_mid_run(house: House, tmp_path: Path, row: Row) -> None:
    """The step is killed after the change. Its command is refused until the images are the same again."""
    step, given = "train_supernet", house.given("train_supernet", "changed")
    kept, changed = house.data.data, make_tiny_data(tmp_path / "other", seed=1).data
    shutil.copytree(kept, tmp_path / "copy")
    given["--data"] = str(tmp_path / "copy")
    replace = partial(shutil.copytree, changed, tmp_path / "copy", dirs_exist_ok=True)
    kill = partial(signal_self, signal.SIGKILL)
    log = tmp_path / "log"
    with house.experiment("changed"):
        assert ended(start(step, given, log, (at_step, 12, replace), (at_step, 13, kill))) == -signal.SIGKILL
        assert ended(start(step, given, log)) == 2
        assert len(log.read_text().splitlines()) == 1 and str(tmp_path / "copy") in log.read_text()
        shutil.copytree(kept, tmp_path / "copy", dirs_exist_ok=True)
        house.holds(step, given)
    row(step, "the images change in mid-run", 1)


def test_two_runs_at_once_on_one_store(house: House, tmp_path: Path, row: Row) -> None:
    """Two seeds, and two steps of one seed."""
    pairs = [("train_supernet", 1), ("train_supernet", 2), ("search_subnet", 1)]
    expected = [house.expected(step, seed) for step, seed in pairs]
    given = [house.given(step, f"at-once-{number}", seed=seed) for number, (step, seed) in enumerate(pairs)]
    with house.experiment("at-once"):
        started = zip(pairs, given, strict=True)
        running = [start(step, each, tmp_path / f"log{n}") for n, ((step, _), each) in enumerate(started)]
        assert [ended(process) for process in running] == [0, 0, 0]
        assert [results(each) for each in given] == expected
        assert step_runs("train_supernet") == ["FINISHED"] * 2 and step_runs("search_subnet") == ["FINISHED"]
    row("three steps at once", "one work folder, one MLflow store", 1)


@pytest.mark.parametrize("number", range(4))
def test_two_registrations_at_once(number: int, house: House, tmp_path: Path, rng: random.Random, row: Row) -> None:
    """A better and a worse model, in a drawn order and distance: the better is the champion."""
    made = [house.models.better, house.models.worse]
    rng.shuffle(made)
    with house.own_store(f"two-{number}"):
        running = []
        for each in made:
            given = house.registration(f"two-{number}-{each.root.name}", each)
            running.append(start("register_model", given, tmp_path / each.root.name))
            time.sleep(rng.uniform(0, 2))
        assert [ended(process) for process in running] == [0, 0]
        versions, version, accuracy = champion()
        assert (versions, version, accuracy) == (["1", "2"], "2", 90.0)
        assert step_runs("register_model") == ["FINISHED"] * 2
    row("two registrations at once", "a better and a worse model", 1)
