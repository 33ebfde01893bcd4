"""Random access into archives: few open files, shared by threads, processes and pickles; other readers."""

import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoformer.errors import AutoFormerError
from autoformer.images import archives
from autoformer.images.archives import EncodedImages, FileReader
from autoformer.images.split_files import Split

COUNT = 40


def grey(value: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (3, 2), value).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def rows(tmp_path: Path) -> Split:
    """A tree of loose images: as many archives as images, one byte before each."""
    sizes = []
    for value in range(COUNT):
        (tmp_path / f"é{value}.bin").write_bytes(b"x" + grey(value))
        sizes.append(len(grey(value)))
    names = np.array([f"é{value}.bin" for value in range(COUNT)])
    return Split(names, np.ones(COUNT, np.int64), np.array(sizes, np.int32), np.zeros(COUNT, np.int32), names)


def values(images: EncodedImages) -> list[int]:
    return [images.image(index).getpixel((0, 0)) for index in range(len(images))]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_few_files_are_open_at_once(tmp_path: Path, rows: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "OPEN_FILES", 8)
    before = open_files()
    images = EncodedImages(tmp_path, rows, 1, reader=FileReader(tmp_path))
    assert values(images) == list(range(COUNT))
    assert open_files() == before + 8
    del images
    assert open_files() == before


def test_threads_read_correctly_while_files_are_closed(
    tmp_path: Path, rows: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "OPEN_FILES", 2)
    images = EncodedImages(tmp_path, rows, 1, reader=FileReader(tmp_path))
    wanted = np.random.default_rng(0).integers(0, COUNT, 1000).tolist()
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda index: images.image(index).getpixel((0, 0)), wanted)
        assert list(found) == wanted


def test_a_forked_process_and_a_pickle_read_the_same(tmp_path: Path, rows: Split) -> None:
    images = EncodedImages(tmp_path, rows, 1)
    assert values(images) == values(pickle.loads(pickle.dumps(images))) == list(range(COUNT))
    with get_context("fork").Pool(2) as pool:
        assert pool.map(values, [images, images]) == [list(range(COUNT))] * 2


def test_a_million_images_pickle_small(tmp_path: Path) -> None:
    """Per image 4 bytes of archive, 8 of offset, 4 of size; no object per image."""
    count = 100_000
    names = np.full(count, "train.tar")
    rows = Split(names, np.arange(count), np.ones(count, np.int32), np.zeros(count, np.int32), names)
    assert len(pickle.dumps(EncodedImages(tmp_path, rows, 3))) < 16 * count + 2000


class Elsewhere:
    """A reader of another store: any picklable function."""

    def __call__(self, archive: str, offset: int, size: int) -> bytes:
        return grey(int(archive[1:-4]))[offset - 1 : offset - 1 + size]


def test_bytes_come_from_another_reader(tmp_path: Path, rows: Split) -> None:
    images = EncodedImages(tmp_path / "no such folder", rows, 1, reader=Elsewhere())
    assert values(pickle.loads(pickle.dumps(images))) == list(range(COUNT))


def test_a_missing_archive_or_range_is_one_line(tmp_path: Path, rows: Split) -> None:
    (tmp_path / "é3.bin").write_bytes(b"short")
    (tmp_path / "é4.bin").unlink()
    images = EncodedImages(tmp_path, rows, 1)
    with pytest.raises(AutoFormerError, match=r"^é3.bin: no \d+ bytes at offset 1; .* run prepare_data again$"):
        images.read(3)
    with pytest.raises(AutoFormerError, match=r"é4.bin: no such archive; `make data` fetches it"):
        images.read(4)
