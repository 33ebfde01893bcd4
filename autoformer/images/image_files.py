"""Image files as Pillow reads them: regular, of bounded size, with a bounded number of parts. Torch-free."""

import io
import struct
from pathlib import Path

from autoformer.bounds import BOUNDS
from autoformer.errors import AutoFormerError, quantity
from autoformer.files import check_regular
from autoformer.images.essentials import JPEG, SCAN

MOST_FILE_BYTES = BOUNDS.image_file_bytes
_SEGMENT, _SCAN = struct.Struct(">HH"), 0xFF00 + SCAN
# JPEG's markers before a length, for Pillow as well: without those of restarts, the file's ends and reserved ones.
_SEGMENTS = {*range(0xFFC0, 0xFFC8), *range(0xFFC9, 0xFFD0), *range(0xFFDB, 0xFFF0), 0xFFFE}
_START_BYTES = 8192


def name_of(source: Path | bytes) -> str:
    """The name of an image in error messages."""
    return str(source) if isinstance(source, Path) else f"image of {quantity(len(source), 'byte')}"


class EncodedFile(io.BufferedReader):
    """An image file."""

    def __init__(self, raw: io.FileIO | io.BytesIO, where: str, channels: int) -> None:
        super().__init__(raw)
        self.channels = channels  # as `_channels_scanned` has them
        self.most, self._where, self._reads = BOUNDS.image_header_reads, where, 0


class _Parts(EncodedFile):
    """An image file that limits the header's parts: Pillow reads and keeps each chunk, segment and comment."""

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if self._reads > self.most:
            raise AutoFormerError(
                f"{self._where}: more than {self.most} chunks, segments or comments; save it again without metadata"
            )
        return super().read(size)


def opened(source: Path | bytes) -> EncodedFile:
    """The file, with a limit of its parts unless its start shows that they are few."""
    if isinstance(source, Path):
        check_regular(source)
    raw, where = io.FileIO(source) if isinstance(source, Path) else io.BytesIO(source), name_of(source)
    start = raw.read(_START_BYTES)
    if raw.seek(0, io.SEEK_END) > MOST_FILE_BYTES:
        raw.close()
        raise AutoFormerError(f"{where}: an image file above {MOST_FILE_BYTES >> 20} MB; make it smaller")
    raw.seek(0)
    channels = _channels_scanned(start)
    return (EncodedFile if channels else _Parts)(raw, where, channels)


def _channels_scanned(start: bytes) -> int:
    """Channels in the first scan of a JPEG file; 0 for another file, or if not all segments before it are in `start`.

    Also 0 if one of them is odd, so that Pillow may see others. Most files have few: each read costs Python's time.
    """
    at, last = 2, len(start) - 5 if start.startswith(JPEG) else 0
    while at <= last:
        marker, size = _SEGMENT.unpack_from(start, at)
        if marker not in _SEGMENTS or size < 2:
            return start[at + 4] if marker == _SCAN else 0
        at += 2 + size
    return 0


def search_scan(file: EncodedFile) -> int:
    """Channels in the first scan of a JPEG file; 0 if odd bytes stand before it."""
    here, scanned = file.tell(), 0
    file.seek(2)
    while len(head := file.read(4)) == 4 and head[0] == 0xFF:
        if head[1] == SCAN:
            scanned = int.from_bytes(file.read(1))
            break
        file.seek(int.from_bytes(head[2:]) - 2, io.SEEK_CUR)
    file.seek(here)
    return scanned
