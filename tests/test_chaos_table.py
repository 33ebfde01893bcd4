"""The table of `make chaos` comes whatever its tests do, and no test runs twice."""

import shutil
import subprocess
import sys
from pathlib import Path

SUITE = """
import os

def test_holds(row):
    row("a step", "a fault", 3)

def test_fails(row):
    row("another step", "a fault", 3)
    assert False

def test_ends_its_worker():
    with open("ended", "a") as file:
        file.write("once")
    os._exit(3)

def test_comes_after(row):
    row("a third step", "a fault", 1)
"""


def test_a_failure_and_a_dead_worker_leave_the_table(tmp_path: Path) -> None:
    (tmp_path / "chaos").mkdir()
    shutil.copyfile(Path(__file__).parent / "chaos" / "conftest.py", tmp_path / "chaos" / "conftest.py")
    (tmp_path / "chaos" / "suite.py").write_text(SUITE)
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadscope", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, "chaos/suite.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    began = lines.index("| Part | Fault | Times |") + 2
    assert done.returncode == 1 and "2 tests failed, SEED=" in done.stdout
    assert lines[began : began + 2] == ["| a step | a fault | 3 |", "| a third step | a fault | 1 |"]
    assert {line for line in lines if "FAILED |" in line} == {
        f"| chaos/suite.py::test_{name} | FAILED | 0 |" for name in ("fails", "ends_its_worker")
    }
    assert (tmp_path / "ended").read_text() == "once"
