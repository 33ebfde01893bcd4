"""What is shown of all that KFP's local runner prints."""

from pathlib import Path

import pytest

from pipeline.kfp_output import KfpOutput

TASK = """\
12:00:00.000 - INFO - Executing task \x1b[96m'resolve-config'\x1b[0m
12:00:00.001 - INFO - Streamed logs:

    [KFP Executor 2026-01-01 12:00:00,000 INFO]: Got executor_input:
    {
        "inputs": {}
    }
      step: a line of its own
        one: 'indented'
    [KFP Executor 2026-01-01 12:00:01,000 INFO]: Wrote executor output file.
12:00:02.000 - INFO - Task \x1b[96m'resolve-config'\x1b[0m finished with status \x1b[92mSUCCESS\x1b[0m
12:00:02.001 - INFO - Task \x1b[96m'resolve-config'\x1b[0m outputs:
    config: '{"name": "demo"}'
    data_hash: '0123abcd'
    count: 3
    record: Artifact( name='record',
                      uri='/runs/record',
                      metadata={} )
--------------------------------------------------------------------------------
12:00:03.000 - INFO - Executing task \x1b[96m'prepare-data'\x1b[0m
    step: and the next
"""


def test_the_steps_own_lines_are_shown_and_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with KfpOutput(tmp_path / "log"):
        print(TASK, end="")
    shown = ["resolve-config", "    step: a line of its own", "      one: 'indented'", "prepare-data"]
    assert capsys.readouterr().out.splitlines() == [*shown, "  step: and the next"]
    assert (tmp_path / "log").read_text() == TASK
