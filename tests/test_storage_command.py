"""`python -m runtime.storage` against moto's real server: how data get to a cluster's S3, and back."""

from pathlib import Path

import pytest
from run_steps import contents
from s3_server import S3Server

from runtime.storage.__main__ import main


def test_a_folder_goes_there_and_comes_back(s3: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "one.gz").write_bytes(b"1" * 1000)
    (tmp_path / "data" / "deep" / "two.gz").write_bytes(b"2" * 500)
    uri = s3.uri("command/data")
    for _ in range(2):  # the second finds everything there
        assert main([str(tmp_path / "data"), uri]) == 0
        assert capsys.readouterr().out == f"{uri}: 2 files, 0.0015 MB\n"
    assert main([uri, str(tmp_path / "back")]) == 0
    assert contents(tmp_path / "back") == contents(tmp_path / "data")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["a", "b"], "one of the two is a folder, the other s3://bucket/folder"),
        (["s3://a/b", "s3://c/d"], "one of the two is a folder"),
        (["gone", "s3://autoformer-tests/gone"], "gone: no such file or folder; it is made by you, or `make data`"),
        (["s3://autoformer-tests/gone", "here"], "there is no such folder, or not all of it"),
        (["a"], "the following arguments are required: TO"),
    ],
)
def test_bad_input(arguments: list[str], says: str, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                   capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    line = capsys.readouterr().err
    assert says in line and line.count("\n") == 1 and not list(tmp_path.iterdir())
