"""PNG and JPEG files without the metadata that keeps a decoder from sound pixels. Torch-free."""

import struct
import zlib
from collections.abc import Callable

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"  # first bytes
SCAN = 0xDA  # marker of a JPEG file: the pixels begin
_END_OF_JPEG = b"\xff\xd9"
_ADOBE = 14  # least bytes of the segment with the colour transform


def essentials(content: bytes, decode: Callable[[bytes], bytes]) -> bytes | None:
    """A PNG or JPEG file without metadata except EXIF, and with an end; None for other files.

    `decode`: the pixels of a file, as bytes. It may raise any error.
    """
    if content.startswith(PNG):
        return _png_essentials(content)
    if not content.startswith(JPEG):
        return None
    jpeg = _jpeg_essentials(content)
    return jpeg + _END_OF_JPEG if _lacks_its_end_alone(jpeg, decode) else jpeg


def _png_essentials(content: bytes) -> bytes:
    """The chunks that define the pixels, and an intact eXIf."""
    kept, at = [PNG], len(PNG)
    while at + 12 <= len(content):
        (length,), kind = struct.unpack_from(">I", content, at), content[at + 4 : at + 8]
        chunk = content[at : at + 12 + length]
        sound = kind == b"eXIf" and struct.pack(">I", zlib.crc32(chunk[4:-4])) == chunk[-4:]
        if kind[:1].isupper() or sound or (kind == b"tRNS" and _is_colour(content, length)):
            kept.append(chunk)
        at += len(chunk)
    return b"".join(kept)


def _is_colour(content: bytes, length: int) -> bool:
    """Whether a tRNS chunk of this length can define a transparent colour; others are ignored, as in libpng."""
    colour_type = content[len(PNG) + 17] if len(content) > len(PNG) + 17 else 6  # with alpha
    return length == {0: 2, 2: 6}.get(colour_type) or (colour_type == 3 and length <= 256)


def _lacks_its_end_alone(jpeg: bytes, decode: Callable[[bytes], bytes]) -> bool:
    """Whether a JPEG file has all pixels, but not the marker of its end, which some cameras leave out.

    A decoder fills in missing pixels. So other bits behind those that are there change the image if some are missing.
    """
    if jpeg.rstrip(b"\0").endswith(_END_OF_JPEG):
        return False
    try:
        decoded = {decode(jpeg + further + _END_OF_JPEG) for further in (b"", b"\x55" * 64, b"\x2b" * 64)}
    except Exception:  # Pillow raises many kinds for a damaged file
        return False
    return len(decoded) == 1


def _jpeg_essentials(content: bytes) -> bytes:
    """The file without comments and application segments, except JFIF, EXIF and Adobe's colour transform."""
    kept, at = [content[:2]], 2
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != SCAN:
        marker, (length,) = content[at + 1], struct.unpack_from(">H", content, at + 2)
        segment = content[at : at + 2 + length]
        exif = marker == 0xE1 and segment[4:10] == b"Exif\0\0"
        adobe = marker == 0xEE and length >= _ADOBE
        if exif or adobe or marker == 0xE0 or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(segment)
        at += 2 + length
    return b"".join((*kept, content[at:]))
