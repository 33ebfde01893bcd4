"""What it takes to index and split ImageNet: archives with as many members as the real ones, a few hundred bytes each.

    python -m benchmarks.index [--images N]

The archives are written into a temporary folder, in the real layout: a tar of a tar for each class, a tar of val
images, a devkit; no two images have the same bytes. A process of its own then does what `prepare_data` does, and
afterwards what a later step does before it reads its first image. The times, imports left out, stand beside that of
reading the same bytes, and of hashing them with md5 and sha256 one after the other, in the same run, before and after.
The memory is the most that the process had, all that it imports with it.
"""

import argparse
import hashlib
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import md5
from pathlib import Path
from typing import Any

import numpy as np

from autoformer.files import write_json
from autoformer.images.source import SOURCE, Source, SourceArchive, read_source
from autoformer.images.split_images import read_rows
from benchmarks.rows import Row, measured
from components.prepare_data import imagenet
from components.prepare_data.imagenet import DEVKIT, PUBLISHED, TRAIN, VAL, Published
from components.prepare_data.step import SPLITS, prepare, write_prepared
from runtime.common.config import ROOT, PrepareData
from runtime.common.workspace import known_hashes

PAYLOAD = 700  # bytes of an image
_BLOCK = 512
_MOST_GB = 1.0


def devkit(truth: Sequence[int], classes: dict[str, tuple[int, str]]) -> bytes:
    """The development kit as a .tar.gz: meta.mat, with a synset above the classes, and the numbers of the val images.

    `classes`: wnid -> (the devkit's own number, names).
    """
    from scipy.io import savemat

    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height")
    rows = [(number, wnid, words, "a thing", 0, 0, 0) for wnid, (number, words) in classes.items()]
    rows.append((len(classes) + 1, "n00001740", "entity", "all things", len(classes), 1, 9))
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, dtype=[(field, "O") for field in fields]).reshape(-1, 1)})
    files = {
        "readme.txt": b"the development kit",
        "data/meta.mat": meta.getvalue(),
        "data/ILSVRC2012_validation_ground_truth.txt": "".join(f"{number}\n" for number in truth).encode(),
    }
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def tar_blocks(names: Sequence[str], first: int) -> bytes:
    """A tar of files of `PAYLOAD` bytes, written a column at a time; their content counts up from `first`."""
    count, padded = len(names), -(-PAYLOAD // _BLOCK) * _BLOCK
    blocks = np.zeros((count, _BLOCK + padded), np.uint8)
    blocks[:, :_BLOCK] = np.frombuffer(_header("", PAYLOAD), np.uint8)
    texts = np.array([name.encode() for name in names]).reshape(-1, 1)
    letters = texts.view(np.uint8).reshape(count, -1)
    blocks[:, : letters.shape[1]] = letters
    blocks[:, 148:156] = ord(" ")
    sums = blocks[:, :_BLOCK].sum(axis=1, dtype=np.int64)
    for place in range(6):
        blocks[:, 148 + place] = ord("0") + (sums >> 3 * (5 - place)) % 8
    blocks[:, 154] = 0
    numbers = np.arange(first, first + count, dtype=np.uint64)[:, None] * np.arange(1, 90, dtype=np.uint64)
    content = numbers.view(np.uint8).reshape(count, -1)
    blocks[:, _BLOCK : _BLOCK + PAYLOAD] = content[:, :PAYLOAD]
    return blocks.tobytes() + bytes(2 * _BLOCK)


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


def write_archives(folder: Path, train: int, val: int, classes: int) -> Published:
    """Archives of so many images; what a reader must hold them to."""
    wnids = [f"n{10_000_000 + 137 * number}" for number in range(classes)]
    sizes = [train // classes + (number < train % classes) for number in range(classes)]
    done = 0
    with (folder / TRAIN).open("wb") as out:
        for wnid, size in zip(wnids, sizes, strict=True):
            inner = tar_blocks([f"{wnid}_{number}.JPEG" for number in range(size)], done + 1)
            out.write(_header(f"{wnid}.tar", len(inner)) + inner)  # whole blocks, as a tar is
            done += size
        out.write(bytes(2 * _BLOCK))
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, val + 1)]
    (folder / VAL).write_bytes(tar_blocks(names, done + 1))
    numbers = {wnid: (classes - place, f"thing {place}, object") for place, wnid in enumerate(wnids)}
    (folder / DEVKIT).write_bytes(devkit([1 + place % classes for place in range(val)], numbers))
    archives = {}
    for name in PUBLISHED.archives:
        with (folder / name).open("rb") as file:
            digest = hashlib.file_digest(file, "md5").hexdigest()
        archives[name] = SourceArchive(md5=digest, bytes=(folder / name).stat().st_size)
    return Published(archives, train, val, classes)


def index_and_split(data: Path, out: Path, published: Published, search_images: int) -> dict[str, float]:
    """What `prepare_data` does, and the rows as a later step reads them: seconds of each."""
    import scipy.io  # noqa: F401 - as are the others, before the clock begins
    import tqdm  # noqa: F401

    seconds = {}

    def timed(what: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        seconds[what] = time.perf_counter() - start
        return result

    paths = {name: out / f"{name}.parquet" for name in SPLITS}
    delivered = timed("index", lambda: imagenet.read(data, published))
    section = PrepareData(search_images=search_images)
    prepared = timed("split", partial(prepare, data, delivered, section, 0))
    timed("write", lambda: write_prepared(prepared, out / "card.json", paths))
    del delivered
    seconds["most_gb_so_far"] = _most_gb()
    timed("index again", lambda: imagenet.read(data, published))
    timed("rows in a later step", lambda: read_rows(paths["train"], data, prepared.card, "train", known_hashes()))
    return seconds


def _most_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def reading_seconds(paths: Sequence[Path], hashing: bool) -> float:
    """To read files once more, and to hash them."""
    start = time.perf_counter()
    for path in paths:
        digests = [md5(), hashlib.sha256()] if hashing else []
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(4 << 20):
                for digest in digests:
                    digest.update(chunk)
    return time.perf_counter() - start


def measure(quick: bool = False) -> dict[str, Any]:
    """Rows, with the seconds that they come from. `quick`: a fiftieth of the images, to see it run."""
    found = measure_images(PUBLISHED.train_images // 50 if quick else PUBLISHED.train_images)
    plain = found["reading_and_hashing_seconds"]
    hashing = "md5 and sha256 of the same bytes, in one thread"
    rows = [
        Row("index and split: most memory", found["most_memory_gb"], "GB", _MOST_GB, note="all imports with it"),
        Row("index, split and write / reading and hashing", found["index_and_split_to_reading_and_hashing"], "x",
            note=hashing),
        Row("index / reading and hashing", found["index_to_reading_and_hashing"], "x", note=hashing),
        Row("index, split and write / reading alone", found["index_and_split_to_reading_and_hashing"] * plain
            / found["reading_seconds"], "x", note="from a warm page cache"),
        Row("index a second time", found["index_again_seconds"], "s"),
        Row("rows of train in a later step", found["rows_in_a_later_step_seconds"], "s"),
    ]  # fmt: skip
    return measured(rows, **found)


def measure_images(images: int = PUBLISHED.train_images) -> dict[str, Any]:
    """All of it at so many training images; seconds, GB, and the multiples."""
    share = images / PUBLISHED.train_images
    classes = max(10, round(PUBLISHED.classes * min(1.0, 10 * share)))
    val = max(classes, round(PUBLISHED.val_images * share))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        published = write_archives(folder, images, val, classes)
        (folder / "data").mkdir()
        source = Source(location=folder, archives=dict(published.archives))
        write_json(folder / "data" / SOURCE, source.model_dump(mode="json"))  # JSON is YAML too
        old = time.time() - 60
        for archive in published.archives:
            os.utime(folder / archive, (old, old))
        paths = [folder / archive for archive in (TRAIN, VAL)]
        before = {what: reading_seconds(paths, what == "hashing") for what in ("reading", "hashing")}
        found = _in_a_process(folder, images, val, classes)
        after = {what: reading_seconds(paths, what == "hashing") for what in ("reading", "hashing")}
        plain = {what: (before[what] + after[what]) / 2 for what in before}
        gigabytes = sum(path.stat().st_size for path in paths) / 1e9
    prepared = found["index"] + found["split"] + found["write"]
    return {
        "images": images + val,
        "archives_gb": gigabytes,
        "reading_seconds": plain["reading"],
        "reading_and_hashing_seconds": plain["hashing"],
        **{f"{what.replace(' ', '_')}_seconds": found[what] for what in found if not what.startswith("most")},
        "index_to_reading_and_hashing": found["index"] / plain["hashing"],
        "index_and_split_to_reading_and_hashing": prepared / plain["hashing"],
        "most_memory_gb": found["most_gb_so_far"],
    }


def _in_a_process(folder: Path, images: int, val: int, classes: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.index", "--in", str(folder), "--images", str(images)]
    command += ["--val", str(val), "--classes", str(classes)]
    environment = os.environ | {"AUTOFORMER_WORK": str(folder / "work")}
    subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)
    found: dict[str, float] = json.loads((folder / "found.json").read_text())
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.index", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=PUBLISHED.train_images, help="training images (default: all)")
    for name, kind in (("--in", Path), ("--val", int), ("--classes", int)):  # of the process that is measured
        parser.add_argument(name, type=kind, dest=name.strip("-") + "_", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.in_ is not None:
        data = arguments.in_ / "data"
        published = Published(read_source(data).archives, arguments.images, arguments.val_, arguments.classes_)
        search = arguments.classes_ * min(10, arguments.images // arguments.classes_ - 1)
        write_json(arguments.in_ / "found.json", index_and_split(data, arguments.in_ / "splits", published, search))
        return
    print(table(measure_images(arguments.images)))


def table(found: dict[str, Any]) -> str:
    """For people."""
    plain, memory = found["reading_and_hashing_seconds"], found["most_memory_gb"]
    lines = [f"{found['images']:,} images in {found['archives_gb']:.2f} GB of archives", ""]
    for name, key in (
        ("reading the bytes", "reading_seconds"),
        ("reading, md5 and sha256", "reading_and_hashing_seconds"),
        ("index: read, verify, find, hash each", "index_seconds"),
        ("split and describe", "split_seconds"),
        ("write splits and card", "write_seconds"),
        ("index, a second time", "index_again_seconds"),
        ("rows of train in a later step", "rows_in_a_later_step_seconds"),
    ):
        lines.append(f"  {name:<40}{found[key]:>8.1f} s{found[key] / plain:>8.2f} x")
    whole = found["index_and_split_to_reading_and_hashing"]
    lines += ["", f"  index, split and write in all: {whole:.2f} times reading and hashing the same bytes"]
    lines.append(f"  most memory {memory:.2f} GB ({'below' if memory < _MOST_GB else 'NOT below'} {_MOST_GB:g} GB)")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
