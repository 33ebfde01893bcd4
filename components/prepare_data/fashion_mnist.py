"""Fashion-MNIST as delivered: four gzipped IDX files (Xiao, Rasul, Vollgraf, arXiv 1708.07747)."""

from pathlib import Path

import numpy as np

from autoformer.errors import AutoFormerError, quantity
from autoformer.files import hash_file
from autoformer.images.split_files import Split, image_checksums
from autoformer.images.split_images import check_archive, read_archive
from components.prepare_data.delivered import Delivered, concatenate, make_rows

NAME = "fashion-mnist"
TITLE = "Fashion-MNIST"
LICENCE = "MIT, copyright 2017 Zalando SE"
SOURCE = "https://github.com/zalandoresearch/fashion-mnist"
IMAGE_SIZE = 28
CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

# sha256 of the published files; torchvision and the authors publish md5 sums of the same bytes.
ARCHIVES = {
    "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}

_IDX_UNSIGNED_BYTES = 8


def read(data: Path) -> Delivered:
    """The published images. Raises `AutoFormerError` unless the files are the published ones, byte for byte."""
    for name, sha256 in ARCHIVES.items():
        check_archive(data / name, sha256)
    return index(data)


def index(data: Path) -> Delivered:
    """The images of any files in this layout.

    Raises `AutoFormerError` if a file is missing or damaged, or has other content than its name says.
    """
    train, test = (_read_pair(data, prefix) for prefix in ("train", "t10k"))
    return Delivered(
        title=TITLE,
        classes=CLASSES,
        rows=concatenate([train, test]),
        splits=np.repeat(["train", "test"], [len(train.labels), len(test.labels)]),
        encoding="raw",
        image_size=IMAGE_SIZE,
        channels=1,
        archives={name: hash_file(data / name) for name in ARCHIVES},
        licence=LICENCE,
        source=SOURCE,
    )


def _read_pair(data: Path, prefix: str) -> Split:
    """The rows of `train` or `t10k`."""
    name = f"{prefix}-images-idx3-ubyte.gz"
    pixels, start = _read_idx(data / name, dimensions=3)
    labels, _ = _read_idx(data / f"{prefix}-labels-idx1-ubyte.gz", dimensions=1)
    count = len(pixels)
    if pixels.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE) or count == 0:
        raise AutoFormerError(f"{data / name}: expected images of 28 x 28 pixels, found shape {pixels.shape}")
    if len(labels) != count or labels.max() >= len(CLASSES):
        raise AutoFormerError(
            f"{data}: the {prefix} files do not fit together: {quantity(count, 'image')}, "
            f"{quantity(len(labels), 'label')}"
        )
    offsets = start + pixels[0].size * np.arange(count, dtype=np.int64)
    return make_rows(name, offsets, pixels[0].size, labels, image_checksums(pixels))


def _read_idx(path: Path, dimensions: int) -> tuple[np.ndarray, int]:
    """The array of an IDX file, and the offset of its values.

    IDX: two zero bytes, the type, the number of dimensions, each dimension as 4 bytes (big-endian), the values.
    """
    content, start = read_archive(path), 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes([0, 0, _IDX_UNSIGNED_BYTES, dimensions]):
        raise AutoFormerError(
            f"{path}: not an IDX file of {quantity(dimensions, 'dimension')}; `make data` fetches it again"
        )
    shape = tuple(np.frombuffer(content, dtype=">u4", offset=4, count=dimensions).tolist())
    values = np.frombuffer(content, dtype=np.uint8, offset=start)
    if len(values) != np.prod(shape):
        raise AutoFormerError(
            f"{path}: {quantity(len(values), 'value')} for the shape {shape}; `make data` fetches it again"
        )
    return values.reshape(shape), start
