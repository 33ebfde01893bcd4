"""Addresses of sqlite files, and the lock files of stores."""

from pathlib import Path

import pytest

from autoformer.errors import AutoFormerError
from runtime.common import config
from runtime.tracking import store as store_module


@pytest.mark.parametrize("name", ["a?b", "a%20b"])
def test_a_checkout_whose_folder_mlflow_would_misread_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(config, "ROOT", Path("/home") / name)
    with pytest.raises(AutoFormerError, match="rename the folder") as error:
        store_module.tracking_uri()
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a?b", "a%20b", "a b#c", "ä"])
def test_a_file_of_any_name_has_an_address_that_sqlalchemy_reads_as_that_file(name: str) -> None:
    from sqlalchemy import make_url

    file = Path("/home") / name / "mlflow.db"
    assert make_url(store_module.sqlite_uri(file)).database == str(file)
    assert store_module.sqlite_file(store_module.sqlite_uri(file)) == file


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module.tempfile, "gettempdir", lambda: str(tmp_path))
    with store_module.locked("http://server"):
        (lock,) = tmp_path.iterdir()
    lock.unlink()
    lock.symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(AutoFormerError, match="a link, where a lock file belongs"),
        store_module.locked("http://server"),
    ):
        pass
    assert not (tmp_path / "elsewhere").exists()
