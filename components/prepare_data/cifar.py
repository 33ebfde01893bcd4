"""CIFAR-10 and CIFAR-100 as delivered: one gzipped tar of pickles (Krizhevsky 2009).

Each batch is a pickled dictionary of Python 2: labels, and pixels as one numpy array, whose bytes lie in the pickle as
they are. So an image is 3,072 bytes at an offset of the decompressed archive, and no pickle is needed to read it. The
pickles are read once, for labels and for where the pixels are, by a reader that can make plain values and nothing else.
The binary version, which has the same images as records of label and pixels, is read too.
"""

import io
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from autoformer.errors import AutoFormerError
from autoformer.files import hash_file
from autoformer.images.split_files import Split, image_checksums
from autoformer.images.split_images import read_archive
from components.prepare_data.delivered import Delivered

IMAGE_SIZE = 32
_IMAGE_BYTES = 3 * IMAGE_SIZE**2
_LENGTH = struct.Struct("<I")  # as a pickle says how long a string of bytes is


class _Layout(NamedTuple):
    name: str
    title: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: bytes
    meta: str
    classes: bytes


LAYOUTS = {
    "cifar-10-python.tar.gz": _Layout(
        "cifar-10", "CIFAR-10", "cifar-10-batches-py", tuple(f"data_batch_{number}" for number in range(1, 6)),
        ("test_batch",), b"labels", "batches.meta", b"label_names",
    ),
    "cifar-100-python.tar.gz": _Layout(
        "cifar-100", "CIFAR-100", "cifar-100-python", ("train",), ("test",), b"fine_labels", "meta",
        b"fine_label_names",
    ),
}  # fmt: skip


class _Binary(NamedTuple):
    title: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    label_bytes: int  # before each image, of which the last is the label
    classes: str


BINARY = {
    "cifar-10-binary.tar.gz": _Binary(
        "CIFAR-10", "cifar-10-batches-bin", tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        ("test_batch.bin",), 1, "batches.meta.txt",
    ),
    "cifar-100-binary.tar.gz": _Binary(
        "CIFAR-100", "cifar-100-binary", ("train.bin",), ("test.bin",), 2, "fine_label_names.txt"
    ),
}  # fmt: skip


def is_mine(data: Path) -> bool:
    return any((data / name).is_file() for name in (*LAYOUTS, *BINARY))


def read(data: Path) -> Delivered:
    """Raises `AutoFormerError` where the archive is damaged, or not laid out as the published one."""
    archive = next(name for name in (*LAYOUTS, *BINARY) if (data / name).is_file())
    layout, file = LAYOUTS.get(archive) or BINARY[archive], data / archive
    content = read_archive(file)
    places = _places(content, file)
    rows, splits = [], []
    for split, batches in (("train", layout.train), ("test", layout.test)):
        for batch in batches:
            name = f"{layout.folder}/{batch}"
            if isinstance(layout, _Binary):
                rows.append(_records(content, places, archive, name, layout.label_bytes, file))
            else:
                rows.append(_batch(content, places, archive, name, layout.labels, file))
            splits += [split] * len(rows[-1].labels)
    if isinstance(layout, _Binary):
        names = _member(content, places, f"{layout.folder}/{layout.classes}", file).decode("utf-8", "replace")
        classes = tuple(names.split())
    else:
        meta = _unpickled(content, places, f"{layout.folder}/{layout.meta}", file)
        classes = _texts(meta.get(layout.classes), file)
    images = Split(*(np.concatenate(columns) for columns in zip(*rows, strict=True)))
    if len(classes) < 2 or images.labels.min() < 0 or images.labels.max() >= len(classes):
        raise AutoFormerError(f"{file}: its labels do not fit its {len(classes)} classes; `make data` brings it again")
    return Delivered(
        title=layout.title,
        classes=classes,
        rows=images,
        splits=np.array(splits),
        encoding="raw",
        image_size=IMAGE_SIZE,
        channels=3,
        archives={archive: hash_file(file)},
        licence="not stated by the authors; they ask to cite Krizhevsky, Learning Multiple Layers of Features (2009)",
        source="https://www.cs.toronto.edu/~kriz/cifar.html",
    )


def _records(content: bytes, places: dict[str, slice], archive: str, name: str, label_bytes: int, file: Path) -> Split:
    """A batch of the binary version: labels and pixels of one image, then of the next."""
    batch = np.frombuffer(_member(content, places, name, file), dtype=np.uint8)
    length = label_bytes + _IMAGE_BYTES
    if not len(batch) or len(batch) % length:
        raise AutoFormerError(f"{file}: {name} has other pixels than images of 32 x 32 x 3 bytes")
    records = batch.reshape(-1, length)
    return Split(
        archives=np.full(len(records), archive, dtype=object),
        offsets=places[name].start + label_bytes + length * np.arange(len(records), dtype=np.int64),
        sizes=np.full(len(records), _IMAGE_BYTES, dtype=np.int32),
        labels=records[:, label_bytes - 1].astype(np.int32),
        checksums=image_checksums(records[:, label_bytes:]),
    )


def _member(content: bytes, places: dict[str, slice], name: str, file: Path) -> bytes:
    if name not in places:
        raise AutoFormerError(f"{file}: holds no {name}; `make data` brings it again")
    return content[places[name]]


def _places(content: bytes, file: Path) -> dict[str, slice]:
    """Where each file of the archive lies in its decompressed bytes."""
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            return {info.name: slice(info.offset_data, info.offset_data + info.size) for info in tar if info.isfile()}
    except tarfile.TarError as error:
        raise AutoFormerError(f"{file}: not readable as a tar ({error}); `make data` brings it again") from None


def _batch(content: bytes, places: dict[str, slice], archive: str, name: str, labels_key: bytes, file: Path) -> Split:
    values = _unpickled(content, places, name, file)
    pixels, labels = values.get(b"data"), values.get(labels_key)
    if (
        not isinstance(pixels, _Array)
        or not isinstance(labels, list)
        or not all(type(label) is int for label in labels)
    ):
        raise AutoFormerError(f"{file}: {name} has no pixels or no labels; `make data` brings it again")
    raw = pixels.values((len(labels), _IMAGE_BYTES))
    if raw is None:
        raise AutoFormerError(
            f"{file}: {name} has other pixels than {len(labels)} images of 32 x 32 x 3 bytes, one behind the other; "
            "give the binary version of the archive"
        )
    start = places[name].start + _find(content[places[name]], raw, f"{file}: {name}")
    return Split(
        archives=np.full(len(labels), archive, dtype=object),
        offsets=start + _IMAGE_BYTES * np.arange(len(labels), dtype=np.int64),
        sizes=np.full(len(labels), _IMAGE_BYTES, dtype=np.int32),
        labels=np.array(labels, dtype=np.int32),
        checksums=image_checksums(np.frombuffer(raw, dtype=np.uint8).reshape(-1, _IMAGE_BYTES)),
    )


def _find(pickled: bytes, raw: bytes, where: str) -> int:
    """The offset of `raw` in the pickle that holds it: behind its length."""
    length = _LENGTH.pack(len(raw))
    place = pickled.find(length)
    while place >= 0:
        start = place + _LENGTH.size
        if pickled[start : start + len(raw)] == raw:
            return start
        place = pickled.find(length, place + 1)
    raise AutoFormerError(
        f"{where} holds its pixels in another form than the published one; `make data` brings it again"
    )


def _unpickled(content: bytes, places: dict[str, slice], name: str, file: Path) -> dict[bytes, Any]:
    pickled = _member(content, places, name, file)
    try:
        values = _PlainUnpickler(io.BytesIO(pickled), encoding="bytes").load()
    except Exception as error:  # a pickle that is damaged, or made to harm, may raise anything
        raise AutoFormerError(f"{file}: {name} is not readable ({error}); `make data` brings it again") from None
    if not isinstance(values, dict):
        raise AutoFormerError(f"{file}: {name} is not a batch of CIFAR; `make data` brings it again")
    return values


def _texts(names: Any, file: Path) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise AutoFormerError(f"{file}: holds no names of classes; `make data` brings it again")
    return tuple(name.decode("utf-8", "replace") for name in names)


class _Array:
    """A pickled numpy array, as the pickle describes it; no code of numpy's runs."""

    state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def values(self, shape: tuple[int, int]) -> bytes | None:
        """Its bytes, if it is an array of single bytes of that shape, row by row; else None."""
        if len(self.state) != 5:
            return None
        _, its_shape, kind, by_column, raw = self.state
        is_bytes = isinstance(kind, _Kind) and kind.name in (b"u1", "u1") and isinstance(raw, bytes)
        fits = its_shape == shape and not by_column and len(raw) == shape[0] * shape[1] if is_bytes else False
        return raw if fits else None


class _Kind:
    """A pickled numpy dtype."""

    def __init__(self, name: Any = b"", *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        pass


class _PlainUnpickler(pickle.Unpickler):
    """Makes plain values, and stand-ins for numpy arrays. Any other class is refused, so no code can hide in a file."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _Kind,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return known[module, name]
