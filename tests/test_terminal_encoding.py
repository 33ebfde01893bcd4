"""Output that a terminal cannot encode: the command ends as ever, and shows `?` for the letter."""

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


def test_a_command_prints_no_escapes_of_file_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.zeros((30, 30), dtype=np.uint8)).save(tmp_path / "a\x1b[31m\rb.png")
    folder = save_random_subnet(tmp_path / "model", 0)
    monkeypatch.chdir(tmp_path)
    assert predict.main(["--model", str(folder), "a\x1b[31m\rb.png"]) == 0
    assert capsys.readouterr().out.startswith("a\\x1b[31m\\rb.png: ")
