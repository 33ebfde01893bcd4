"""Open image files from outside: named raster formats, regular files and bounded memory. Torch-free.

No other module opens pictures. Other formats are refused by name: Pillow passes some of them to other
programs. Metadata decides nothing but the orientation.
"""

import io
import re
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import IO, TypeVar, cast

from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from autoformer.bounds import BOUNDS
from autoformer.errors import AutoFormerError, quantity
from autoformer.images.essentials import JPEG, PNG, essentials
from autoformer.images.image_files import MOST_FILE_BYTES, EncodedFile, name_of, opened, search_scan

# Bytes that a pixel takes at most between the encoded file and the resized image, as measured.
FORMATS = {
    "PNG": 9, "JPEG": 5, "MPO": 5, "GIF": 6, "BMP": 9, "PPM": 13, "TIFF": 13, "WEBP": 17, "JPEG2000": 25, "AVIF": 20,
}  # fmt: skip
_PROGRESSIVE = 12  # JPEG files of several scans, which are decoded as a whole, or of four channels
_PLAIN = 100  # PPM files of decimal digits: a limit of time, since Pillow decodes a million numbers a second
MOST_BYTES = BOUNDS.image_bytes
LONGEST_TO_SHORTEST = BOUNDS.image_sides  # the centre crop of a longer strip shows nearly nothing
MOST_SCANNED = BOUNDS.image_scans  # each scan touches every pixel again
_MOST_HEADER_BYTES = 4096  # read to recognise the format
_ORIENTATION = 0x0112  # EXIF
_TILE_SIDES = (322, 323)  # TIFF
_OFFSETS = (273, 324)  # TIFF: of strips, of tiles
_OPAQUE_TYPES = (1, 2, 7)  # TIFF: bytes and text, which Pillow keeps as they are
PHOTOMETRIC, _YCBCR = 262, 6  # TIFF
_SUBFILE, _DNG = 254, 50706  # TIFF: a camera's raw file is one, and begins with a thumbnail
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# First bytes of files that users have among their photographs -> format, and a tool that converts it.
_OTHER_FORMATS = (
    (rb".{4}ftyp(hei[cfmsx]|hev[cmsx]|mif1|msf1)", "HEIC", "`magick mogrify -format jpg *.HEIC`"),
    (rb"\xff\x0a|\x00\x00\x00\x0cJXL ", "JPEG XL", "`djxl`"),
    (rb"II\x2a\x00.{4}CR|FUJIFILMCCD-RAW|II[UR][\x00OS]|.{4}ftypcrx ", "raw camera", "`darktable-cli`"),
    (rb"8BPS", "Photoshop", "`magick`"),
    (rb"(\xef\xbb\xbf)?\s{0,64}<(?!(?i:!doctype html|html))([^\0]{0,4000}<)?(\w{1,16}:)?svg", "SVG", "`rsvg-convert`"),
    (rb"%PDF-", "PDF", "`pdftoppm`"),
    (rb".{128}DICM", "DICOM", "`dcmj2pnm`"),
    (rb".{4}ftyp(isom|mp4|qt  )|\x1aE\xdf\xa3", "video", "`ffmpeg`"),
    (rb"II[*+]\0|MM\0[*+]", "TIFF of an unusual kind of pixels", "`magick`"),
)
_TEXTS = (  # what a server answers in place of an image
    (rb"(\xef\xbb\xbf)?\s{0,64}(<!doctype html|<html)", "a web page"),
    (rb"(\xef\xbb\xbf)?\s{0,64}(<\?xml|<!--)", "XML"),
    (rb"(\xef\xbb\xbf)?\s{0,64}\{\s{0,64}\"", "JSON"),
)
_XMP = ("XML:com.adobe.xmp", "xmp")  # in `Image.info`
_NOT_PILLOW = ("ignore", None, Warning, re.compile(r"PIL\."), 0)  # as the list of filters has it
Result = TypeVar("Result")


def with_image(source: Path | bytes, use: Callable[[Image.Image], Result], most_bytes: int = MOST_BYTES) -> Result:
    """Call `use` with the image, not yet decoded; again without the metadata if that fails.

    Raises:
        AutoFormerError: not a regular file, too narrow, or too large to decode within `most_bytes`.
        Exception: any of Pillow's; call inside `autoformer.images.pixels.pillow_errors`.
    """
    try:
        with opened(source) as file, _open(file, source, most_bytes) as image:
            return use(image)
    except (AutoFormerError, Image.DecompressionBombError):
        raise
    except Exception:  # Pillow raises many kinds for odd metadata
        content = _content(source)
        plain = essentials(content, partial(_pixels, most_bytes=most_bytes))
        if plain is None:
            raise
        with opened(plain) as file, _open(file, source, most_bytes) as image:
            return use(image)


def _content(source: Path | bytes) -> bytes:
    """The bytes of a PNG or JPEG file; b"" for other files and one that is too large."""
    if isinstance(source, bytes):
        return source
    if source.stat().st_size > MOST_FILE_BYTES:
        return b""
    with source.open("rb") as file:
        start = file.read(len(PNG))
        return start + file.read() if start.startswith((PNG, JPEG)) else b""


def _pixels(content: bytes, most_bytes: int) -> bytes:
    with opened(content) as file, _open(file, content, most_bytes) as image:
        return image.tobytes()


class _Directory(TiffImagePlugin.ImageFileDirectory_v2):
    """The tags of a TIFF file or of EXIF. Pillow copies bytes that tags share, and makes an object of each number."""

    def load(self, fp: IO[bytes]) -> None:
        here = fp.tell()
        size = fp.seek(0, io.SEEK_END)
        fp.seek(here)
        super().load(cast("IO[bytes]", _Once(fp, size)))
        for tag, data in self._tagdata.items():
            kind = self.tagtype[tag]
            numbers = len(data) // self._load_dispatch[kind][0] if kind not in _OPAQUE_TYPES or tag in _OFFSETS else 0
            if numbers > BOUNDS.image_tag_numbers:
                raise ValueError(f"its tag {tag} has {quantity(numbers, 'number')}")


class _Once(io.BufferedIOBase):
    """A file of which no more bytes are read than it has."""

    def __init__(self, file: IO[bytes], left: int) -> None:
        self._file, self._left = file, left
        self.tell, self.seek = file.tell, file.seek  # type: ignore[method-assign]

    def read(self, size: int | None = -1, /) -> bytes:
        content = self._file.read(-1 if size is None else size)
        self._left -= len(content)
        if self._left < 0:
            raise ValueError("its tags share their bytes")
        return content


TiffImagePlugin.ImageFileDirectory_v2 = _Directory  # type: ignore[misc]  # which all of Pillow's formats use


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 if it is missing or unreadable."""
    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception:  # Pillow raises many kinds for odd metadata
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def turned_upright(image: Image.Image) -> Image.Image:
    """The image turned by its EXIF orientation."""
    turn = _TURNS.get(orientation(image))
    if turn is None:
        return image
    upright = image.transpose(turn)
    upright.info = {key: value for key, value in image.info.items() if "exif" not in key and "xmp" not in key}
    return upright


def _open(file: EncodedFile, source: Path | bytes, most_bytes: int) -> Image.Image:
    where = name_of(source)
    # Pillow warns of large images and odd metadata, but reads them. catch_warnings is not thread-safe.
    if warnings.filters[:1] != [_NOT_PILLOW]:
        warnings.filterwarnings("ignore", module=_NOT_PILLOW[3].pattern)
    try:
        image = Image.open(file, formats=_formats())
        file.most = BOUNDS.image_reads
        for key in _XMP:  # may hold an orientation of before the pixels were turned, which Pillow would apply
            image.info.pop(key, None)
    except UnidentifiedImageError:
        raise _other_format(source, where) or UnidentifiedImageError(where) from None
    try:
        if image.format == "TIFF" and (image.tag_v2.get(_SUBFILE, 0) == 1 or _DNG in image.tag_v2):  # type: ignore[attr-defined]
            raise _not_read(where, "raw camera", "`darktable-cli`")
        if image.format == "TIFF" and _is_uncompressed_ycbcr(image):
            raise _not_read(where, "raw YCbCr TIFF", "`magick`")
        whole = image.format in ("JPEG", "MPO") and _has_several_scans(image, file)
        _check_size(image, where, most_bytes, whole)
        if whole:
            _check_scans(image, source, where, most_bytes)
    except AutoFormerError:
        image.close()
        raise
    return image


def _is_uncompressed_ycbcr(image: Image.Image) -> bool:
    """Whether a TIFF's YCbCr pixels are uncompressed: Pillow lacks that, and calls the file cut short."""
    codecs = {codec for codec, *_ in getattr(image, "tile", ())}
    return image.tag_v2.get(PHOTOMETRIC) == _YCBCR and "raw" in codecs  # type: ignore[attr-defined]


def _other_format(source: Path | bytes, where: str) -> AutoFormerError | None:
    """The refusal of a file that is an image or a video of a format beyond the list, None for anything else."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            source = file.read(_MOST_HEADER_BYTES)
    for form, kind, tool in _OTHER_FORMATS:
        if re.match(form, source[:_MOST_HEADER_BYTES], re.DOTALL):
            return _not_read(where, kind, tool)
    if source.startswith(b"version https://git-lfs"):
        return AutoFormerError(f"{where}: a pointer of Git LFS in place of the image; fetch it with `git lfs pull`")
    if not source:
        return AutoFormerError(f"{where}: an empty file; copy or download it again")
    for form, kind in _TEXTS:
        if re.match(form, source, re.IGNORECASE):
            return AutoFormerError(f"{where}: not an image but {kind}, perhaps a server's refusal; download it again")
    return None


def _not_read(where: str, kind: str, tool: str) -> AutoFormerError:
    return AutoFormerError(f"{where}: a {kind} file, which is not read; convert it to JPEG or PNG, as by {tool}")


@cache
def _formats() -> list[str]:
    """The formats of the list that the installed Pillow supports."""
    if not FORMATS.keys() - {"MPO"} <= Image.OPEN.keys():
        Image.init()
    return [name for name in FORMATS if name in Image.OPEN]  # MPO is opened as JPEG


def _has_several_scans(image: Image.Image, file: EncodedFile) -> bool:
    """Whether a JPEG file is progressive, its first scan has not all its channels, or odd bytes stand before that."""
    scanned = file.channels or search_scan(file)
    return "progressive" in image.info or scanned != len(image.getbands())


def _check_size(image: Image.Image, where: str, most_bytes: int, whole: bool) -> None:
    width, height = image.size
    if max(width, height) > LONGEST_TO_SHORTEST * min(width, height):
        raise AutoFormerError(
            f"{where}: an image of {width} x {height} pixels is too narrow, its sides may differ by "
            f"{LONGEST_TO_SHORTEST} times at most; crop it"
        )
    each = FORMATS[image.format or "PNG"]
    if whole or (image.format in ("JPEG", "MPO") and image.mode not in ("L", "RGB")):
        each = _PROGRESSIVE
    if image.format == "PPM" and any(codec == "ppm_plain" for codec, *_ in getattr(image, "tile", ())):
        each = _PLAIN
    pixels = width * height
    if tags := getattr(image, "tag_v2", None):  # a TIFF's tiles may be larger than the image
        sides = [tags.get(tag) for tag in _TILE_SIDES]
        if all(isinstance(side, int) for side in sides):
            pixels = max(pixels, sides[0] * sides[1])
    if pixels * each > most_bytes:
        raise AutoFormerError(
            f"{where}: an image of {width} x {height} pixels is too large, a {image.format} file may have "
            f"{most_bytes // each / 1e6:.0f} million pixels at most; make it smaller"
        )


def _check_scans(image: Image.Image, source: Path | bytes, where: str, most_bytes: int) -> None:
    if isinstance(source, Path):
        with source.open("rb") as file:
            source = file.read(MOST_FILE_BYTES)
    scans = source.count(b"\xff\xda")  # entropy-coded data holds no marker
    if scans * image.width * image.height > MOST_SCANNED * most_bytes // MOST_BYTES:
        raise AutoFormerError(
            f"{where}: a JPEG file of {scans} scans takes too long to decode; save it as a baseline JPEG"
        )
