"""ImageNet-1k (ILSVRC 2012) straight from its three official archives, which stay where they are.

`ILSVRC2012_img_train.tar` is a tar of a tar for each class, `n01440764.tar`, which holds `n01440764_10026.JPEG` and so
on; `ILSVRC2012_img_val.tar` holds `ILSVRC2012_val_00000001.JPEG` and so on; the devkit names the classes (meta.mat) and
has the labels of the val images. Those are numbers of its own; the order of the classes is that of their sorted wnids,
as everywhere else. The devkit is read as torchvision.datasets.imagenet does (BSD-3), from where the md5 sums are too.

The data folder holds `source.yaml`, which says where the archives are and what they are. Each is read once, from
beginning to end; its index is kept in the work folder, so that no second run reads it again, unless it has changed.
"""

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from autoformer.errors import AutoFormerError
from autoformer.files import FileState, hash_value, replacing
from autoformer.images.source import SOURCE, SourceArchive, read_source
from autoformer.images.split_files import CHECKSUM, SPLIT_SCHEMA, Split, read_split, split_table
from components.prepare_data.delivered import Delivered
from components.prepare_data.streamed import HashedStream, Member, members
from runtime.common.console import Progress
from runtime.common.workspace import known_hashes, work_root
from runtime.storage.data import ArchiveFile, ArchiveFolder, find_archives, size_of, state_of

NAME = "imagenet-1k"
TITLE = "ImageNet-1k"
LICENCE = "for research and education that are not commercial, by the terms of https://www.image-net.org/download"
TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"

_FORMAT = 1  # of a kept index
_AT_A_TIME = 16384  # rows that are Python objects at once
_DAMAGED = (tarfile.TarError, KeyError, IndexError, TypeError, ValueError, OSError, EOFError, zlib.error)


class Published(NamedTuple):
    """What the archives must be and hold."""

    archives: Mapping[str, SourceArchive]
    train_images: int
    val_images: int
    classes: int


PUBLISHED = Published(
    archives={
        TRAIN: SourceArchive(md5="1d675b47d978889d74fa0da5fadfb00e", bytes=147_897_477_120),
        VAL: SourceArchive(md5="29b22e2961454d5413ddabcf34fc5622", bytes=6_744_924_160),
        DEVKIT: SourceArchive(md5="fa75699e90414af021442c21a62c3abf"),
    },
    train_images=1_281_167,
    val_images=50_000,
    classes=1000,
)


def is_mine(data: Path) -> bool:
    return TRAIN in _stated(data, PUBLISHED)


def _stated(data: Path, published: Published) -> Mapping[str, SourceArchive]:
    """What the archives are by `source.yaml`; where that says nothing of them they are to be the published ones."""
    if (data / SOURCE).is_file() and (stated := read_source(data).archives):
        return stated
    return published.archives if (find_archives(data) / TRAIN).is_file() else {}


def read(data: Path, published: Published = PUBLISHED, splits: Collection[str] = ("train", "val")) -> Delivered:
    """Every image of the archives that `source.yaml` names.

    Args:
        published: what they must be; tests have small ones.
        splits: which are wanted; the archive of the others is not read, and need not be there.

    Raises:
        AutoFormerError: one line, where an archive is missing, another one or damaged, or holds other images.
    """
    folder, stated = find_archives(data), _stated(data, published)
    archive_of = {split: name for split, name in (("train", TRAIN), ("val", VAL)) if split in splits}
    needed = {name: published.archives[name] for name in (*archive_of.values(), DEVKIT)}
    check_sizes(folder, stated, published._replace(archives=needed))
    devkit = _read_devkit(folder / DEVKIT, stated[DEVKIT])
    if len(devkit.words) != published.classes:
        raise AutoFormerError(f"{folder / DEVKIT}: {len(devkit.words)} classes, not {published.classes}")
    rows: dict[str, Split] = {}
    sha256 = {DEVKIT: devkit.sha256}
    for split, rows_of in (("val", _val_rows), ("train", _train_rows)):  # the small archive first: its faults show soon
        if split in archive_of:
            name = archive_of[split]
            index = _index(folder / name, stated[name])
            rows[split], sha256[name] = rows_of(index, devkit, folder / name, published), index.sha256
    parts = [rows[split] for split in archive_of]
    return Delivered(
        title=TITLE,
        classes=devkit.classes,
        rows=Split(*(np.concatenate(columns) for columns in zip(*parts, strict=True))),
        splits=np.repeat(list(archive_of), [len(part.labels) for part in parts]),
        encoding="image",
        image_size=None,
        channels=3,
        archives={name: sha256[name] for name in needed},
        licence=LICENCE,
        source=", ".join(f"{name} (md5 {archive.md5})" for name, archive in stated.items()),
        upright=False,  # as for the published accuracies; a few images have a note of their camera
    )


def glance(data: Path, images: int = 2048) -> Delivered:
    """The first training images, unverified and all of the first class: enough to see how long one takes."""
    folder = find_archives(data)
    check_sizes(folder, _stated(data, PUBLISHED), PUBLISHED)
    with HashedStream(folder / TRAIN) as stream:
        found = [member for _, member in islice(_walk(stream, size_of(folder / TRAIN)), images)]
    count = len(found)
    return Delivered(
        title=TITLE,
        classes=tuple(map(str, range(PUBLISHED.classes))),
        rows=Split(
            archives=_repeated(TRAIN, count),
            offsets=np.array([member.offset for member in found], np.int64),
            sizes=np.array([member.size for member in found], np.int32),
            labels=np.zeros(count, np.int32),
            checksums=np.zeros(count, CHECKSUM),
        ),
        splits=np.repeat(["train"], count),
        encoding="image",
        image_size=None,
        channels=3,
        archives={},
        licence=LICENCE,
        source="",
        upright=False,
    )


def check_sizes(folder: ArchiveFolder, archives: Mapping[str, SourceArchive], published: Published) -> None:
    """Raise `AutoFormerError` unless all archives are there, by name and size: what can be seen without reading."""
    for name, expected in published.archives.items():
        path, stated = folder / name, archives.get(name)
        if stated is None or stated.md5 != expected.md5:
            raise AutoFormerError(
                f"{SOURCE} of {NAME}: names another {name} than the official one, of md5 {expected.md5}; "
                f"`make data DATASET={NAME} ARCHIVES=…` writes it again"
            )
        if not path.is_file():
            raise AutoFormerError(
                f"{path}: no such archive; `make data DATASET={NAME} ARCHIVES=…` names the folder that holds it"
            )
        wanted, found = stated.bytes or expected.bytes, size_of(path)
        if wanted is not None and found != wanted:
            raise AutoFormerError(f"{path}: {found} bytes, not {wanted} as published; copy or download it again")


class _Devkit(NamedTuple):
    words: dict[str, str]  # wnid -> its first name
    wnid_of: dict[int, str]  # the devkit's own number -> wnid
    truth: list[int]  # the devkit's own number of each val image, in the order of their names
    sha256: str

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(f"{wnid} {words}" for wnid, words in sorted(self.words.items()))

    def label_of(self) -> dict[str, int]:
        """wnid -> label."""
        return {wnid: label for label, wnid in enumerate(sorted(self.words))}


def _read_devkit(path: ArchiveFile, stated: SourceArchive) -> _Devkit:
    content = path.read_bytes()
    _check_md5(path, hashlib.md5(content, usedforsecurity=False).hexdigest(), stated)
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            meta, truth = (
                next(tar.extractfile(member).read() for member in tar.getmembers() if member.name.endswith(name))  # type: ignore[union-attr]
                for name in ("data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt")
            )
        leaves = [synset for synset in _synsets(meta) if int(synset["num_children"]) == 0]
        wnid_of = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in leaves}
        words = {str(synset["WNID"]): str(synset["words"]).split(",")[0].strip() for synset in leaves}
        return _Devkit(words, wnid_of, [int(line) for line in truth.split()], hashlib.sha256(content).hexdigest())
    except (*_DAMAGED, RuntimeError) as error:  # StopIteration in a generator is a RuntimeError
        reason = " ".join(str(error).split())
        raise AutoFormerError(f"{path}: not the devkit of ILSVRC 2012 ({reason}); download it again") from None


def _synsets(meta: bytes) -> Any:
    from scipy.io import loadmat

    return loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]


def _check_md5(path: ArchiveFile, found: str, stated: SourceArchive) -> None:
    if found != stated.md5:
        raise AutoFormerError(f"{path}: md5 is {found}, not {stated.md5} as published; copy or download it again")


class _Index(NamedTuple):
    """The images of one archive.

    Their labels are as they stand there: the number of the inner tar, or, where there is none, that in the name.
    """

    rows: Split
    folders: list[str]  # names of the inner tars without their ending, by number
    sha256: str  # of the archive


def _train_rows(index: _Index, devkit: _Devkit, path: ArchiveFile, published: Published) -> Split:
    label_of = devkit.label_of()
    unknown = [folder for folder in index.folders if folder not in label_of]
    if unknown or len(index.folders) != published.classes:
        what = f"'{unknown[0]}.tar' is no class of the devkit" if unknown else f"{len(index.folders)} classes"
        raise AutoFormerError(f"{path}: {what}, where {published.classes} are published; download it again")
    _check_count(path, len(index.rows.labels), published.train_images)
    labels = np.array([label_of[folder] for folder in index.folders], np.int32)
    return index.rows._replace(labels=labels[index.rows.labels])


def _val_rows(index: _Index, devkit: _Devkit, path: ArchiveFile, published: Published) -> Split:
    numbers, count = index.rows.labels, published.val_images
    _check_count(path, len(numbers), count)
    if not np.array_equal(np.sort(numbers), np.arange(1, count + 1)):
        raise AutoFormerError(f"{path}: the images are not numbered from 1 to {count}; download it again")
    if len(devkit.truth) != count:
        raise AutoFormerError(f"{path.with_name(DEVKIT)}: labels of {len(devkit.truth)} val images, not {count}")
    label_of = devkit.label_of()
    try:
        label_of_number = {number: label_of[wnid] for number, wnid in devkit.wnid_of.items()}
        truth = np.array([label_of_number[number] for number in devkit.truth], np.int32)
    except KeyError as error:
        raise AutoFormerError(f"{path.with_name(DEVKIT)}: no class has the number {error}; download it again") from None
    return index.rows._replace(labels=truth[numbers - 1])


def _check_count(path: ArchiveFile, found: int, wanted: int) -> None:
    if found != wanted:
        raise AutoFormerError(f"{path}: {found} images, where {wanted} are published; download it again")


def _repeated(name: str, count: int) -> np.ndarray:
    """One string object in every row."""
    rows = np.empty(count, object)
    rows[:] = name
    return rows


def _index(path: ArchiveFile, stated: SourceArchive) -> _Index:
    """Every image in an archive: as an earlier run has kept it, or read now.

    Raises `AutoFormerError` where the archive is damaged, another than the stated one, or changes meanwhile.
    """
    state = state_of(path)
    kept = work_root() / "prepare_data" / f"index-{hash_value([_FORMAT, state, stated.md5])[:16]}.parquet"
    if not kept.is_file():
        with replacing(kept) as temporary:
            sha256 = _write_index(path, stated, temporary)
            if state_of(path) != state:
                raise AutoFormerError(f"{path}: was changed while it was read; give the same command again")
        if isinstance(state, FileState):
            known_hashes().remember(state, sha256)
    try:
        told = pq.read_metadata(kept).metadata
        return _Index(read_split(kept), json.loads(told[b"folders"]), told[b"sha256"].decode())
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise AutoFormerError(f"{kept}: a damaged index ({reason}); remove that file") from None


def _write_index(path: ArchiveFile, stated: SourceArchive, out: Path) -> str:
    """Read an archive, write its index; its sha256, once its md5 is the stated one."""
    size = size_of(path)
    folders: dict[str, int] = {}
    with (
        Progress(f"reading {path.name}", size >> 20, "MB") as progress,
        HashedStream(path, lambda done: progress.update(done >> 20)) as stream,
        pq.ParquetWriter(out, SPLIT_SCHEMA, compression="zstd", use_dictionary=["archive", "label"]) as writer,
    ):
        found = (_row(folder, member, stream, folders) for folder, member in _walk(stream, size))
        while rows := list(islice(found, _AT_A_TIME)):
            offsets, sizes, numbers, checksums = (list(column) for column in zip(*rows, strict=True))
            split = Split(
                _repeated(path.name, len(rows)),
                np.array(offsets, np.int64),
                np.array(sizes, np.int32),
                np.array(numbers, np.int32),
                np.array(checksums, CHECKSUM),
            )
            writer.write_table(split_table(split))
        md5, sha256 = stream.finish()
        _check_md5(path, md5, stated)
        writer.add_key_value_metadata({"sha256": sha256, "folders": json.dumps(list(folders))})
    return sha256


def _walk(stream: HashedStream, end: int) -> Iterator[tuple[str, Member]]:
    """The images of an archive, each with the name of the inner tar that it lies in, "" for none."""
    for outer in members(stream, end):
        if not outer.name.endswith(".tar"):
            yield "", outer
            continue
        folder = outer.name.rpartition("/")[2].removesuffix(".tar")
        for inner in members(stream, outer.end):
            yield folder, inner


def _row(folder: str, member: Member, stream: HashedStream, folders: dict[str, int]) -> tuple[int, int, int, str]:
    """Offset, size, number of the folder or in the name (ILSVRC2012_val_00000001.JPEG), checksum."""
    if folder:
        number = folders.setdefault(folder, len(folders))
    else:
        digits = member.name.rpartition("_")[2].partition(".")[0]
        if not digits.isdecimal():
            raise AutoFormerError(f"{stream.path}: '{member.name}' is a name without a number; download it again")
        number = int(digits)
    return member.offset, member.size, number, hashlib.sha256(stream.read(member.size)).hexdigest()
