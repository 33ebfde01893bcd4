"""CIFAR-10 and CIFAR-100 as delivered: a gzipped tar of pickles, or of binary records (Krizhevsky 2009).

An image is 3,072 bytes at an offset of the decompressed archive. torchvision's reader is not used: it runs the code in
a pickle, gives pixels without their offsets, and cannot read the binary version. Here a pickle can create only plain
values and records of numpy's arguments, so none of its code runs.
"""

import io
import pickle
import pickletools
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from autoformer.bounds import BOUNDS
from autoformer.errors import AutoFormerError, quantity
from autoformer.files import hash_file
from autoformer.images.split_files import Split, image_checksums
from autoformer.images.split_images import read_archive
from autoformer.reading import in_short
from components.prepare_data.delivered import Delivered, concatenate, make_rows

IMAGE_SIZE = 32
_IMAGE_BYTES = 3 * IMAGE_SIZE**2


class _Layout(NamedTuple):
    folder: str  # prefix of all members
    train: tuple[str, ...]  # training batches
    test: str  # test batch
    classes: str  # member with the class names
    label_bytes: int = 0  # binary version: bytes before each image, of which the last is the label


_FIVE = tuple(f"data_batch_{number}" for number in range(1, 6))
_FIVE_BINARY = tuple(f"{name}.bin" for name in _FIVE)
LAYOUTS = {
    "cifar-10-python.tar.gz": _Layout("cifar-10-batches-py", _FIVE, "test_batch", "batches.meta"),
    "cifar-100-python.tar.gz": _Layout("cifar-100-python", ("train",), "test", "meta"),
    "cifar-10-binary.tar.gz": _Layout("cifar-10-batches-bin", _FIVE_BINARY, "test_batch.bin", "batches.meta.txt", 1),
    "cifar-100-binary.tar.gz": _Layout("cifar-100-binary", ("train.bin",), "test.bin", "fine_label_names.txt", 2),
}


def is_mine(data: Path) -> bool:
    return any((data / name).is_file() for name in LAYOUTS)


def read(data: Path) -> Delivered:
    """Index the archive. Raises `AutoFormerError` if it is damaged, or not laid out as the published one."""
    name = next(name for name in LAYOUTS if (data / name).is_file())
    layout, archive = LAYOUTS[name], _Archive(data / name)
    *members, meta = (f"{layout.folder}/{member}" for member in (*layout.train, layout.test, layout.classes))
    if layout.label_bytes:
        batches = [_read_records(archive, member, layout.label_bytes) for member in members]
        classes: Any = archive.read(meta).split()
    else:
        batches = [_read_pickle(archive, member) for member in members]
        values = archive.unpickle(meta)
        classes = values.get(b"label_names", values.get(b"fine_label_names"))
        if not isinstance(classes, list) or not all(isinstance(text, bytes) for text in classes):
            raise archive.error("holds no names of classes")
    rows = concatenate(batches)
    if len(classes) < 2 or rows.labels.min() < 0 or rows.labels.max() >= len(classes):
        raise archive.error(f"its labels do not fit its {quantity(len(classes), 'class')}")
    tested = len(batches[-1].labels)
    return Delivered(
        title=f"CIFAR-{name.split('-')[1]}",
        classes=tuple(text.decode("utf-8", "replace") for text in classes),
        rows=rows,
        splits=np.repeat(["train", "test"], [len(rows.labels) - tested, tested]),
        encoding="raw",
        image_size=IMAGE_SIZE,
        archives={name: hash_file(archive.file)},
        licence="not stated by the authors; they ask to cite Krizhevsky, Learning Multiple Layers of Features (2009)",
        source="https://www.cs.toronto.edu/~kriz/cifar.html",
    )


class _Headers(io.BytesIO):
    """The bytes of a tar for `tarfile`, which would copy and parse a header of any size."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= BOUNDS.tar_header_bytes:
            raise tarfile.ReadError(f"a header of {size} bytes at byte {self.tell()}")
        return super().read(size)


class _Archive:
    """The decompressed bytes of an archive, and the offsets of its members."""

    def __init__(self, file: Path) -> None:
        self.file, self.content = file, read_archive(file)
        try:
            with tarfile.open(fileobj=_Headers(self.content), mode="r:") as tar:
                self._members = {i.name: slice(i.offset_data, i.offset_data + i.size) for i in tar if i.isfile()}
        except Exception as error:  # tarfile raises many kinds for a damaged header
            raise self.error(f"not readable as a tar ({in_short(error)})") from None

    def error(self, reason: str, remedy: str = "`make data` downloads it again") -> AutoFormerError:
        return AutoFormerError(f"{self.file}: {reason}; {remedy}")

    def member(self, name: str) -> slice:
        if name not in self._members:
            raise self.error(f"holds no {name}")
        return self._members[name]

    def read(self, name: str) -> bytes:
        return self.content[self.member(name)]

    def unpickle(self, name: str) -> dict[bytes, Any]:
        pickled = self.read(name)
        try:
            for operation, argument, _ in pickletools.genops(pickled):
                if "PUT" in operation.name and isinstance(argument, int) and argument > len(pickled):
                    raise pickle.UnpicklingError("a memory of too many values")  # Python would allocate all of it
            values = _PlainUnpickler(io.BytesIO(pickled), encoding="bytes").load()
        except Exception as error:  # a damaged or harmful pickle may raise anything
            raise self.error(f"{name} is not readable ({in_short(error)})") from None
        if not isinstance(values, dict):
            raise self.error(f"{name} is not a batch of CIFAR")
        return values

    def rows(self, start: int, step: int, labels: Any, pixels: np.ndarray) -> Split:
        """Rows of images that start every `step` bytes. `pixels`: uint8 (n, 3072)."""
        offsets = start + step * np.arange(len(pixels), dtype=np.int64)
        return make_rows(self.file.name, offsets, _IMAGE_BYTES, labels, image_checksums(pixels))


def _read_records(archive: _Archive, name: str, label_bytes: int) -> Split:
    """A batch of the binary version: for each image its labels, then its pixels."""
    batch, length = np.frombuffer(archive.read(name), dtype=np.uint8), label_bytes + _IMAGE_BYTES
    if not len(batch) or len(batch) % length:
        raise archive.error(f"{name} has other pixels than images of 32 x 32 x 3 bytes")
    records, start = batch.reshape(-1, length), archive.member(name).start + label_bytes
    return archive.rows(start, length, records[:, label_bytes - 1], records[:, label_bytes:])


def _read_pickle(archive: _Archive, name: str) -> Split:
    """A batch of the Python version: a pickle with one numpy array of pixels."""
    values = archive.unpickle(name)
    labels: Any = values.get(b"labels", values.get(b"fine_labels"))
    array = values.get(b"data")
    plain = isinstance(labels, list) and all(type(label) is int and label.bit_length() < 32 for label in labels)
    if not plain or not isinstance(array, _Recorded):
        raise archive.error(f"{name} has no pixels or no labels")
    shape = len(labels), _IMAGE_BYTES
    match array.state:  # version, shape, type, Fortran order, bytes
        case (_, its_shape, _Recorded(arguments=("u1" | b"u1", *_)), by_column, bytes(raw)) if (
            its_shape == shape and not by_column and len(raw) == shape[0] * shape[1]
        ):
            pixels = np.frombuffer(raw, dtype=np.uint8).reshape(shape)
        case _:
            raise archive.error(
                f"{name} has other pixels than {quantity(len(labels), 'image')} of 32 x 32 x 3 bytes, one behind the "
                "other",
                "give the binary version of the archive",
            )
    member, length = archive.member(name), len(raw).to_bytes(4, "little")  # precedes the bytes in a pickle
    start = archive.content.find(length + raw[:64], member.start, member.stop) + len(length)
    if archive.content[start : start + len(raw)] != raw:
        raise archive.error(f"{name} holds its pixels in another form than the published one")
    return archive.rows(start, _IMAGE_BYTES, labels, pixels)


class _Recorded:
    """The constructor arguments of a numpy array or type in a pickle. No numpy code runs."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _PlainUnpickler(pickle.Unpickler):
    """Creates only plain values and `_Recorded`, and refuses any other class, so no code in a file runs."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in (("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _Recorded
