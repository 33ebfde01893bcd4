"""Pack a user's images: every file decoded once, upright, RGB or grey, its shorter side resized, into plain tars.

A pack is a data folder as any other: tars that WebDataset streams too, `index.parquet` and `dataset.json`. Its name
ends in a hash of what went in, so that the same images are packed once, and changed ones are packed anew. A pack
that was interrupted goes on after the last whole tar.
"""

import hashlib
import io
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image
from pydantic import Field

from autoformer.errors import AutoFormerError, validated
from autoformer.files import hash_file, hash_value, read_json, replacing, write_json
from autoformer.frozen import Frozen
from autoformer.images.pixels import open_image, resize_shorter_side, to_channels
from components.prepare_data.sources import Source, SourceImage, discover
from runtime.common.locks import hold_lock
from runtime.common.tables import read_table, write_table

FORMAT = 2  # 1 rounded the longer side; such packs are read as they are
SHARD_IMAGES = 4000  # open files are one a tar: a million images stay far below their usual limit
CARD = "dataset.json"
INDEX = "index.csv"
UNREADABLE = "unreadable.csv"
COLUMNS = ("archive", "offset", "size", "label", "checksum", "split", "source")
_AT_A_TIME = 64  # images that are in memory at once, decoded or encoded

Watch = Callable[[str, int, int], None]  # (what is done, so many, of so many)


class PackCard(Frozen):
    """What a pack holds. `hash` is of what went in: every file's bytes, label and split, and how they are packed."""

    format: Literal[1, 2] = 2
    name: str
    hash: str
    layout: str
    classes: tuple[str, ...] = Field(min_length=2)
    counts: dict[str, int] = Field(description="readable images of each class")
    splits: dict[str, int] = Field(description="readable images of each split that the source has; '' for none")
    channels: Literal[1, 3]
    shorter_side: int = Field(gt=0, description="pixels")
    median_size: tuple[int, int] = Field(description="width and height of the images as they were, in pixels")
    unreadable: int
    ignored: int = Field(description="files that are no images by their names")
    archives: dict[str, str] = Field(description="file name -> sha256")


class _Packed(NamedTuple):
    """One image, packed or refused."""

    image: SourceImage
    content: bytes  # PNG; empty where refused
    size: tuple[int, int]
    reason: str


class _Shards(NamedTuple):
    """What all tars of a pack hold together."""

    rows: list[dict[str, str]]  # of the index
    refused: list[dict[str, str]]
    sizes: list[tuple[int, int]]  # width and height of the images as they were


def read_pack(folder: Path) -> PackCard:
    """The card of a pack. Raises `AutoFormerError` where the folder is none, or its card is damaged."""
    return validated(PackCard, read_json(folder / CARD), str(folder / CARD))


def slug(text: str) -> str:
    """A name for folders, configurations and the registry: lower case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "images"


def pack(
    path: Path, place: Path, shorter_side: int, channels: int, max_unreadable_percent: float, watch: Watch
) -> Path:
    """Pack the images at `path` into a folder of `place`, unless it is there; return that folder.

    The folder has the name of `path`, with a hash of what went in.

    Args:
        path: see `sources.discover`.
        place: where packs lie.
        shorter_side: in pixels. Smaller images are enlarged.
        max_unreadable_percent: more unreadable files than this stop the packing.
        watch: is told of progress.

    Raises:
        AutoFormerError: one line; see `sources.discover`. Also where too many files are unreadable (they are named in
            a table beside the pack), or where a class has no readable image.
    """
    source = discover(path)
    title = slug(path.resolve().stem if path.is_file() else path.resolve().name)
    digest = _hash(source, shorter_side, channels, watch)
    folder = place / f"{title}-{digest[:8]}"
    work = place / f".{folder.name}.packing"
    report = place / f"{folder.name}-{UNREADABLE}"
    with hold_lock(work, "packing"):
        if (folder / CARD).exists() and read_pack(folder).hash == digest:
            card = read_pack(folder)
            _check_share(source, card.unreadable, len(source.images), max_unreadable_percent, folder / UNREADABLE)
            return folder
        if folder.exists():
            raise AutoFormerError(f"{folder}: holds something else than these images, packed; remove that folder first")
        work.mkdir(exist_ok=True)
        shards = _write_shards(source, work, shorter_side, channels, max_unreadable_percent, watch, report)
        card = _card(source, shards, work, report, title, digest, shorter_side, channels)
        write_table(work / INDEX, COLUMNS, shards.rows)
        write_table(work / UNREADABLE, ("source", "reason"), shards.refused)
        for leftover in (*work.glob("images-*.json"), *work.glob(".*.tmp")):  # the shards' indices; what a kill left
            leftover.unlink()
        write_json(work / CARD, card.model_dump(mode="json"))
        work.rename(folder)
        report.unlink(missing_ok=True)
    return folder


def _card(
    source: Source, shards: _Shards, work: Path, report: Path, name: str, digest: str, shorter_side: int, channels: int
) -> PackCard:
    """What the shards in `work` hold. Raises `AutoFormerError` where that is no image of some class."""
    rows, refused, sizes = shards
    counts = Counter(row["label"] for row in rows)
    empty = [label for label in source.classes if not counts[label]]
    if empty:
        write_table(report, ("source", "reason"), refused)
        raise AutoFormerError(
            f"{source.root}: the class '{empty[0]}' has no readable image; {report} names the unreadable ones"
        )
    return PackCard(
        name=name,
        hash=digest,
        layout=source.layout,
        classes=source.classes,
        counts={label: counts[label] for label in source.classes},
        splits=dict(sorted(Counter(row["split"] for row in rows).items())),
        channels=channels,
        shorter_side=shorter_side,
        median_size=(_median(width for width, _ in sizes), _median(height for _, height in sizes)),
        unreadable=len(refused),
        ignored=source.ignored,
        archives={file.name: hash_file(file) for file in sorted(work.glob("*.tar"))},
    )


def _hash(source: Source, shorter_side: int, channels: int, watch: Watch) -> str:
    """Of the bytes, label and split of every file, and of how they are packed."""
    entries = []
    with ThreadPoolExecutor(_threads()) as pool:
        for image, digest in zip(source.images, pool.map(_hash_file, (i.path for i in source.images)), strict=True):
            entries.append([source.name_of(image), image.label, image.split, digest])
            watch("reading", len(entries), len(source.images))
    return hash_value([FORMAT, shorter_side, channels, entries])


def _hash_file(path: Path) -> str:
    """sha256 of a file; of one that cannot be read, the reason."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"unreadable: {error.strerror}"


def _threads() -> int:
    return min(16, os.cpu_count() or 1)


def _write_shards(
    source: Source, work: Path, shorter_side: int, channels: int, max_percent: float, watch: Watch, report: Path
) -> _Shards:
    """Pack all images, `SHARD_IMAGES` to a tar."""
    rows: list[dict[str, str]] = []
    refused: list[dict[str, str]] = []
    sizes: list[tuple[int, int]] = []
    for number, start in enumerate(range(0, len(source.images), SHARD_IMAGES)):
        images = source.images[start : start + SHARD_IMAGES]
        index = work / f"images-{number:05d}.json"
        if not index.exists():
            _write_shard(source, images, start, index, shorter_side, channels, watch)
        done = read_json(index)
        rows += done["rows"]
        refused += done["refused"]
        sizes += [(width, height) for width, height in done["sizes"]]
        watch("packing", start + len(images), len(source.images))
        if 100 * len(refused) > max_percent * len(source.images):
            write_table(report, ("source", "reason"), refused)
        _check_share(source, len(refused), start + len(images), max_percent, report)
    return _Shards(rows, refused, sizes)


def _check_share(source: Source, unreadable: int, seen: int, max_percent: float, report: Path) -> None:
    """Refuse a source of which more images than the stated share cannot be read, of `seen` so far."""
    total = len(source.images)
    share = 100 * unreadable / total
    if share > max_percent:
        so_far = "" if seen == total else " so far"
        raise AutoFormerError(
            f"{source.root}: {unreadable} of {total} images cannot be read{so_far} ({share:.1f} %), "
            f"more than prepare_data.max_unreadable_percent = {max_percent:g} allows; {report} names each with its "
            "reason: mend or remove them, or raise the share"
        )


def _write_shard(
    source: Source, images: list[SourceImage], start: int, index: Path, side: int, channels: int, watch: Watch
) -> None:
    rows, refused, sizes = [], [], []
    archive = index.with_suffix(".tar")
    with replacing(archive) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for done, packed in enumerate(_encoded(images, side, channels), start=1):
                watch("packing", start + done - 1, len(source.images))
                name = source.name_of(packed.image)
                if packed.reason:
                    refused.append({"source": name, "reason": packed.reason})
                    continue
                offset = _add(tar, f"{start + done - 1:08d}.png", packed.content)
                label = source.classes.index(packed.image.label)
                _add(tar, f"{start + done - 1:08d}.cls", str(label).encode())
                sizes.append(packed.size)
                rows.append(
                    {
                        "archive": archive.name,
                        "offset": str(offset),
                        "size": str(len(packed.content)),
                        "label": packed.image.label,
                        "checksum": hashlib.sha256(packed.content).hexdigest(),
                        "split": packed.image.split,
                        "source": name,
                    }
                )
    write_json(index, {"rows": rows, "refused": refused, "sizes": sizes})


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Add a member, the same bytes each time; return the byte at which its content begins."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    offset = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(member, io.BytesIO(content))
    return int(offset)


def _encoded(images: Iterable[SourceImage], side: int, channels: int) -> Iterator[_Packed]:
    """Decode and encode on all cores (Pillow lets go of the interpreter meanwhile), in order, a few at a time."""
    waiting = iter(images)
    with ThreadPoolExecutor(_threads()) as pool:
        while part := list(islice(waiting, _AT_A_TIME)):
            yield from pool.map(lambda image: _encode(image, side, channels), part)


def _encode(image: SourceImage, side: int, channels: int) -> _Packed:
    try:
        resized = resize_shorter_side(to_channels(open_image(image.path, side), channels), side)
    except AutoFormerError as error:
        return _Packed(image, b"", (0, 0), str(error).removeprefix(f"{image.path}: "))
    out = io.BytesIO()
    resized.save(out, "PNG", compress_level=3)
    with Image.open(image.path) as header:
        return _Packed(image, out.getvalue(), header.size, "")


def _median(values: Iterable[int]) -> int:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def unreadable_of(folder: Path) -> list[dict[str, str]]:
    """The files that a pack left out, with reasons."""
    return read_table(folder / UNREADABLE)
