"""Image files of endless parts, or that decode a digit at a time: refused in a moment."""

import io
import time
from pathlib import Path

import pytest
from PIL import Image
from test_opening_images import chunk, saved

from autoformer.bounds import BOUNDS
from autoformer.errors import AutoFormerError
from autoformer.images import opening
from autoformer.images.pixels import open_image

SMALL = Image.new("RGB", (8, 8))
PNG, JPEG, GIF = (saved(SMALL, kind) for kind in ("PNG", "JPEG", "GIF"))
DATA, PIXELS, HEADER = PNG.index(b"IDAT") - 4, PNG.index(b"IEND") - 4, 2
IMAGE = GIF.index(b"\x2c\0\0\0\0")
MANY = 2 * BOUNDS.image_header_reads
READS = MANY  # instead of BOUNDS.image_reads, so that the test is quick
ENDLESS = {
    "text of a PNG": PNG[:DATA] + chunk(b"tEXt", b"") * MANY + PNG[DATA:],
    "empty pixels of a PNG": PNG[:DATA] + chunk(b"IDAT", b"") * READS + PNG[DATA:],
    "private chunks behind a PNG's pixels": PNG[:PIXELS] + chunk(b"prVt", b"") * READS + PNG[PIXELS:],
    "filling before a JPEG's segment": JPEG[:HEADER] + b"\xff" * MANY + JPEG[HEADER:],
    "filling of a JPEG without pixels": JPEG[:HEADER] + b"\xff" * MANY,
    "comments of a JPEG": JPEG[:HEADER] + b"\xff\xfe\0\2" * MANY + JPEG[HEADER:],
    "segments of applications in a JPEG": JPEG[:HEADER] + b"\xff\xe5\0\2" * MANY + JPEG[HEADER:],
    "comments of a GIF": GIF[:IMAGE] + b"\x21\xfe\1a\0" * MANY + GIF[IMAGE:],
    "one comment of a GIF": GIF[:IMAGE] + b"\x21\xfe" + (b"\xff" + b"a" * 255) * MANY + b"\0" + GIF[IMAGE:],
    "zeros in a GIF": GIF[:IMAGE] + b"\0" * MANY + GIF[IMAGE:],
    "a comment of a PPM": b"P6\n#" + b"x" * MANY + b"\n8 8\n255\n" + b"0" * 192,
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_parts_without_end_are_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "BOUNDS", BOUNDS.model_copy(update={"image_reads": READS}))
    (tmp_path / "a.png").write_bytes(ENDLESS[kind])
    for source in (tmp_path / "a.png", ENDLESS[kind]):
        start = time.process_time()
        with pytest.raises(AutoFormerError, match="chunks, segments or comments; save it again") as caught:
            open_image(source)
        assert time.process_time() - start < 5 and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["P1", "P2", "P3"])
def test_a_ppm_of_digits_may_have_fewer_pixels(kind: str) -> None:
    content = f"{kind}\n5000 5000\n{'' if kind == 'P1' else '255'}\n".encode() + b"0 " * 100
    with pytest.raises(AutoFormerError, match="may have 5 million pixels at most"):
        open_image(content)


def test_honest_files_of_many_parts_are_read() -> None:
    """An animation of 1,000 frames, a TIFF of 2,000 strips, and a PNG with 1,000 lines of text."""
    frames = [Image.new("L", (8, 8), number % 256) for number in range(1000)]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    text = PNG[:DATA] + chunk(b"tEXt", b"a\0b") * 1000 + PNG[DATA:]
    tiff = saved(Image.new("L", (8, 200)), "TIFF", tiffinfo={278: 1})
    for content in (out.getvalue(), text, tiff):
        assert open_image(content).width == 8
