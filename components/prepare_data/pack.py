"""Pack a user's images: each file decoded once, upright, RGB or grey, its shorter side resized, into plain tars.

A pack is a data folder like any other: tars that WebDataset can stream, `index.csv` and `dataset.json`. Its name ends
in a hash of its input, so equal images are packed once and changed ones anew. An interrupted packing resumes after the
last whole tar.
"""

import hashlib
import io
import os
import re
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from statistics import median_high
from typing import Literal, NamedTuple

from pydantic import Field

from autoformer.errors import AutoFormerError, validated
from autoformer.files import hash_file, hash_value, replacing, write_json
from autoformer.frozen import Frozen
from autoformer.images.pixels import image_size, open_image, resize_shorter_side, to_channels
from autoformer.reading import read_json, read_json_as
from components.prepare_data.sources import Source, SourceImage, discover
from runtime.common.locks import hold_lock
from runtime.common.tables import read_table, write_table

FORMAT = 2  # 1 rounded the longer side; such packs are read as they are
SHARD_IMAGES = 4000  # a reader opens each tar: a million images stay far below the usual limit of open files
CARD = "dataset.json"
NAME_LENGTH = 40
INDEX = "index.csv"
UNREADABLE = "unreadable.csv"
COLUMNS = ("archive", "offset", "size", "label", "checksum", "split", "source")
_AT_A_TIME = 64  # images that are in memory at once, decoded or encoded

Watch = Callable[[str, int, int], None]  # (activity, images done, images in all)


class PackCard(Frozen):
    """A pack's content. `hash` covers every input file's bytes, label and split, and how they are packed."""

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


class _Shard(Frozen):
    """The index of a tar that is packed."""

    rows: tuple[dict[str, str], ...]
    refused: tuple[dict[str, str], ...]
    sizes: tuple[tuple[int, int], ...]


def read_pack(folder: Path) -> PackCard:
    """The card of a pack. Raises `AutoFormerError` where the folder is none, or its card is damaged."""
    return validated(PackCard, read_json(folder / CARD), str(folder / CARD))


def unreadable_of(folder: Path) -> list[dict[str, str]]:
    """The files that a pack left out, with reasons."""
    return read_table(folder / UNREADABLE)


def slug(text: str) -> str:
    """A name for folders, configurations and the registry: lower case letters, digits and hyphens.

    Accents are dropped. Where letters are lost (other alphabets, a long name), a hash keeps different names different.
    """
    folded = unicodedata.normalize("NFC", text).casefold()
    plain = "".join(c for c in unicodedata.normalize("NFKD", folded) if not unicodedata.combining(c))
    name = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    if name and len(name) <= NAME_LENGTH and not any(c.isalnum() and not c.isascii() for c in plain):
        return name
    digest = hashlib.sha256(folded.encode("utf-8", "surrogateescape")).hexdigest()[:6]
    return f"{name[: NAME_LENGTH - 7].strip('-') or 'images'}-{digest}"


def title_of(path: Path) -> str:
    """The name of the data set at `path`: of a CSV its folder's and its own, as many are called labels.csv."""
    path = path.resolve()
    return slug(f"{path.parent.name}-{path.stem}" if path.is_file() else path.name)


def pack(
    path: Path, packs: Path, shorter_side: int, channels: int, max_unreadable_percent: float, watch: Watch
) -> Path:
    """Pack the images at `path` into a folder of `packs`, unless it is there; return that folder.

    Args:
        path: see `sources.discover`; the folder is named after it and a hash of the images.
        shorter_side: in pixels. Smaller images are enlarged.
        max_unreadable_percent: more unreadable files than this stop the packing.
        watch: called with the progress.

    Raises:
        AutoFormerError: see `sources.discover`; too many files are unreadable (a table beside the pack names them), or
            a class has no readable image.
    """
    source = discover(path)
    title = title_of(path)
    digest = _hash(source, shorter_side, channels, watch)
    folder = packs / f"{title}-{digest[:8]}"
    work = packs / f".{folder.name}.packing"
    report = packs / f"{folder.name}-{UNREADABLE}"
    packing = _Packing(source, work, report, shorter_side, channels, max_unreadable_percent, watch)
    with hold_lock(work, "packing"):
        if (folder / CARD).exists() and read_pack(folder).hash == digest:
            packing.check_unreadable(read_pack(folder).unreadable, len(source.images), folder / UNREADABLE)
            return folder
        if folder.exists():
            raise AutoFormerError(f"{folder}: holds something else than these images, packed; remove that folder first")
        work.mkdir(exist_ok=True)
        card = packing.write(title, digest)
        for leftover in (*work.glob("images-*.json"), *work.glob(".*.tmp")):  # the shards' indices; what a kill left
            leftover.unlink()
        write_json(work / CARD, card.model_dump(mode="json"))
        work.rename(folder)
        report.unlink(missing_ok=True)
    return folder


def _hash(source: Source, shorter_side: int, channels: int, watch: Watch) -> str:
    """Of the bytes, label and split of every file, and of how they are packed."""
    entries = []
    with ThreadPoolExecutor(_threads()) as pool:
        for image, digest in zip(source.images, pool.map(_hash_file, (i.path for i in source.images)), strict=True):
            entries.append([source.name_of(image), image.label, image.split, digest])
            watch("reading", len(entries), len(source.images))
    return hash_value([FORMAT, shorter_side, channels, entries])


def _hash_file(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        return f"unreadable: {error.strerror}"
    except AutoFormerError:
        return "unreadable: a pipe or a device"


def _threads() -> int:
    return min(16, os.cpu_count() or 1)


class _Packing(NamedTuple):
    source: Source
    work: Path  # folder of the unfinished pack
    report: Path  # table of unreadable files, where they stop the packing
    shorter_side: int
    channels: int
    max_percent: float
    watch: Watch

    def write(self, name: str, digest: str) -> PackCard:
        """Write the tars, `SHARD_IMAGES` images each, and the tables; return the card of the pack `name`."""
        total = len(self.source.images)
        rows: list[dict[str, str]] = []
        refused: list[dict[str, str]] = []
        sizes: list[tuple[int, int]] = []
        for number, start in enumerate(range(0, total, SHARD_IMAGES)):
            index = self.work / f"images-{number:05d}.json"
            if not index.exists():
                self._write_shard(index, start)
            shard, packed = read_json_as(_Shard, index, "remove it"), min(start + SHARD_IMAGES, total)
            rows += shard.rows
            refused += shard.refused
            sizes += shard.sizes
            self.watch("packing", packed, total)
            if 100 * len(refused) > self.max_percent * total:
                write_table(self.report, ("source", "reason"), refused)
            self.check_unreadable(len(refused), packed, self.report)
        counts = Counter(row["label"] for row in rows)
        if empty := [label for label in self.source.classes if not counts[label]]:
            write_table(self.report, ("source", "reason"), refused)
            raise AutoFormerError(
                f"{self.source.root}: the class '{empty[0]}' has no readable image; {self.report} names the unreadable "
                "ones"
            )
        write_table(self.work / INDEX, COLUMNS, rows)
        write_table(self.work / UNREADABLE, ("source", "reason"), refused)
        widths, heights = zip(*sizes, strict=True)
        return PackCard(
            name=name,
            hash=digest,
            layout=self.source.layout,
            classes=self.source.classes,
            counts={label: counts[label] for label in self.source.classes},
            splits=dict(sorted(Counter(row["split"] for row in rows).items())),
            channels=self.channels,
            shorter_side=self.shorter_side,
            median_size=(median_high(widths), median_high(heights)),
            unreadable=len(refused),
            ignored=self.source.ignored,
            archives={file.name: hash_file(file) for file in sorted(self.work.glob("*.tar"))},
        )

    def check_unreadable(self, unreadable: int, seen: int, report: Path) -> None:
        """Refuse a source with too large a share of unreadable images, of which `seen` have been tried."""
        total = len(self.source.images)
        percent = 100 * unreadable / total
        if percent > self.max_percent:
            so_far = "" if seen == total else " so far"
            raise AutoFormerError(
                f"{self.source.root}: {unreadable} of {total} images cannot be read{so_far} ({percent:.1f} %), "
                f"more than prepare_data.max_unreadable_percent = {self.max_percent:g} allows; {report} names each "
                "with its reason: mend or remove them, or raise the share"
            )

    def _write_shard(self, index: Path, start: int) -> None:
        """Write the tar that begins with the image `start`, then its index."""
        rows, refused, sizes = [], [], []
        archive = index.with_suffix(".tar")
        with replacing(archive) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            images, classes = self.source.images[start : start + SHARD_IMAGES], self.source.classes
            for number, (image, encoded) in enumerate(zip(images, self._encode_all(images), strict=True), start):
                self.watch("packing", number, len(self.source.images))
                name = self.source.name_of(image)
                if isinstance(encoded, str):
                    refused.append({"source": name, "reason": encoded})
                    continue
                content, size = encoded
                offset = _add(tar, f"{number:08d}.png", content)
                _add(tar, f"{number:08d}.cls", str(classes.index(image.label)).encode())
                checksum = hashlib.sha256(content).hexdigest()
                values = (archive.name, offset, len(content), image.label, checksum, image.split, name)
                rows.append(dict(zip(COLUMNS, map(str, values), strict=True)))
                sizes.append(size)
        write_json(index, {"rows": rows, "refused": refused, "sizes": sizes})

    def _encode_all(self, images: list[SourceImage]) -> Iterator[tuple[bytes, tuple[int, int]] | str]:
        """In order, on all cores (Pillow releases the GIL), a few images in memory at once."""
        waiting = iter(images)
        with ThreadPoolExecutor(_threads()) as pool:
            while few := list(islice(waiting, _AT_A_TIME)):
                yield from pool.map(self._encode, few)

    def _encode(self, image: SourceImage) -> tuple[bytes, tuple[int, int]] | str:
        """The PNG, and width and height of the image as it was; or why it cannot be read."""
        try:
            upright = to_channels(open_image(image.path, self.shorter_side), self.channels)
            resized = resize_shorter_side(upright, self.shorter_side)
        except AutoFormerError as error:
            return str(error).removeprefix(f"{image.path}: ")
        out = io.BytesIO()
        resized.save(out, "PNG", compress_level=3)
        return out.getvalue(), image_size(image.path)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Add a member without a time; return the offset of its content."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    offset = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(member, io.BytesIO(content))
    return int(offset)
