"""Index and split ImageNet: archives with as many members as the real ones, of a few hundred bytes each.

The archives have the real layout: a tar of a tar for each class, a tar of val images, a devkit; no two images have the
same bytes. A separate process does the work of `prepare_data`. The same run times reading the same bytes, and hashing
them with md5 and sha256, before and after. Memory is the process's peak, imports included.
"""

import hashlib
import io
import os
import resource
import tarfile
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from autoformer.images.source import SourceArchive
from benchmarks.rows import Row, elapsed, measured
from components.prepare_data import imagenet
from components.prepare_data.imagenet import DEVKIT, PUBLISHED, TRAIN, VAL, Published
from components.prepare_data.step import SPLITS, prepare, write_prepared
from runtime.common.sections import PrepareData

IMAGE_BYTES, MAX_GB = 700, 1.0


def tar_of(
    members: Iterable[tuple[str, bytes]], mode: Literal["w", "w:gz"] = "w", file: BinaryIO | None = None
) -> bytes:
    """The bytes of a tar; with `file` they are written there instead."""
    out = io.BytesIO()
    with tarfile.open(fileobj=file or out, mode=mode, format=tarfile.GNU_FORMAT) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


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
    return tar_of(((f"ILSVRC2012_devkit_t12/{name}", content) for name, content in files.items()), "w:gz")


def write_archives(folder: Path, train: int, val: int, classes: int) -> Published:
    """Write archives with so many images; return the description that the reader checks."""
    wnids = [f"n{10_000_000 + 137 * number}" for number in range(classes)]
    numbers = count()

    def images(names: Iterable[str]) -> Iterable[tuple[str, bytes]]:
        return ((name, (next(numbers).to_bytes(7, "big") * (IMAGE_BYTES // 7))) for name in names)

    def class_tar(place: int) -> bytes:
        size = train // classes + (place < train % classes)
        return tar_of(images(f"{wnids[place]}_{number}.JPEG" for number in range(size)))

    with (folder / TRAIN).open("wb") as file:
        tar_of(((f"{wnid}.tar", class_tar(place)) for place, wnid in enumerate(wnids)), file=file)
    with (folder / VAL).open("wb") as file:
        tar_of(images(f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, val + 1)), file=file)
    described = {wnid: (classes - place, f"thing {place}, object") for place, wnid in enumerate(wnids)}
    (folder / DEVKIT).write_bytes(devkit([1 + place % classes for place in range(val)], described))
    archives = {}
    for name in PUBLISHED.archives:
        with (folder / name).open("rb") as written:
            digest = hashlib.file_digest(written, "md5").hexdigest()
            archives[name] = SourceArchive(md5=digest, bytes=written.seek(0, os.SEEK_END))
    return Published(archives, train, val, classes)


def index_and_split(folder: Path, published: Published, search_images: int) -> dict[str, float]:
    """The work of `prepare_data`: seconds until the images are indexed and until all is written; peak memory in GB."""
    import scipy.io  # noqa: F401 - imported before the clock starts, as all else
    import tqdm  # noqa: F401

    os.environ["AUTOFORMER_WORK"] = str(folder / "work")
    paths = {name: folder / f"{name}.parquet" for name in SPLITS}
    start = time.perf_counter()
    delivered = imagenet.read(folder, published)
    indexed = time.perf_counter()
    prepared = prepare(folder, delivered, PrepareData(search_images=search_images), 0)
    write_prepared(prepared, folder / "card.json", paths)
    written = time.perf_counter()
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"indexed": indexed - start, "written": written - start, "peak_gb": peak_gb}


def read_files(paths: Sequence[Path], algorithms: Sequence[str] = ()) -> None:
    for path in paths:
        digests = [hashlib.new(algorithm) for algorithm in algorithms]
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(4 << 20):
                for digest in digests:
                    digest.update(chunk)


def measure(quick: bool = False) -> dict[str, Any]:
    """`quick`: a fiftieth of the images."""
    fraction = 0.02 if quick else 1.0
    images, val = round(PUBLISHED.train_images * fraction), round(PUBLISHED.val_images * fraction)
    classes = round(PUBLISHED.classes * min(1.0, 10 * fraction))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        published = write_archives(folder, images, val, classes)
        read = partial(read_files, [folder / TRAIN, folder / VAL])
        plain = {"reading": read, "hashing": partial(read, ("md5", "sha256"))}
        before = {name: elapsed(run) for name, run in plain.items()}
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            search_images = classes * min(10, images // classes - 1)
            found = pool.submit(index_and_split, folder, published, search_images).result()
        mean = {name: (before[name] + elapsed(run)) / 2 for name, run in plain.items()}
    rows = [
        Row("index and split: peak memory", found["peak_gb"], "GB", MAX_GB),
        Row("index / md5 and sha256 of the same bytes, one thread", found["indexed"] / mean["hashing"], "x"),
        Row("index, split and write / the same", found["written"] / mean["hashing"], "x"),
        Row("index, split and write / reading the bytes from a warm cache", found["written"] / mean["reading"], "x"),
    ]
    return measured(rows, images=images + val, seconds=found | mean)
