"""Write PNG files fast: drawings compressed, photographs uncompressed.

A compressed row is its difference from the row above, as run lengths in Huffman codes. Pillow's writer tries five
filters on each row, which takes two to three times as long for files 5 to 8 % smaller. A photograph hardly compresses,
and compression would make writing, and reading in every epoch, ten times as slow.
"""

import struct
import zlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image
from zlib_ng import zlib_ng  # its checksums take a tenth of zlib's time

from autoformer.images.essentials import PNG

_COLOUR_TYPE = {"L": 0, "RGB": 2}
_NO_FILTER, _UP = b"\x00", b"\x02"  # PNG filters: the row itself, or its difference from the row above
_BLOCK = 2**16 - 1  # maximum bytes of a stored block
_FULL_BLOCK = struct.pack("<BHH", 0, _BLOCK, 0)  # its header, if it is not the last
_FASTEST = 1  # zlib level
_WINDOW_BITS, _MEMORY_LEVEL = 15, 9
_STRIDE = 31  # bytes
_FEW_VALUES = 0.2  # probability that two differences are equal; 0.01 to 0.2 for photographs


def encode_png(image: Image.Image) -> bytes:
    """The PNG file of an image of mode L or RGB."""
    row = image.width * len(image.getbands()) + 1
    padded = raw_rows(image, row)  # a zero after each row, where the next one's filter belongs
    flat = np.frombuffer(padded, np.uint8)
    if _is_drawing(flat, row):
        rows = flat.reshape(image.height, row)
        differences = rows.copy()
        differences[1:] -= rows[:-1]  # modulo 256
        differences[:, -1] = ord(_UP)
        deflate = zlib.compressobj(_FASTEST, zlib.DEFLATED, _WINDOW_BITS, _MEMORY_LEVEL, zlib.Z_RLE)
        pixels: list[bytes | memoryview] = [deflate.compress(_UP + differences.tobytes()[:-1]), deflate.flush()]
    else:
        pixels = _stored(_NO_FILTER, memoryview(padded)[:-1])
    return b"".join([_start(image.size, image.mode), *_chunk(b"IDAT", pixels), _END])


@lru_cache(1000)
def _start(size: tuple[int, int], mode: str) -> bytes:
    """All before the pixels. Many images of a data set have the same."""
    header = struct.pack(">IIBBBBB", *size, 8, _COLOUR_TYPE[mode], 0, 0, 0)
    return b"".join([PNG, *_chunk(b"IHDR", [header])])


def raw_rows(image: Image.Image, row: int) -> bytes:
    """The rows of an image of mode L or RGB, each filled with zeros to `row` bytes.

    As `Image.tobytes`, which joins parts of 64 KB: that takes as long again.
    """
    image.load()
    encoder = Image._getencoder(image.mode, "raw", (image.mode, row))
    encoder.setimage(image.im, (0, 0, *image.size))
    _, _, rows = encoder.encode(row * image.height)
    return rows


def _is_drawing(pixels: npt.NDArray[np.uint8], row: int) -> bool:
    """Whether sampled bytes have few distinct differences from those above them, so the image compresses well."""
    differences = pixels[row::_STRIDE] - pixels[:-row:_STRIDE]
    counts = np.bincount(differences)
    return bool(counts @ counts >= _FEW_VALUES * len(differences) ** 2)


def _stored(first: bytes, rest: memoryview) -> list[bytes | memoryview]:
    """A zlib stream of `first` and `rest` in stored blocks (RFC 1950 and 1951), without a copy of them."""
    start, stream = 0, list[bytes | memoryview]([b"\x78\x01"])
    checksum = zlib_ng.adler32(rest, zlib_ng.adler32(first))
    for end in range(_BLOCK - len(first), len(rest), _BLOCK):
        stream += (_FULL_BLOCK + first, rest[start:end])
        start, first = end, b""
    size = len(first) + len(rest) - start
    return [*stream, struct.pack("<BHH", 1, size, size ^ _BLOCK) + first, rest[start:], struct.pack(">I", checksum)]


def _chunk(kind: bytes, content: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    checksum = zlib_ng.crc32(kind)
    for part in content:
        checksum = zlib_ng.crc32(part, checksum)
    return [struct.pack(">I", sum(map(len, content))), kind, *content, struct.pack(">I", checksum)]


_END = b"".join(_chunk(b"IEND", []))
