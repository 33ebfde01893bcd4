"""The readers of weights, tars, packed data and tables: bounded in memory and time, one line per error."""

import copy
import gzip
import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from test_doors import line_of

from autoformer.bounds import BOUNDS
from autoformer.errors import AutoFormerError
from autoformer.images.split_files import read_split, split_table, write_split
from autoformer.images.split_images import read_archive
from autoformer.weights import read_safetensors, read_torch, read_weights
from commands.deliver import _copy
from components.prepare_data import cifar, webdataset
from components.prepare_data.delivered import make_rows
from components.prepare_data.tars import read_tar, unpack
from runtime.common.tables import read_table

CUT = [0, 1, 7, 8, 100, 1000, -100, -1]


@pytest.mark.parametrize("length", CUT)
def test_weights_that_are_cut_short_are_one_line_at_every_length(length: int, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1000)}, tmp_path / "a.safetensors")
    torch.save({"a": torch.ones(1000), "b": {"c": 1}}, tmp_path / "a.pt")
    for file, read in ((tmp_path / "a.safetensors", read_safetensors), (tmp_path / "a.pt", read_torch)):
        file.write_bytes(file.read_bytes()[:length])
        line_of(
            lambda read=read, file=file: read(file, "delete it"), file.name, "not a readable checkpoint", "delete it"
        )  # type: ignore[misc]


def test_weights_that_would_take_all_memory(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes((2**40).to_bytes(8, "little"))
    line_of(lambda: read_weights(tmp_path / "a.safetensors"), "a header of")
    torch.save({"a": torch.zeros(2**20)}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as plain,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as zipped,
    ):
        for name in plain.namelist():
            zipped.writestr(name, plain.read(name))
    line_of(lambda: read_weights(tmp_path / "b.pt"), "compressed")
    endless: dict[str, object] = {}
    endless["model"] = endless
    torch.save(endless, tmp_path / "c.pt")
    line_of(lambda: read_weights(tmp_path / "c.pt"), "holds no weights")


def rewritten(file: Path, pickled: bytes = b"", names: int = 1) -> Path:
    """A checkpoint with another pickle, or with `names` names for the bytes of its last storage."""
    torch.save({"a": torch.ones(2**16)}, file)
    with zipfile.ZipFile(file) as plain:
        members = {name: plain.read(name) for name in plain.namelist()}
    with zipfile.ZipFile(file, "w") as made:
        for name, content in members.items():
            made.writestr(name, pickled if pickled and name.endswith(".pkl") else content)
        for number in range(1, names):
            again = copy.copy(made.getinfo(next(name for name in members if name.endswith("data/0"))))
            again.filename = again.filename[:-1] + str(number)
            made.filelist.append(again)
    return file


def test_a_checkpoint_whose_parts_share_their_bytes_is_refused(tmp_path: Path) -> None:
    assert read_weights(rewritten(tmp_path / "a.pt"))["a"].sum() == 2**16
    line_of(lambda: read_weights(rewritten(tmp_path / "b.pt", names=100)), "its parts are larger than the file")


@pytest.mark.parametrize("newer", [True, False])
def test_an_endless_pickle_in_a_checkpoint_is_refused(
    newer: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoformer.weights.BOUNDS", BOUNDS.model_copy(update={"pickle_bytes": 10_000}))
    if newer:
        rewritten(tmp_path / "a.pt", pickled=b"\x80\x02(" + b"K\1" * 10_000 + b"t.")
    else:
        torch.save({"a": [1] * 20_000}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    line_of(lambda: read_weights(tmp_path / "a.pt"), "values beside tensors")


@pytest.mark.parametrize("size", [2**20, 2**62])
def test_a_tensor_that_stands_for_more_numbers_than_it_holds_is_refused(size: int, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1).expand(size)}, tmp_path / "a.pt")
    line_of(lambda: read_weights(tmp_path / "a.pt"), "'a' has more numbers than the file holds of it")


@pytest.mark.parametrize("name", [1, (1, 2)])
def test_a_weight_whose_name_is_no_text(name: object, tmp_path: Path) -> None:
    torch.save({name: torch.ones(3)}, tmp_path / "a.pt")
    line_of(lambda: read_weights(tmp_path / "a.pt"), f"{name!r} is no name")


def tar_of(file: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(file, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def png() -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


LABELS = {
    "a class number of 10^8": ("cls", b"100000000"),
    "a number of 5,000 digits": ("cls", b"9" * 5000),
    "a digit that is no number": ("cls", "²".encode()),
    "half a letter": ("json", b'{"label": "\\ud800"}'),
    "a large label": ("cls", b"x" * (BOUNDS.label_bytes + 1)),
    "a deep label": ("json", b"[" * 60_000),
    "a label of 400 digits": ("json", b'{"label": ' + b"9" * 400 + b"}"),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_that_would_take_all_memory_or_no_number(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOFORMER_WORK", str(tmp_path / "work"))
    extension, label = LABELS[kind]
    (tmp_path / "data").mkdir()
    tar_of(tmp_path / "data" / "a.tar", ("0.png", png()), (f"0.{extension}", label), ("1.png", png()), ("1.cls", b"1"))
    line_of(lambda: webdataset.read(tmp_path / "data"), "data")


def test_class_names_that_are_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOFORMER_WORK", str(tmp_path / "work"))
    (tmp_path / "data").mkdir()
    tar_of(tmp_path / "data" / "a.tar", ("0.png", png()), ("0.cls", b"0"), ("1.png", png()), ("1.cls", b"1"))
    (tmp_path / "data" / "classes.txt").write_bytes(b"\xff\xfe")
    line_of(lambda: webdataset.read(tmp_path / "data"), "classes.txt")


def gnu_sparse(size: int) -> bytes:
    info = tarfile.TarInfo("0.png")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410], header[482], header[483:495] = b"00000000000\0" + b"00000001000\0", 0, f"{size:011o}\0".encode()
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header) + bytes(512)


def pax(**headers: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("0.png")
        info.pax_headers = {key.replace("__", "."): value for key, value in headers.items()}
        tar.addfile(info)
    return out.getvalue()


TARS = {
    "GNU sparse": gnu_sparse(8 * 2**30 - 1) + bytes(1024),
    "sparse by PAX": pax(GNU__sparse__map="x,y", GNU__sparse__size="10"),
    "sparse by PAX, of 8 TB": pax(GNU__sparse__size=str(8 * 2**40), GNU__sparse__map="0,1"),
    "a size that is no number": pax(size="x"),
    "a negative size": pax(size="-5"),
    "a size beyond the end": pax(size=str(3 * 2**30)),
    "a time that is none": pax(mtime="x"),
}


@pytest.mark.parametrize("kind", TARS)
def test_a_tar_with_sparse_or_damaged_headers_is_refused_not_skipped(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(TARS[kind])
    try:
        found, _ = read_tar(tmp_path / "a.tar")
    except AutoFormerError as error:
        assert "a.tar" in str(error) and "\n" not in str(error)
    else:  # Python's own reader ignores some bad numbers; nothing may be lost
        assert kind in ("a time that is none", "a size that is no number")
        assert [member.name for member in found] == ["0.png"]


def test_an_image_of_3_gb_in_a_tar(tmp_path: Path) -> None:
    big = webdataset.Member("0.png", 512, 3 * 2**30, "0", b"")
    line_of(lambda: webdataset._samples([big], tmp_path / "a.tar"), "a.tar", "0.png has 3221225472 bytes")


def test_a_compressed_archive_that_expands_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BOUNDS.__class__, "__getattribute__", smaller(archive_bytes=2**20, expansion=1))
    with gzip.open(tmp_path / "a.gz", "wb") as file:
        file.write(bytes(2**21))
    line_of(lambda: read_archive(tmp_path / "a.gz"), "a.gz: holds more than 1 MB")
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        info = tarfile.TarInfo("list.txt")
        info.size = 2**21
        tar.addfile(info, io.BytesIO(bytes(2**21)))
    with pytest.raises(tarfile.ReadError, match="more than 1 MB"):
        unpack(tmp_path / "a.tgz", tmp_path)
    assert not (tmp_path / "list.txt").exists()
    with gzip.open(tmp_path / "b.gz", "wb") as file:
        for _ in range(65):
            file.write(bytes(2**20))
    out = io.BytesIO()
    line_of(lambda: _copy(tmp_path / "b.gz", out, True, lambda size: None), "b.gz: holds more than")


def smaller(**values: int) -> Callable[[object, str], object]:
    return lambda self, name: values[name] if name in values else object.__getattribute__(self, name)


def test_a_pickle_of_cifar_that_asks_for_all_memory(tmp_path: Path) -> None:
    harmful = b"\x80\x02]r\xff\xff\xff\x7f."  # LONG_BINPUT into place 2^31 - 1 of Python's list
    assert "LONG_BINPUT" in {operation.name for operation, *_ in __import__("pickletools").genops(harmful)}
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        info = tarfile.TarInfo("a")
        info.size = len(harmful)
        tar.addfile(info, io.BytesIO(harmful))
    (tmp_path / "cifar.tar.gz").write_bytes(gzip.compress(content.getvalue()))
    line_of(lambda: cifar._Archive(tmp_path / "cifar.tar.gz").unpickle("a"), "cifar.tar.gz: a is not readable")
    assert pickle.loads(pickle.dumps([1, 2])) == [1, 2]


def a_split(rows: int) -> object:
    return make_rows("a.tar", list(range(rows)), 1, 0, [f"{n:064x}" for n in range(rows)])


def test_a_split_file_of_another_kind_or_size(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    write_split(file, a_split(1000))  # type: ignore[arg-type]
    assert len(read_split(file).labels) == 1000
    whole = file.read_bytes()
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        line_of(lambda: read_split(file), "a.parquet")
    table = split_table(a_split(1000))  # type: ignore[arg-type]
    for column, values in {
        "label": ["x"] * 1000,
        "size": [2**40] * 1000,
        "checksum": ["x"] * 1000,
        "offset": [None] * 1000,
    }.items():
        place = table.schema.get_field_index(column)
        pq.write_table(table.set_column(place, column, pa.array(values)), file, use_dictionary=False)
        line_of(lambda: read_split(file), "a.parquet")
    expanding = table.set_column(4, "checksum", pa.array(["x" * 10**4] * 1000))
    pq.write_table(expanding, file, use_dictionary=True)
    line_of(lambda: read_split(file), "a.parquet", "stand for each other")


def test_a_table_of_more_columns_than_any(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",".join("c" for _ in range(1000)) + "\n1\n2\n")
    line_of(lambda: read_table(tmp_path / "a.csv"), "a.csv", "columns")


def test_a_tar_of_cifar_with_a_header_of_any_size_takes_no_memory(tmp_path: Path) -> None:
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, 8 * 2**20
    content = header.tobuf() + b"a" * header.size
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(gzip.compress(content, 1))
    line_of(lambda: cifar.read(tmp_path), "cifar-10-python.tar.gz", "a header of 8388608 bytes")
