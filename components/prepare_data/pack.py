"""Pack a user's images: each file decoded once, upright, opaque, RGB or grey, its shorter side resized, into tars.

A pack is a data folder: tars that WebDataset can stream, `index.csv` and `dataset.json`. Its name ends in a hash of its
input, so equal images are packed once and changed ones again. An interrupted packing resumes after the last complete
tar.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median_high
from typing import NamedTuple

from pydantic import Field

from autoformer.errors import AutoFormerError, quantity
from autoformer.files import canonical_json, hash_and_start, hash_value, replacing, write_json, write_text
from autoformer.frozen import Frozen
from autoformer.images.pixel_rule import PixelRule
from autoformer.images.pixels import DEFAULT
from autoformer.reading import read_json_as
from components.prepare_data.encoding import encode_files
from components.prepare_data.listing import some
from components.prepare_data.near_copies import near_copies
from components.prepare_data.oddities import oddities
from components.prepare_data.pack_card import CARD, FORMAT, INDEX, UNREADABLE, PackCard, read_pack
from components.prepare_data.sources import Source, SourceImage, discover
from components.prepare_data.tar_writer import Tar
from components.prepare_data.threads import in_order
from components.prepare_data.unreadable import check_unreadable, refuse_by_names
from components.prepare_data.white_level import START_BYTES, find_white_level, may_be_deep
from runtime.common.console import check_apart
from runtime.common.locks import hold_lock
from runtime.common.tables import write_table

SHARD_IMAGES = 4000  # readers keep each tar open: a million images need 250 files
NAME_LENGTH = 40
_LOST = re.compile(r"[^a-z0-9\s_\-.,:'()\[\]/\u2019]")  # what a name does without a change of its meaning is not here
COLUMNS = ("archive", "offset", "size", "label", "checksum", "split", "source", "original")  # sha256 of the source

Watch = Callable[[str, int, int], None]  # (activity, images done, total images)


class _Shard(Frozen):
    """The index of a complete tar."""

    sha256: str
    rows: tuple[dict[str, str], ...]
    refused: tuple[dict[str, str], ...]
    sizes: tuple[tuple[int, int], ...]
    plain: tuple[str, ...]
    dark: dict[str, int] = Field(default_factory=dict)
    transparent: int
    unseen: tuple[str, ...] = ()
    frames: tuple[str, ...]
    looks: tuple[int, ...]


def slug(text: str) -> str:
    """A name for folders, configurations and the registry: lower case letters, digits and hyphens.

    Accents are dropped. If letters or signs are lost (other alphabets, C and C++, a long name), a hash distinguishes
    different names.
    """
    folded = unicodedata.normalize("NFC", text).casefold()
    plain = "".join(c for c in unicodedata.normalize("NFKD", folded) if not unicodedata.combining(c))
    name = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    if name and len(name) <= NAME_LENGTH and not _LOST.search(plain):
        return name
    digest = hashlib.sha256(folded.encode("utf-8", "surrogateescape")).hexdigest()[:6]
    return f"{name[: NAME_LENGTH - 7].strip('-') or 'images'}-{digest}"


def title_of(path: Path) -> str:
    """The name of the data set at `path`. For a CSV, the names of its folder and itself: many are called labels.csv."""
    path = path.resolve()
    return slug(f"{path.parent.name}-{path.stem}" if path.is_file() else path.name)


def pack(
    path: Path,
    packs: Path,
    shorter_side: int,
    channels: int,
    max_unreadable_percent: float,
    watch: Watch,
    rule: PixelRule = DEFAULT,
) -> Path:
    """Pack the images at `path` into a folder of `packs`, unless it exists; return that folder.

    Args:
        path: see `sources.discover`; the folder is named after it and a hash of the images.
        shorter_side: in pixels. Smaller images are enlarged.
        max_unreadable_percent: maximum share of unreadable files.
        watch: called with the progress of each activity.
        rule: if its white level is None, the images decide (`white_level.find_white_level`).

    Raises:
        AutoFormerError: see `sources.discover`; too many files are unreadable (a table beside the pack names them), or
            a class has no readable image.
    """
    source = discover(path)
    title = title_of(path)
    check_apart([packs / f"{title}-{UNREADABLE}"], path)
    refuse_by_names(source, packs / f"{title}-{UNREADABLE}", max_unreadable_percent)
    digest, originals, deep = _hash(source, shorter_side, channels, rule, watch)
    folder = packs / f"{title}-{digest[:8]}"
    work = packs / f".{folder.name}.packing"
    report = packs / f"{folder.name}-{UNREADABLE}"
    packing = _Packing(
        source, work, report, shorter_side, channels, max_unreadable_percent, watch, rule, originals, deep
    )
    with hold_lock(work, "packing"):
        if (folder / CARD).exists() and read_pack(folder).hash == digest:
            check_unreadable(
                source, max_unreadable_percent, read_pack(folder).unreadable, len(source.images), folder / UNREADABLE
            )
            return folder
        if folder.exists() or folder.is_symlink():
            raise AutoFormerError(f"{folder}: holds something else than these images, packed; remove that folder first")
        if work.is_symlink():
            raise AutoFormerError(f"{work}: a link, where the pack is made; remove it")
        work.mkdir(exist_ok=True)
        card = packing.with_white_level().write(title, digest)
        for leftover in (*work.glob("images-*.json"), *work.glob(".*.tmp")):  # the shards' indices; what a kill left
            leftover.unlink()
        write_json(work / CARD, card.model_dump(mode="json"))
        work.rename(folder)
        report.unlink(missing_ok=True)
    return folder


def _hash(
    source: Source, shorter_side: int, channels: int, rule: PixelRule, watch: Watch
) -> tuple[str, list[str], list[Path]]:
    """Read every file once.

    Returns:
        Hash of the bytes, label and split of every file, and of the packing settings; the hash of each file; and the
        files that may be 16-bit images.
    """
    entries, deep = list[list[str]](), list[Path]()
    for image, (digest, is_deep) in zip(source.images, in_order(_read_files, source.images), strict=True):
        entries.append([source.name_of(image), image.label, image.split, digest])
        if is_deep:
            deep.append(image.path)
        watch("reading", len(entries), len(source.images))
    settings = [FORMAT, shorter_side, channels, rule.model_dump(mode="json")]
    return hash_value([*settings, entries]), [digest for *_, digest in entries], deep


def _read_files(images: Sequence[SourceImage]) -> list[tuple[str, bool]]:
    return [_read_file(image.path) for image in images]


def _read_file(path: Path) -> tuple[str, bool]:
    """Hash of a file, and whether it may be a 16-bit image."""
    try:
        digest, start = hash_and_start(path, START_BYTES)
        return digest, may_be_deep(start)
    except OSError as error:
        return f"unreadable: {error.strerror}", False
    except AutoFormerError:
        return "unreadable: a pipe or a device", False


class _Packing(NamedTuple):
    source: Source
    work: Path  # folder of the unfinished pack
    report: Path  # table of unreadable files if there are too many
    shorter_side: int
    channels: int
    max_percent: float
    watch: Watch
    rule: PixelRule
    originals: list[str]  # sha256 of each file of `source`
    deep: list[Path]  # files that may be 16-bit images
    notes: tuple[str, ...] = ()

    def with_white_level(self) -> "_Packing":
        """Set the white level of the images if none is configured; return a note on it too."""
        if self.rule.white_level is not None:
            return self
        found = find_white_level(self.deep)
        if found is None:
            return self
        note = (
            f"{quantity(found.images, 'image of 16 bits holds', 'images of 16 bits hold')} values up to "
            f"{found.highest}: {found.white_level} is white in all of them (prepare_data.white_level)"
        )
        if found.dark:
            note += (
                f"; {found.dark:,} of them stay at or below {found.lower_level}: if they are of a smaller range and "
                "not dark, bring all images to one range first"
            )
        rule = self.rule.model_copy(update={"white_level": float(found.white_level)})
        return self._replace(rule=rule, notes=(note,))

    def write(self, name: str, digest: str) -> PackCard:
        """Write the tars, `SHARD_IMAGES` images each, and the tables; return the card of the pack `name`."""
        total, classes = len(self.source.images), self.source.classes
        labels = {name: str(label).encode() for label, name in enumerate(classes)}
        archives: dict[str, str] = {}
        rows: list[dict[str, str]] = []
        refused: list[dict[str, str]] = []
        sizes: list[tuple[int, int]] = []
        plain: list[str] = []
        transparent, frames, looks = 0, list[str](), list[int]()
        dark, unseen = dict[str, int](), list[str]()
        for number, start in enumerate(range(0, total, SHARD_IMAGES)):
            index = self.work / f"images-{number:05d}.json"
            is_written = index.exists()
            shard = read_json_as(_Shard, index, "remove it") if is_written else self._write_shard(index, start, labels)
            packed = min(start + SHARD_IMAGES, total)
            archives[index.with_suffix(".tar").name] = shard.sha256
            rows += shard.rows
            refused += shard.refused
            sizes += shard.sizes
            plain += shard.plain
            dark |= shard.dark
            unseen += shard.unseen
            transparent += shard.transparent
            frames += shard.frames
            looks += shard.looks
            self.watch("packing", packed, total)
            check_unreadable(self.source, self.max_percent, len(refused), packed, self.report, refused)
        counts = Counter(row["label"] for row in rows)
        if empty := [label for label in classes if not counts[label]]:
            write_table(self.report, ("source", "reason"), refused)
            raise AutoFormerError(
                f"{self.source.root}: the class '{empty[0]}' has no readable image; {self.report} names the unreadable "
                "ones"
            )
        write_table(self.work / INDEX, COLUMNS, rows)
        write_table(self.work / UNREADABLE, ("source", "reason"), refused)
        widths, heights = zip(*sizes, strict=True)
        changed = [*self.notes]
        if transparent:
            ground = f"laid on grey {self.rule.background} of 255 (prepare_data.background)"
            changed.append(f"{quantity(transparent, 'image has', 'images have')} transparent pixels, {ground}")
        if frames:
            changed.append(
                f"{quantity(len(frames), 'image')} with several frames or pages, of which the first is used: "
                f"{some(frames)}"
            )
        odd = oddities(rows, plain, dark, unseen)
        return PackCard(
            name=name,
            hash=digest,
            layout=self.source.layout,
            classes=classes,
            counts={label: counts[label] for label in classes},
            splits=dict(sorted(Counter(row["split"] for row in rows).items())),
            channels=self.channels,
            shorter_side=self.shorter_side,
            median_size=(median_high(widths), median_high(heights)),
            unreadable=len(refused),
            ignored=self.source.ignored,
            archives=archives,
            pixels=self.rule,
            notes=(*self.source.notes, *changed, *odd, *near_copies(rows, looks, self.work)),
        )

    def _write_shard(self, index: Path, start: int, labels: Mapping[str, bytes]) -> _Shard:
        """Write the tar whose first image is number `start`, then its index; return that.

        `labels`: of each class, as the tar holds it.
        """
        rows, refused, sizes, plain, transparent, frames, looks = [], [], [], [], 0, [], []
        dark, unseen = dict[str, int](), list[str]()
        archive = index.with_suffix(".tar")
        with replacing(archive) as temporary, temporary.open("wb") as file:
            tar = Tar(file)
            images, total = self.source.images[start : start + SHARD_IMAGES], len(self.source.images)
            encode = partial(encode_files, shorter_side=self.shorter_side, channels=self.channels, rule=self.rule)
            contents = in_order(encode, [image.path for image in images])
            for number, (image, encoded) in enumerate(zip(images, contents, strict=True), start):
                self.watch("packing", number, total)
                name = self.source.name_of(image)
                if isinstance(encoded, str):
                    refused.append({"source": name, "reason": encoded})
                    continue
                content = encoded.content
                offset = tar.add(f"{number:08d}.png", content)
                tar.add(f"{number:08d}.cls", labels[image.label])
                place, original = (archive.name, offset, len(content)), self.originals[number]
                values = (*place, image.label, encoded.sha256, image.split, name, original)
                rows.append(dict(zip(COLUMNS, map(str, values), strict=True)))
                sizes.append(encoded.size)
                plain += [name] if encoded.plain and not encoded.unseen else []
                dark |= {name: encoded.dark} if encoded.dark else {}
                unseen += [name] if encoded.unseen else []
                transparent += encoded.transparent
                frames += [name] if encoded.frames else []
                looks.append(encoded.look)
            sha256 = tar.end()
        found = {
            "sha256": sha256,
            "rows": rows,
            "refused": refused,
            "sizes": sizes,
            "plain": plain,
            "dark": dark,
            "transparent": transparent,
            "unseen": unseen,
            "frames": frames,
            "looks": looks,
        }
        write_text(index, canonical_json(found))
        return _Shard(**found)
