"""Output that a terminal cannot encode, that commands it, or that nobody reads: the command ends as ever."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from started import started
from tracking_fixtures import save_random_subnet

from commands import predict
from pipeline import local
from runtime.common.config import ROOT

NAME = "Größe … 数据.png"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("utf-8", NAME), ("latin-1", "Größe ? ??.png"), ("ascii", "Gr??e ? ??.png"), ("cp1252", "Größe … ??.png")],
)
def test_a_command_prints_names_that_the_terminal_cannot_encode(
    encoding: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(np.zeros((30, 30), dtype=np.uint8)).save(tmp_path / NAME)
    folder = save_random_subnet(tmp_path / "model", 0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert predict.main(["--model", str(folder), NAME]) == 0
    assert sys.stdout.buffer.getvalue().startswith(f"{shown}: ".encode(encoding))


def test_a_file_name_that_is_no_utf_8_is_printed_too(tmp_path: Path) -> None:
    code = "from runtime.common.console import Parser; Parser(); import sys; print(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, b"caf\xe9.png"],
        cwd=ROOT,
        env=os.environ | {"PYTHONUTF8": "1"},
        capture_output=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"caf?.png\n", b"")


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-16"])
def test_a_step_under_kfp_prints_as_its_runner_reads(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kfp.local decodes the output of a step by its own locale, and fails where that does not fit."""
    monkeypatch.setattr(os, "environ", os.environ | {"PYTHONIOENCODING": encoding, "AUTOFORMER_TTY": ""})
    local._prepare_environment("run", tmp_path / "failure.json")
    code = f"from runtime.common.console import Parser; Parser(); print({NAME!r})"
    command = [sys.executable, "-c", code]
    with started(command, cwd=ROOT, env=dict(os.environ), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.read() == f"{NAME}\n"


BEHIND_A_CLOSED_PIPE = """
import sys
from runtime.common.console import Parser, run_command
def work(_):
    print("x" * {size}{flush})
    {then}
raise SystemExit(run_command("it", Parser(), work, []))
"""


@pytest.mark.parametrize("size", [1, 100_000])
@pytest.mark.parametrize(
    ("flush", "then", "code"),
    [
        (", flush=True", "", 141),
        ("", "", 141),  # written as the command ends
        (", file=sys.stderr", "", 0),
        (", file=sys.stderr", "raise BrokenPipeError(32, 'of a socket')", 141),
    ],
)
def test_a_command_whose_output_nobody_reads_any_more_ends_without_a_traceback(
    size: int, flush: str, then: str, code: int
) -> None:
    program = BEHIND_A_CLOSED_PIPE.format(size=size, flush=flush, then=then)
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, stdout=theirs, stderr=subprocess.PIPE, check=False, text=True
    )
    os.close(theirs)
    assert done.returncode == code and "Traceback" not in done.stderr


def test_a_run_goes_on_where_nobody_reads_what_its_steps_print(tmp_path: Path) -> None:
    code = "from pathlib import Path; from pipeline.kfp_output import KfpOutput\n"
    code += f"with KfpOutput(Path({str(tmp_path / 'log')!r})):\n"
    code += "    for number in range(3): print(f'    step: {number}')"
    ours, theirs = os.pipe()
    os.close(ours)
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=theirs, check=True)
    os.close(theirs)
    assert (tmp_path / "log").read_text().count("step: ") == 3


@pytest.mark.parametrize("name", ["two\nlines.png", "red \x1b[31m.png", "bell\a.png", "caf\udce9.png"])
def test_what_would_command_the_terminal_is_shown_as_an_escape(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert predict.main([name]) == 2
    error = capsys.readouterr().err
    assert error.endswith(": no such image\n") and error[:-1].isprintable()
    Image.fromarray(np.zeros((30, 30), dtype=np.uint8)).save(name, "PNG")
    assert predict.main(["--model", str(save_random_subnet(tmp_path / "model", 0)), name]) == 0
    line = capsys.readouterr().out
    assert line[:-1].isprintable() and line.count("\n") == 1
