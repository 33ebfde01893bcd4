"""ImageNet-1k (ILSVRC 2012) straight from its three official archives, which stay where they are.

`ILSVRC2012_img_train.tar` holds a tar for each class, `n01440764.tar`, which holds `n01440764_10026.JPEG` and so on;
`ILSVRC2012_img_val.tar` holds `ILSVRC2012_val_00000001.JPEG` and so on. The devkit names the classes (meta.mat) and
labels the val images, with its own class numbers; here classes are ordered by wnid, as is usual. The md5 sums and the
parsing of the devkit come from torchvision.datasets.imagenet (BSD-3).

The data folder holds `source.yaml`, which locates and identifies the archives. Each is read once, from beginning to
end; its index is cached in the work folder until the archive changes.
"""

import hashlib
import io
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from autoformer.bounds import BOUNDS
from autoformer.errors import AutoFormerError, quantity
from autoformer.files import FileState
from autoformer.images.source import SOURCE, SourceArchive, read_source
from autoformer.images.split_files import Split
from components.prepare_data.delivered import Delivered, concatenate, make_rows
from components.prepare_data.index_cache import Index, cached_index
from components.prepare_data.tars import HashedStream, members
from runtime.common.console import Progress
from runtime.common.workspace import known_hashes
from runtime.storage.data import ArchiveFile, ArchiveFolder, find_archives, size_of, state_of

NAME = "imagenet-1k"
TITLE = "ImageNet-1k"
LICENCE = "for research and education that are not commercial, by the terms of https://www.image-net.org/download"
TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"

_AT_A_TIME = 16384  # rows held as Python objects
_DAMAGED = (tarfile.TarError, LookupError, TypeError, ValueError, AttributeError, OSError, EOFError, zlib.error)


class Published(NamedTuple):
    """The published archives: checksums, sizes, and numbers of images and classes."""

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
    return not {TRAIN, VAL}.isdisjoint(_stated(data, PUBLISHED))


def _stated(data: Path, published: Published) -> Mapping[str, SourceArchive]:
    """The archives with the checksums in `source.yaml`, or else the published ones."""
    if (data / SOURCE).is_file() and (stated := read_source(data).archives):
        return stated
    there = any((find_archives(data) / name).is_file() for name in (TRAIN, VAL))
    return published.archives if there else {}


def read(data: Path, published: Published = PUBLISHED, splits: Collection[str] = ("train", "val")) -> Delivered:
    """The images of the archives of `splits`; other archives may be missing.

    Raises `AutoFormerError` if an archive is missing, damaged, or not the published one.
    """
    folder, stated = find_archives(data), _stated(data, published)
    archive_of = {split: name for split, name in (("train", TRAIN), ("val", VAL)) if split in splits}
    needed = {name: published.archives[name] for name in (*archive_of.values(), DEVKIT)}
    check_sizes(folder, stated, published._replace(archives=needed))
    devkit = _read_devkit(folder / DEVKIT, stated[DEVKIT], published.classes)
    rows: dict[str, Split] = {}
    sha256 = {DEVKIT: devkit.sha256}
    for split, labelled in (
        ("val", _label_val),
        ("train", _label_train),
    ):  # the small archive first, so errors come early
        if split in archive_of:
            name = archive_of[split]
            index = _read_index(folder / name, stated[name])
            rows[split], sha256[name] = labelled(index, devkit, folder / name, published), index.facts["sha256"]
    return Delivered(
        title=TITLE,
        classes=devkit.classes,
        rows=concatenate([rows[split] for split in archive_of]),
        splits=np.repeat(list(archive_of), [len(rows[split].labels) for split in archive_of]),
        archives={name: sha256[name] for name in needed},
        licence=LICENCE,
        source=", ".join(f"{name} (md5 {archive.md5})" for name, archive in stated.items()),
        upright=False,  # as for the published accuracies; a few images have an EXIF orientation
    )


def glance(data: Path, images: int = 2048) -> Delivered:
    """The first training images, unverified, all of the first class; for timing."""
    folder = find_archives(data)
    check_sizes(folder, _stated(data, PUBLISHED), PUBLISHED)
    with HashedStream(folder / TRAIN, hashes=()) as stream:
        found = [info for _, info in islice(_images(stream, size_of(folder / TRAIN)), images)]
    offsets, sizes = [info.offset_data for info in found], [info.size for info in found]
    return Delivered(
        title=TITLE,
        classes=tuple(map(str, range(PUBLISHED.classes))),
        rows=make_rows(TRAIN, offsets, sizes, 0, [""] * len(found)),
        splits=np.repeat(["train"], len(found)),
        archives={},
        licence=LICENCE,
        source="",
        upright=False,
    )


def check_sizes(folder: ArchiveFolder, archives: Mapping[str, SourceArchive], published: Published) -> None:
    """Raise `AutoFormerError` unless all archives exist with the expected sizes. Does not read them."""
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
            raise AutoFormerError(
                f"{path}: {quantity(found, 'byte')}, not {wanted:,} as published; copy or download it again"
            )


def _check_md5(path: ArchiveFile, found: str, stated: SourceArchive) -> None:
    if found != stated.md5:
        raise AutoFormerError(f"{path}: md5 is {found}, not {stated.md5} as published; copy or download it again")


def _wrong_archive(path: ArchiveFile, reason: str) -> AutoFormerError:
    return AutoFormerError(f"{path}: {reason}; download it again")


class _Devkit(NamedTuple):
    classes: tuple[str, ...]
    label_of: dict[str, int]  # wnid -> label
    val_labels: list[int]  # in the order of the image names
    sha256: str


def _read_devkit(path: ArchiveFile, stated: SourceArchive, classes: int) -> _Devkit:
    from scipy.io import loadmat

    content = path.read_bytes()
    _check_md5(path, hashlib.md5(content, usedforsecurity=False).hexdigest(), stated)
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            files = {info.name.partition("/data/")[2]: info for info in tar.getmembers()}
            meta, truth = (
                tar.extractfile(files[name]).read()  # type: ignore[union-attr]
                for name in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt")
            )
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        leaves = [synset for synset in synsets if int(synset["num_children"]) == 0]
        words = {str(synset["WNID"]): str(synset["words"]).split(",")[0].strip() for synset in leaves}
        if len(words) != classes:
            raise ValueError(f"{quantity(len(words), 'class')}, not {classes}")
        label_of = {wnid: label for label, wnid in enumerate(sorted(words))}
        by_number = {int(synset["ILSVRC2012_ID"]): label_of[str(synset["WNID"])] for synset in leaves}
        numbers = [int(line) for line in truth.split()]
        unknown = set(numbers) - by_number.keys()
        if unknown:
            raise ValueError(f"no class has the number {min(unknown)}")
        return _Devkit(
            classes=tuple(f"{wnid} {word}" for wnid, word in sorted(words.items())),
            label_of=label_of,
            val_labels=[by_number[number] for number in numbers],
            sha256=hashlib.sha256(content).hexdigest(),
        )
    except _DAMAGED as error:
        raise _wrong_archive(path, f"not the devkit of ILSVRC 2012 ({' '.join(str(error).split())})") from None


def _label_train(index: Index, devkit: _Devkit, path: ArchiveFile, published: Published) -> Split:
    folders = index.facts["folders"]
    unknown = [folder for folder in folders if folder not in devkit.label_of]
    if unknown or len(folders) != published.classes:
        found = f"'{unknown[0]}.tar' is no class of the devkit" if unknown else quantity(len(folders), "class")
        raise _wrong_archive(path, f"{found}, where {published.classes} are published")
    _check_count(path, len(index.rows.labels), published.train_images)
    labels = np.array([devkit.label_of[folder] for folder in folders], np.int32)
    return index.rows._replace(labels=labels[index.rows.labels])


def _label_val(index: Index, devkit: _Devkit, path: ArchiveFile, published: Published) -> Split:
    numbers, count = index.rows.labels, published.val_images
    _check_count(path, len(numbers), count)
    if not np.array_equal(np.sort(numbers), np.arange(1, count + 1)):
        raise _wrong_archive(path, f"the images are not numbered from 1 to {count}")
    if len(devkit.val_labels) != count:
        raise AutoFormerError(
            f"{path.with_name(DEVKIT)}: labels of {quantity(len(devkit.val_labels), 'val image')}, not {count}"
        )
    return index.rows._replace(labels=np.array(devkit.val_labels, np.int32)[numbers - 1])


def _check_count(path: ArchiveFile, found: int, wanted: int) -> None:
    if found != wanted:
        raise _wrong_archive(path, f"{quantity(found, 'image')}, where {wanted:,} are published")


def _read_index(path: ArchiveFile, stated: SourceArchive) -> Index:
    """Index every image in an archive; the facts are the names of its inner tars, and its sha256.

    The label is the number of the inner tar, or without one the number in the image's name.

    Raises `AutoFormerError` if the archive is damaged, not the expected one, or changes meanwhile.
    """
    size, state = size_of(path), state_of(path)

    def read_all(add: Callable[[Split], None]) -> dict[str, Any]:
        folders: dict[str, int] = {}
        with (
            Progress(f"reading {path.name}", size >> 20, "MB") as progress,
            HashedStream(path, ("md5", "sha256"), lambda done: progress.update(done >> 20)) as stream,
        ):
            images = _index_entries(stream, size, folders)
            while batch := list(islice(images, _AT_A_TIME)):
                add(make_rows(path.name, *zip(*batch, strict=True)))
            md5, sha256 = stream.finish()
        _check_md5(path, md5, stated)
        if state_of(path) != state:
            raise AutoFormerError(f"{path}: was changed while it was read; run the same command again")
        if isinstance(state, FileState):
            known_hashes().remember(state, sha256)
        return {"folders": list(folders), "sha256": sha256}

    return cached_index(["ImageNet", state, stated.md5], read_all)


def _images(stream: HashedStream, end: int) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """The images of an archive, each with the name of its inner tar, or ""."""
    try:
        for outer in members(stream, end):
            if outer.name.endswith(".tar"):
                folder = PurePosixPath(outer.name).stem
                for inner in members(stream, outer.offset_data + outer.size):
                    yield folder, inner
            else:
                yield "", outer
    except tarfile.TarError as error:
        raise AutoFormerError(f"{stream.path}: {error}; copy the archive again") from None


def _index_entries(stream: HashedStream, end: int, folders: dict[str, int]) -> Iterator[tuple[int, int, int, str]]:
    """Offset, size, label and checksum of each image."""
    for folder, info in _images(stream, end):
        if folder:
            number = folders.setdefault(folder, len(folders))
        else:
            digits = info.name.rpartition("_")[2].partition(".")[0]  # of ILSVRC2012_val_00000001.JPEG
            if not digits.isdecimal():
                raise _wrong_archive(stream.path, f"'{info.name}' is a name without a number")
            number = int(digits)
        if info.size > BOUNDS.image_file_bytes:
            raise _wrong_archive(stream.path, f"'{info.name}' has {info.size} bytes, too many for an image")
        yield info.offset_data, info.size, number, hashlib.sha256(stream.read(info.size)).hexdigest()
