"""Seeded fuzzing of every door: `make fuzz`, or `python tests/fuzz.py --inputs 1000 --seed 0`; the tests run a few.

Sound files are damaged at random and read, each input by one of a few child processes, which report before and after
each. What counts as a fault: an exception that is no `AutoFormerError`, 20 seconds, 1 GB, a process that is started, or
a file that is written outside the input's own folder.
"""

import argparse
import base64
import gzip
import io
import json
import multiprocessing
import os
import random
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from mlflow.exceptions import MlflowException
from PIL import Image
from safetensors.torch import save

from autoformer.cards import Preprocessing, SubnetCard, read_subnet_card
from autoformer.errors import AutoFormerError
from autoformer.images.card import read_card
from autoformer.images.opening import FORMATS
from autoformer.images.pixels import open_image, to_channels
from autoformer.images.source import read_source
from autoformer.images.split_files import read_split, write_split
from autoformer.images.split_images import read_archive
from autoformer.named import load_space
from autoformer.reading import read_json_as
from autoformer.space import SubnetSpec
from autoformer.weights import read_weights
from components.prepare_data import cifar, webdataset
from components.prepare_data.delivered import make_rows
from components.prepare_data.sources import discover
from components.search_subnet.score_cache import ScoreCache
from pipeline.cluster.settings import load_cluster
from runtime.common.config import ROOT, load_config
from runtime.common.console import Parser, positive, run_command
from runtime.common.overrides import parse
from runtime.common.records import Accumulation, Failure, Provenance, StepRecord, read_confusion, read_metrics
from runtime.common.tables import read_table
from runtime.storage.artifacts import local_copy
from runtime.tracking.operations import read_operations
from runtime.tracking.served_model import _Request

SECONDS, MEGABYTES, BATCH = 20.0, 1024.0, 50
TOKENS = [
    b"\0" * 64, b"\xff" * 16, b"9" * 5000, b"-1", b"1e999", b"NaN", b"null", b"[" * 3000, b"{" * 3000, b'{"a":' * 500,
    b"&a [*a]", b"!!timestamp x", b"2026-13-45", b"<<: *x", b"0x" + b"F" * 5000, b"../../x", b"/etc/passwd", b"\\ud800",
    b'"' * 3, b"\r\n", b",", b"\xef\xbb\xbf", "é".encode("utf-16"), b"100000000",
    b"!!python/object/apply:os.system [id]", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"cos\nsystem\n(S'id'\ntR.",
    (2**31 - 1).to_bytes(4, "big"), (2**63).to_bytes(8, "little"),
]  # fmt: skip


class Door(NamedTuple):
    name: str  # of the file, in a folder of its own
    sound: list[bytes]
    read: Callable[[Path], object]


def saved(kind: str) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    Image.fromarray(pixels).save(out, kind, **({"progressive": True} if kind == "JPEG" else {}))
    return out.getvalue()


def tar_of(**members: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name.replace("_", "."))
            info.size, info.pax_headers = len(content), {"comment": "é" * 20}
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def file_of(write: Callable[[Path], object]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, "file"))
        return Path(folder, "file").read_bytes()


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def doors() -> list[Door]:
    spec, space = SubnetSpec(1, 16, (1,), (1.0,)), load_space("photos-32")
    images = [saved(kind) for kind in FORMATS if kind != "MPO"]
    card = {
        "name": "x", "classes": ["a", "b"], "image_size": None, "channels": 3, "encoding": "image", "mean": [0.5] * 3,
        "std": [0.5] * 3, "counts": {"train": 5}, "licence": "", "source": "", "archives": {"a.tar": "0"},
        "split_hashes": {"train": "0"},
    }  # fmt: skip
    preprocessing = Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3, classes=("a", "b"))
    model = SubnetCard(space=space, subnet=space.smallest, preprocessing=preprocessing, provenance={"seed": 1})
    line = {"subnet": spec.to_dict(), "images": "8A==", "right": "8A==", "losses": "AACAPwAAAEAAAEBAAACAQA=="}
    operation = {"kind": "metrics", "run_id": "x", "metrics": [["a", 1.0, 5, 6]], "tags": {"a": "b"}}
    pointer = {"uri": "s3://a/b", "hash": "0" * 64, "files": [{"name": "a", "bytes": 1, "sha256": "0"}]}
    rows = make_rows("a.tar", range(50), 9, 1, [f"{n:064x}" for n in range(50)])
    batch = tar_of(**{"cifar-10-batches-bin/batches_meta_txt": b"a\nb\n"})
    presets = [file.read_bytes() for file in sorted((ROOT / "configs" / "presets").glob("*.yaml"))]
    shard = tar_of(**{"0_png": images[0], "0_cls": b"0", "1_jpg": images[1], "1_json": as_json({"label": 1})})
    records = [as_json({"step": "a", "message": "b", "code": 2, "seconds": 1.5, "accumulation": 1})]
    args, tensors = SimpleNamespace(a=1), {"a": torch.ones(5), "b": torch.zeros(2, 3)}
    return [
        Door("params.yaml", presets, lambda file: load_config(str(file))),
        Door("gpu.yaml", [(ROOT / "configs/cluster/gpu.yaml").read_bytes()], lambda file: load_cluster(str(file))),
        Door("source.yaml", [b"location: /x\narchives:\n  a: {md5: '0'}\n"], lambda file: read_source(file.parent)),
        Door("override", [b"train_supernet.epochs=3"], lambda file: parse(file.read_text(errors="surrogateescape"))),
        Door("config.json", [as_json(load_config("smoke").model_dump(mode="json"))],
             lambda file: load_config("{" + file.read_text(errors="replace")[1:])),
        Door("card.json", [as_json(card)], read_card),
        Door("model.json", [model.model_dump_json().encode()], lambda file: read_subnet_card(file.parent)),
        Door("subnet", [spec.to_json().encode()], lambda file: SubnetSpec.from_json(file.read_text(errors="replace"))),
        *(Door("record.json", records, lambda file, kind=kind: read_json_as(kind, file))
          for kind in (Accumulation, Failure, StepRecord)),
        Door("provenance.json", [as_json({"config": {"a": {}}, "inputs": {"a": "b"}})],
             lambda file: read_json_as(Provenance, file)),
        Door("metrics.json", [as_json({"a": 1.5, "b": 2, "c": True})], lambda file: read_metrics(file, "a")),
        Door("confusion.json", [as_json({"classes": ["a", "b"], "matrix": [[1, 2], [3, 4]]})], read_confusion),
        Door("backlog.json", [as_json([operation])], read_operations),
        Door("stored.json", [as_json(pointer | {"hash": "x"})], lambda file: local_copy(file.parent)),
        Door("scores.jsonl", [as_json(line) + b"\n" + as_json(line) + b"\n"], lambda file: ScoreCache(file, 4, list)),
        Door("table.csv", [b"a,b\n1,2\n3,4\n"], read_table),
        Door("labels.csv", [b"path,label,split\na.png,a,train\nb.png,b,test\n"], discover),
        Door("image.png", images, lambda file: to_channels(open_image(file, 8), 3)),
        Door("request", [base64.b64encode(image) for image in images],
             lambda file: _Request().image({"image": file.read_text(errors="replace")})),
        Door("data/train-0.tar", [shard], lambda file: webdataset.read(file.parent)),
        Door("data/cifar-10-python.tar.gz", [gzip.compress(batch, mtime=0), gzip.compress(shard, mtime=0)],
             lambda file: cifar.read(file.parent)),
        Door("a.gz", [gzip.compress(bytes(5000), mtime=0)], read_archive),
        Door("a.parquet", [file_of(lambda file: write_split(file, rows))], read_split),
        Door("a.safetensors", [save(tensors)], read_weights),
        Door("a.pt", [file_of(lambda file, new=new: torch.save({"model": tensors, "args": args}, file,
                                                               _use_new_zipfile_serialization=new))
                      for new in (True, False)], read_weights),
    ]  # fmt: skip


def damaged(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """One to four damages."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at, size = rng.randrange(len(changed) + 1), rng.choice((1, 1, 4, 16, 200))
        kind = rng.randrange(8)
        if kind == 0:
            del changed[at:]
        elif kind == 1:
            del changed[at : at + size]
        elif kind == 2:
            changed[at:at] = rng.choice(TOKENS)
        elif kind == 3:
            token = rng.choice(TOKENS)
            changed[at : at + len(token)] = token
        elif kind == 4 and changed:
            changed[at % len(changed)] ^= 1 << rng.randrange(8)
        elif kind == 5:
            changed[at:at] = changed[at : at + size] * rng.choice((1, 10, 200))
        elif kind == 6:
            changed[at : at + size] = rng.randbytes(size)
        elif rng.random() < 0.2:
            changed[at:] = other
    return bytes(changed)


def peak_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(next(text for text in status.splitlines() if text.startswith("VmHWM")).split()[1]) / 1024


WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
STARTS = ("subprocess.Popen", "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.system", "pty.spawn")


def child(pipe: Connection, seed: int, numbers: range, folder: Path) -> None:
    """Reads the inputs of these numbers; sends (number, door, fault) of each, and the number before."""
    os.environ |= {"AUTOFORMER_WORK": str(folder / "work"), "TMPDIR": str(folder)}
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 - to the end of the process
    seen: list[str] = []

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in STARTS:
            seen.append(f"started a process: {arguments}")
        elif event == "open" and isinstance(arguments[0], str | Path) and isinstance(arguments[2], int):
            path = Path(os.path.abspath(arguments[0]))  # noqa: PTH100 - links stay as they are
            if arguments[2] & WRITING and not path.is_relative_to(folder) and str(path) != os.devnull:
                seen.append(f"wrote {path}")

    sys.addaudithook(audit)
    all_doors = doors()
    for number in numbers:
        rng = random.Random(f"{seed} {number}")
        door, other = all_doors[number % len(all_doors)], rng.choice(all_doors)
        file = folder / str(number) / door.name
        file.parent.mkdir(parents=True)
        file.write_bytes(damaged(rng.choice(door.sound), rng.choice(other.sound), rng))
        pipe.send((number, door.name, "begun"))
        Path("/proc/self/clear_refs").write_text("5")
        fault, before = "", peak_mb()
        seen.clear()
        try:
            door.read(file)
        except (AutoFormerError, MlflowException) as error:
            fault = "more than one line" if "\n" in str(error) or len(str(error)) > 1000 else ""
        except Exception as error:
            fault = f"traceback: {type(error).__name__}: {str(error)[:200]}"
        if peak_mb() - before > MEGABYTES:
            fault = f"took {peak_mb() - before:.0f} MB"
        pipe.send((number, door.name, fault or "; ".join(seen[:1])))


def fuzz(inputs: int, seed: int, folder: Path) -> list[str]:
    """The faults found by so many inputs, each with its number; their files stay in `folder`."""
    faults, first, counted, context = [], 0, Counter[str](), multiprocessing.get_context("fork")
    while first < inputs:
        here, there = multiprocessing.Pipe(duplex=False)
        numbers = range(first, min(first + BATCH, inputs))
        process = context.Process(target=child, args=(there, seed, numbers, folder.resolve()))
        process.start()
        there.close()
        number, door, fault = first - 1, "", ""
        try:
            while here.poll(SECONDS + 10 * (number < first)):
                number, door, fault = here.recv()
                if fault != "begun":
                    counted[door] += 1
                    first, faults = number + 1, faults + ([f"{number} {door}: {fault}"] if fault else [])
            fault = "hang"
        except EOFError:
            fault = "" if first > numbers[-1] else "crash"
        finally:
            process.kill()
            process.join()
        if fault:
            faults.append(f"{max(number, first)} {door}: {fault}")
            first = max(number, first) + 1
    print(f"{sum(counted.values())} inputs to {len(counted)} doors, seed {seed}: {len(faults)} faults")
    return faults


def main() -> int:
    parser = Parser(description="Fuzz every door.")
    parser.add_argument("--inputs", type=positive, default=2000)
    parser.add_argument("--seed", type=int, default=int(time.time()))

    def work(arguments: argparse.Namespace) -> int:
        root = Path(tempfile.mkdtemp(prefix="fuzz-"))
        found = fuzz(arguments.inputs, arguments.seed, root)
        print("\n".join([*found, *([f"the inputs are in {root}"] if found else [])]))
        return int(bool(found))

    return run_command("fuzz", parser, work, after="")


if __name__ == "__main__":
    raise SystemExit(main())
