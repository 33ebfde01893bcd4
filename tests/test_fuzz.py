"""A few seconds of `make fuzz`: damaged files at every door end in one line, quickly, in bounded memory."""

from pathlib import Path

import pytest
from fuzz import TOKENS, damaged, doors, fuzz, main


def test_damaged_input_at_every_door_is_one_line(tmp_path: Path) -> None:
    assert fuzz(200, 17, tmp_path) == []


def test_undamaged_input_is_read_or_refused_and_the_fuzz_sees_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The faults that it looks for: a traceback, a process, a file outside, memory."""
    import fuzz as module

    def starts(file: Path) -> None:
        __import__("subprocess").run(["true"], check=True)

    def writes(file: Path) -> None:
        (tmp_path.parent / "outside").write_text("x")

    readers = {"raises": lambda file: 1 // 0, "starts": starts, "writes": writes,
               "grows": lambda file: len(b"x" * (1100 * 2**20))}  # fmt: skip
    made = [module.Door(name, [b"x"], read) for name, read in readers.items()]
    monkeypatch.setattr(module, "doors", lambda: made)
    found = fuzz(4, 0, tmp_path)
    parts = ("traceback: ZeroDivisionError", "started a process", "wrote ", "took 1")
    assert len(found) == 4 and all(part in line for part, line in zip(parts, found, strict=True)), found


def test_the_same_seed_damages_alike() -> None:
    import random

    assert damaged(b"x" * 99, b"y", random.Random(3)) == damaged(b"x" * 99, b"y", random.Random(3))
    assert len(doors()) >= 25 and len(TOKENS) >= 25


@pytest.mark.parametrize(
    ("words", "what"), [(("--inputs", "0"), "'0': expected a number above 0"), (("--seed", "x"), "'x'")]
)
def test_an_impossible_number_of_inputs_is_one_line(
    words: tuple[str, str], what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["fuzz.py", *words])
    assert main() == 2
    assert what in capsys.readouterr().err
