"""Tests that start and stop processes hold where a shell has started them in the background."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from started import started

from runtime.common.config import ROOT

INHERITED = """
import signal, sys
sys.path.insert(0, "tests")
from started import restore_signals, started
restore_signals()
with started(["sleep", "60"]) as process:
    process.send_signal(int(sys.argv[1]))
    print(process.wait(10))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_a_process_of_a_test_takes_the_signals_that_this_one_ignores(number: signal.Signals) -> None:
    """As `nohup make test &`."""
    ignoring = f'trap \'\' {number.name.removeprefix("SIG")}; exec "$0" -c "$1" {number.value}'
    done = subprocess.run(
        ["sh", "-c", ignoring, sys.executable, INHERITED],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout == f"{-number}\n", done.stderr


def test_a_process_ends_with_its_test_whatever_happens() -> None:
    start = time.monotonic()
    with pytest.raises(ZeroDivisionError), started(["sleep", "60"]) as process:
        1 // 0  # noqa: B018
    assert process.returncode == -signal.SIGKILL and time.monotonic() - start < 10


def test_tests_start_no_process_that_may_outlive_them() -> None:
    waiting = "with subprocess." + "Popen("
    assert [
        file.name for file in Path(__file__).parent.glob("*.py") if waiting in file.read_text(encoding="utf-8")
    ] == []
