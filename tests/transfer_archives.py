"""The transfer sets' archives in their real layouts, a few images large, and the md5 of each file."""

import io
import pickle
import struct
import tarfile
from hashlib import md5
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat
from user_images import noise

Files = dict[str, bytes]


def write_tar(path: Path, files: Files, mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def jpeg(seed: int, width: int = 40, height: int = 30) -> bytes:
    out = io.BytesIO()
    noise(seed, width, height).save(out, "JPEG")
    return out.getvalue()


def mat(**values: Any) -> bytes:
    out = io.BytesIO()
    savemat(out, values)
    return out.getvalue()


def md5s(folder: Path) -> dict[str, str]:
    return {file.name: md5(file.read_bytes()).hexdigest() for file in folder.iterdir()}


# --- pickles as Python 2 wrote them: no library writes these opcodes any more ---


def _text(value: bytes) -> bytes:
    short = len(value) < 256
    return (b"U" + bytes([len(value)]) if short else b"T" + struct.pack("<I", len(value))) + value


def _numbers(values: list[int]) -> bytes:
    return b"](" + b"".join(b"K" + bytes([value]) for value in values) + b"e"


def _texts(values: list[bytes]) -> bytes:
    return b"](" + b"".join(map(_text, values)) + b"e"


def _array(values: np.ndarray) -> bytes:
    shape = b"".join(b"M" + struct.pack("<H", side) for side in values.shape)
    kind = (
        b"cnumpy\ndtype\n("
        + _text(b"u1")
        + b"K\x00K\x01tR(K\x03"
        + _text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    head = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + _text(b"b") + b"tR"
    return head + b"(K\x01(" + shape + b"t" + kind + b"\x89" + _text(values.tobytes()) + b"tb"


def python2_pickle(**values: Any) -> bytes:
    """A dictionary of lists of numbers, lists of bytes and uint8 arrays."""
    items = b""
    for key, value in values.items():
        as_numbers = isinstance(value, list) and isinstance(value[0], int)
        written = _array(value) if isinstance(value, np.ndarray) else _numbers(value) if as_numbers else _texts(value)
        items += _text(key.encode()) + written
    return b"\x80\x02}(" + items + b"u."


# --- the sets ---


def cifar(folder: Path, fine: bool = False, images: int = 7, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    label, inside = ("fine_labels", "cifar-100-python") if fine else ("labels", "cifar-10-batches-py")
    batches = ["train", "test"] if fine else [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    files: Files = {}
    for batch in batches:
        pixels = rng.integers(0, 256, (images, 3072), dtype=np.uint8)
        values = {label: rng.integers(0, 3, images).tolist(), "data": pixels, "filenames": [b"a.png"] * images}
        files[f"{inside}/{batch}"] = python2_pickle(**values)
    names = [b"apple", b"bear", b"chair"]
    meta = {"fine_label_names" if fine else "label_names": names}
    files[f"{inside}/{'meta' if fine else 'batches.meta'}"] = python2_pickle(**meta)
    files[f"{inside}/readme.html"] = b"<html>"
    return write_tar(folder / f"cifar-{100 if fine else 10}-python.tar.gz", files, "w:gz")


def cifar_binary(folder: Path, fine: bool = False, images: int = 5) -> Path:
    """The binary version: on each image's pixels its label, in CIFAR-100 behind that of its coarse class."""
    rng = np.random.default_rng(1)
    inside = "cifar-100-binary" if fine else "cifar-10-batches-bin"
    batches = ["train", "test"] if fine else [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    files: Files = {}
    for batch in batches:
        records = rng.integers(0, 256, (images, 3072 + 1 + fine), dtype=np.uint8)
        records[:, : 1 + fine] = rng.integers(0, 3, (images, 1 + fine))
        files[f"{inside}/{batch}.bin"] = records.tobytes()
    files[f"{inside}/{'fine_label_names' if fine else 'batches.meta'}.txt"] = b"apple\nbear\nchair\n\n"
    return write_tar(folder / f"cifar-{100 if fine else 10}-binary.tar.gz", files, "w:gz")


def flowers(folder: Path) -> None:
    labels = np.array([1, 102, 7, 7, 102, 1, 3, 3])
    write_tar(folder / "102flowers.tgz", {f"jpg/image_{n:05d}.jpg": jpeg(n) for n in range(1, 9)}, "w:gz")
    (folder / "imagelabels.mat").write_bytes(mat(labels=labels))
    splits = {"trnid": np.array([8, 2, 3]), "valid": np.array([1, 4]), "tstid": np.array([7, 5, 6])}
    (folder / "setid.mat").write_bytes(mat(**splits))


PETS = {
    "trainval": "Abyssinian_100 1 1 1\nAbyssinian_2 1 1 1\namerican_bulldog_7 2 2 1\n",
    "test": "american_bulldog_100 2 2 1\nAbyssinian_9 1 1 1\n",
}


def pets(folder: Path) -> None:
    names = [line.split()[0] for text in PETS.values() for line in text.splitlines()]
    files = {f"images/{name}.jpg": jpeg(seed) for seed, name in enumerate(names)}
    write_tar(folder / "images.tar.gz", files | {"images/Abyssinian_100.mat": b"MATLAB"}, "w:gz")
    lists = {f"annotations/{name}.txt": text.encode() for name, text in PETS.items()}
    write_tar(folder / "annotations.tar.gz", {"annotations/README": b"#"} | lists, "w:gz")


def cars(folder: Path) -> None:
    kind = [("fname", object), ("bbox_x1", int), ("class", int)]
    for split, seed in (("train", 0), ("test", 50)):
        write_tar(
            folder / f"cars_{split}.tgz", {f"cars_{split}/{n:05d}.jpg": jpeg(seed + n) for n in (1, 2, 3)}, "w:gz"
        )
    train = np.array([(f"{n:05d}.jpg", 5, label) for n, label in ((1, 2), (2, 1), (3, 2))], dtype=kind)
    test = np.array([(f"{n:05d}.jpg", 5, label) for n, label in ((1, 1), (2, 1), (3, 2))], dtype=kind)
    names = np.array(["AM General Hummer SUV 2000", "Acura RL Sedan 2012"], dtype=object)
    devkit = {
        "devkit/cars_meta.mat": mat(class_names=names),
        "devkit/cars_train_annos.mat": mat(annotations=train),
    }
    write_tar(folder / "car_devkit.tgz", devkit, "w:gz")
    (folder / "cars_test_annos_withlabels.mat").write_bytes(mat(annotations=test))


MAKE = {
    "cifar-10": cifar,
    "cifar-100": lambda folder: cifar(folder, fine=True),
    "flowers-102": flowers,
    "oxford-iiit-pets": pets,
    "stanford-cars": cars,
}


def make(name: str, folder: Path) -> Path:
    """The files of a set as they are downloaded."""
    folder.mkdir(parents=True, exist_ok=True)
    MAKE[name](folder)
    return folder


def harmful_pickle(command: str) -> bytes:
    class Harmful:
        def __reduce__(self) -> Any:
            import os

            return os.system, (command,)

    return pickle.dumps({"data": Harmful()}, protocol=2)
