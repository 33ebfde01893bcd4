"""Paths that users write in another Unicode form or case than the files have."""

import unicodedata
from pathlib import Path

import pytest

from autoformer.errors import AutoFormerError
from commands.own_images import propose_run
from runtime.common.spelling import as_spelt, hint

NFC, NFD = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))


def test_a_path_that_differs_in_unicode_form_alone_is_the_file(tmp_path: Path) -> None:
    (tmp_path / NFD / "a").mkdir(parents=True)
    assert as_spelt(tmp_path / NFC / "a") == tmp_path / NFD / "a"
    assert as_spelt(tmp_path / NFC / "A") == tmp_path / NFC / "A"
    assert as_spelt(Path("gone")) == Path("gone") and as_spelt(Path("/")) == Path("/")


def test_a_path_that_differs_in_case_or_blanks_is_a_question(tmp_path: Path) -> None:
    (tmp_path / "Photos" / "Cats").mkdir(parents=True)
    assert hint(tmp_path / "photos" / "cats ") == f"; did you mean {tmp_path / 'Photos' / 'Cats'}?"
    (tmp_path / "Photos" / "cATS").mkdir()
    assert hint(tmp_path / "photos" / "cats") == "" and hint(tmp_path / "gone") == ""


@pytest.mark.parametrize("preset", [None, "photos"])
def test_a_folder_of_images_is_found_or_asked_for_by_its_other_spellings(preset: str | None, tmp_path: Path) -> None:
    (tmp_path / NFD).mkdir()
    with pytest.raises(AutoFormerError, match="no class folders with images in it"):
        propose_run(tmp_path / NFC, preset, [], tmp_path / "packs")
    (tmp_path / "Photos").mkdir()
    with pytest.raises(AutoFormerError, match=r"no such folder or CSV file; did you mean .*/Photos\?"):
        propose_run(tmp_path / "photos", preset, [], tmp_path / "packs")
