"""CSV files as spreadsheets, Windows and people write them: the same rows, or a line number as an editor counts."""

import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from autoformer.bounds import BOUNDS
from autoformer.errors import AutoFormerError
from components.prepare_data.label_table import read_label_table
from runtime.common.config import ROOT
from runtime.common.tables import read_table

PLAIN = "path,label\nimg/a.png,cat\nimg/b.png,dog\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "img").mkdir()
    for name in ("a.png", "b.png", unicodedata.normalize("NFD", "ä.png")):
        (tmp_path / "img" / name).touch()
    return tmp_path


def rows(folder: Path, content: str | bytes) -> list[tuple[str, str, str]]:
    file = folder / "labels.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = read_label_table(file).rows
    return [(row.path.relative_to(folder.resolve()).as_posix(), row.label, row.split) for row in found]


@pytest.mark.parametrize(
    "content",
    [
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t"),
        PLAIN.replace(",", "|"),
        "sep=;\n" + PLAIN.replace(",", ";"),  # as Excel writes it
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        PLAIN.encode("utf-8-sig"),
        PLAIN.encode("utf-16"),
        b"\xfe\xff" + PLAIN.encode("utf-16-be"),
        PLAIN.replace(",", "\t").replace("\n", "\r\n").encode("utf-16"),  # Excel's "Unicode text"
        PLAIN.replace(",", ', "').replace("\n", '"\n'),
        '"path","label"\n"img/a.png","cat"\n"img/b.png","dog"',
        PLAIN.replace(",", " , ").replace("\n", "  \n"),
        PLAIN.replace(",", "\u00a0,\u00a0"),
        "\n\n" + PLAIN.replace("\n", "\n\n   \n"),
        PLAIN.replace("\n", ",,\n"),
        PLAIN.replace("/", "\\"),
        PLAIN.replace("img/", ".\\img\\"),
        PLAIN.replace("png", "PNG"),
        PLAIN.replace("img", "IMG"),
        PLAIN.replace(".png", ""),
        PLAIN.replace("path", "File Name").replace("label", "Class-Name"),
        PLAIN.replace("path", "image_id").replace("label", "Labels"),
        PLAIN.replace("path", ",path").replace("img", "0,img"),  # as pandas writes it
    ],
)
def test_one_table_however_it_is_written(content: str | bytes, folder: Path) -> None:
    assert rows(folder, content) == [("img/a.png", "cat", ""), ("img/b.png", "dog", "")]


def test_a_path_in_another_unicode_form_finds_its_file(folder: Path) -> None:
    found = rows(folder, f"path,label\nimg/{unicodedata.normalize('NFC', 'ä.png')},cat\n")
    assert (folder / found[0][0]).is_file()
    assert read_label_table(folder / "labels.csv").notes == ("1 file found under another spelling of its path",)


def test_a_path_that_means_two_files_is_left_as_written(folder: Path) -> None:
    (folder / "img" / "A.png").touch()
    assert rows(folder, "path,label\nimg/A.PNG,x\nimg/a.png,y\n") == [("img/A.PNG", "x", ""), ("img/a.png", "y", "")]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("path,label\n\n" + "img/a.png,cat\n" * 3 + "\n,,\n", "line 7: no path"),
        ('path,label\n"img/a.png","two\nlines"\r\n\r\nimg/b.png,\n', "line 5: no label"),
        ("path,label\nimg/a.png,cat, wild\n", "line 2: 3 cells, but the first line has 2; quote a cell with commas"),
        ("path;label\nimg/a.png\n", "line 2: no label"),
        ('path,label\nimg/a.png,"cat\nimg/b.png,dog\n', "line 2: not readable as CSV"),
        ("path,label\nC:\\photos\\a.png,cat\n", r"line 2: C:\\photos\\a.png lies outside the folder"),
        ("path,label\n..\\a.png,cat\n", r"line 2: ..\\a.png lies outside the folder"),
        ("path,label\r\rimg/a.png,\r", "line 3: no label"),
        ("path,label\nimg/a.png,cat\nimg/b.png,Tür\n".encode("cp1252"), "line 3: not readable as CSV in UTF-8"),
        (PLAIN.encode("utf-16-le"), "not readable as CSV in UTF-8"),  # without a mark
    ],
)
def test_a_fault_names_its_line_as_an_editor_counts(content: str | bytes, says: str, folder: Path) -> None:
    with pytest.raises(AutoFormerError) as error:
        rows(folder, content)
    assert says.replace("\\\\", "\\") in str(error.value), error.value


@pytest.mark.parametrize("column", ["set", "Subset", "partition", "split", "data set", "dataset", "phase"])
def test_a_column_of_splits_is_the_split_under_any_usual_name(column: str, folder: Path) -> None:
    found = rows(folder, f"path,label,{column}\nimg/a.png,cat,Train\nimg/b.png,dog,validation\n")
    assert found == [("img/a.png", "cat", "train"), ("img/b.png", "dog", "val")]


@pytest.mark.parametrize("column", ["set", "is_valid", "fold"])
def test_a_column_that_is_not_used_is_reported(column: str, folder: Path) -> None:
    rows(folder, f"path,label,{column}\nimg/a.png,cat,1\nimg/b.png,dog,0\n")
    assert read_label_table(folder / "labels.csv").notes == (f"columns of the CSV that are not used: {column}",)


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_a_csv_of_more_rows_than_memory_is_one_line(end: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = BOUNDS.model_copy(update={"csv_rows": 2})
    monkeypatch.setattr("components.prepare_data.label_table.BOUNDS", limits)
    monkeypatch.setattr("runtime.common.tables.BOUNDS", limits)
    assert len(rows(folder, PLAIN.replace("\n", end))) == len(read_table(folder / "labels.csv")) == 2
    for read in (read_label_table, read_table):
        (folder / "labels.csv").write_text(PLAIN + "img/b.png,dog", newline=end)
        with pytest.raises(AutoFormerError, match=r"labels\.csv: .*more than 2 rows"):
            read(folder / "labels.csv")


# In a process of its own: the threads of other tests' servers allocate, too. Reading reserves as much as a CSV may
# have, though it touches no more than this one has.
PEAK = """
import sys, tracemalloc
from pathlib import Path
from autoformer.bounds import BOUNDS
from components.prepare_data import label_table, sources
label_table.BOUNDS = BOUNDS.model_copy(update={"csv_bytes": 2**20})
tracemalloc.start()
images = sources._read_csv(Path(sys.argv[1])).images
print(len(images), tracemalloc.get_traced_memory()[1])
"""


def test_a_table_of_many_images_takes_less_than_1000_bytes_an_image(folder: Path) -> None:
    count = 20_000
    for number in range(count):
        (folder / f"{number}.png").touch()
    lines = (f"{number}.png,class number {number % 100}\n" for number in range(count))
    (folder / "many.csv").write_text("path,label\n" + "".join(lines), encoding="utf-8")
    command = [sys.executable, "-c", PEAK, str(folder / "many.csv")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    images, peak = map(int, done.stdout.split())
    assert images == count
    assert peak < 1000 * count
