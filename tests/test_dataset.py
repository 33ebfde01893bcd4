"""Reading images by split, and what is said where that is not possible."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import TinyData, read_idx

from autoformer.errors import AutoFormerError
from autoformer.files import hash_file, write_json
from autoformer.images.card import DatasetCard, read_card
from autoformer.images.split_files import Split, hash_split, image_checksums, read_split, write_split
from autoformer.images.split_images import load_images
from autoformer.images.statistics import pixel_statistics


def test_images_equal_an_independent_reading(tiny_data: TinyData) -> None:
    images, labels = read_idx(tiny_data.data, "t10k")
    loaded = load_images(tiny_data.test, tiny_data.data, tiny_data.card)
    assert loaded.pixels.dtype == np.uint8 and loaded.labels.dtype == np.int64
    assert loaded.pixels.shape == (100, 1, 28, 28)
    np.testing.assert_array_equal(loaded.pixels[:, 0], images)
    np.testing.assert_array_equal(loaded.labels, labels)
    assert loaded.checksums == [hashlib.sha256(image.tobytes()).hexdigest() for image in images]


def test_every_row_has_the_pixels_of_its_checksum(tiny_data: TinyData) -> None:
    """Rows in any order, as in the search split."""
    for split in (tiny_data.train, tiny_data.search):
        loaded = load_images(split, tiny_data.data, tiny_data.card)
        assert loaded.checksums == image_checksums(loaded.pixels).astype(str).tolist()
        assert hash_split(loaded.checksums, loaded.labels) == tiny_data.card.split_hashes[split.stem]


def test_limit_takes_the_first_rows(tiny_data: TinyData) -> None:
    everything = load_images(tiny_data.search, tiny_data.data, tiny_data.card)
    first = load_images(tiny_data.search, tiny_data.data, tiny_data.card, limit=30)
    np.testing.assert_array_equal(first.pixels, everything.pixels[:30])
    np.testing.assert_array_equal(first.labels, everything.labels[:30])
    assert first.checksums == everything.checksums[:30]
    for limit in (0, 101):
        with pytest.raises(AutoFormerError, match=f"{limit} images wanted, but it holds 100"):
            load_images(tiny_data.search, tiny_data.data, tiny_data.card, limit=limit)


def test_colour_images_from_two_archives_that_are_not_compressed(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 4, 4), dtype=np.uint8)
    (tmp_path / "a.bin").write_bytes(b"head" + pixels[:2].tobytes())
    (tmp_path / "b.bin").write_bytes(pixels[2:].tobytes())
    rows = Split(
        np.array(["b.bin", "a.bin", "b.bin", "a.bin", "b.bin", "b.bin"]),
        np.array([144, 4, 0, 52, 96, 48]),
        np.full(6, 48, np.int32),
        np.array([0, 1, 1, 0, 1, 0], np.int32),
        image_checksums(pixels[[5, 0, 2, 1, 4, 3]]),
    )
    write_split(tmp_path / "s.parquet", rows)
    card = _card(tmp_path, ["a.bin", "b.bin"], rows)
    loaded = load_images(tmp_path / "s.parquet", tmp_path, card)
    np.testing.assert_array_equal(loaded.pixels, pixels[[5, 0, 2, 1, 4, 3]])
    assert loaded.labels.tolist() == [0, 1, 1, 0, 1, 0]


def _card(data: Path, archives: list[str], rows: Split) -> DatasetCard:
    return DatasetCard(
        name="colours",
        classes=("warm", "cold"),
        image_size=4,
        channels=3,
        encoding="raw",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        counts={"test": len(rows.labels)},
        licence="none",
        source="here",
        archives={name: hash_file(data / name) for name in archives},
        split_hashes={"test": hash_split(rows.checksums, rows.labels)},
    )


def test_split_file_has_the_same_bytes_twice_and_keeps_its_rows(tiny_data: TinyData, tmp_path: Path) -> None:
    rows = read_split(tiny_data.search)
    write_split(tmp_path / "again.parquet", rows)
    assert (tmp_path / "again.parquet").read_bytes() == tiny_data.search.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again.parquet"]
    schema = pq.read_schema(tiny_data.search)
    assert schema.names == ["archive", "offset", "size", "label", "checksum"]
    assert schema.types[0] == pa.dictionary(pa.int32(), pa.string())
    assert schema.types[1:] == [pa.int64(), pa.int32(), pa.int32(), pa.string()]


def test_hash_split_is_of_the_ordered_rows() -> None:
    assert hash_split(["ab", "cd"], [3, 10]) == hashlib.sha256(b"ab,3\ncd,10\n").hexdigest()
    assert hash_split(["cd", "ab"], [10, 3]) != hash_split(["ab", "cd"], [3, 10])


def test_statistics_equal_numpys() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (50, 3, 7, 7), dtype=np.uint8)
    pixels[:, 1] //= 3
    mean, std = pixel_statistics(pixels)
    np.testing.assert_allclose(mean, (pixels / 255).mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, (pixels / 255).std(axis=(0, 2, 3)), rtol=1e-12)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("offsets", -1, "at offset -1 lies outside t10k-images-idx3-ubyte.gz"),
        ("offsets", 16 + 784 * 100 - 783, "lies outside t10k-images-idx3-ubyte.gz .78,416 bytes."),
        ("offsets", 2**62, "lies outside"),
        ("sizes", 783, "another size than 784 bytes"),
        ("archives", "other.gz", "names the archive 'other.gz', which the card does not"),
        ("labels", 3, "not a split of the card of Fashion-MNIST"),
    ],
)
def test_a_wrong_row_is_one_clear_line(
    tiny_data: TinyData, tmp_path: Path, column: str, value: object, message: str
) -> None:
    rows = read_split(tiny_data.test)
    changed = getattr(rows, column).copy()
    row = int(np.flatnonzero(rows.labels != 3)[0])
    changed[row] = value
    write_split(tmp_path / "s.parquet", rows._replace(**{column: changed}))
    with pytest.raises(AutoFormerError, match=message) as error:
        load_images(tmp_path / "s.parquet", tiny_data.data, tiny_data.card)
    assert "\n" not in str(error.value) and "run prepare_data again" in str(error.value)


def test_a_label_outside_the_classes(tiny_data: TinyData, tmp_path: Path) -> None:
    rows = read_split(tiny_data.test)
    rows = rows._replace(labels=rows.labels + 1)
    write_split(tmp_path / "s.parquet", rows)
    card = tiny_data.card.model_copy(update={"split_hashes": {"test": hash_split(rows.checksums, rows.labels)}})
    with pytest.raises(AutoFormerError, match="a label lies outside the 10 classes"):
        load_images(tmp_path / "s.parquet", tiny_data.data, card)


def test_a_missing_or_damaged_split(tiny_data: TinyData, tmp_path: Path) -> None:
    split = tmp_path / "s.parquet"
    with pytest.raises(AutoFormerError, match="no such split file; it is made by prepare_data"):
        load_images(split, tiny_data.data, tiny_data.card)
    whole = tiny_data.test.read_bytes()
    table = pq.read_table(tiny_data.test)
    nulls = table.set_column(1, "offset", pa.nulls(table.num_rows, pa.int64()))
    for damage in (whole[:-100], whole[:2000] + bytes(500) + whole[2500:], b"", table.drop_columns(["size"]), nulls):
        if isinstance(damage, bytes):
            split.write_bytes(damage)
        else:
            pq.write_table(damage, split)
        with pytest.raises(AutoFormerError, match="run prepare_data again") as error:
            load_images(split, tiny_data.data, tiny_data.card)
        assert "\n" not in str(error.value) and str(split) in str(error.value)


def test_a_missing_changed_or_truncated_archive(tiny_data: TinyData, tmp_path: Path) -> None:
    name = "t10k-images-idx3-ubyte.gz"
    with pytest.raises(AutoFormerError, match=f"{name}: no such archive; `make data` fetches it"):
        load_images(tiny_data.test, tmp_path, tiny_data.card)
    whole = (tiny_data.data / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:-1] + b"?")
    with pytest.raises(AutoFormerError, match=f"{name}: sha256 is .* not {tiny_data.card.archives[name][:12]}"):
        load_images(tiny_data.test, tmp_path, tiny_data.card)
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    card = tiny_data.card.model_copy(update={"archives": {name: hash_file(tmp_path / name)}})
    with pytest.raises(AutoFormerError, match=f"{name}: not readable as gzip"):
        load_images(tiny_data.test, tmp_path, card)


def test_card_round_trips_and_names_an_unknown_key(tiny_data: TinyData, tmp_path: Path) -> None:
    assert read_card(tiny_data.card_path) == tiny_data.card
    write_json(tmp_path / "card.json", tiny_data.card.model_dump(mode="json") | {"licens": "MIT"})
    with pytest.raises(AutoFormerError, match=r"card\.json: unknown key 'licens'; did you mean 'licence'"):
        read_card(tmp_path / "card.json")


def test_neither_the_library_nor_the_step_imports_torch() -> None:
    check = (
        "import sys, autoformer.images.split_images, components.prepare_data.step; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", check], check=True)
