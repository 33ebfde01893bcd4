"""One request to a served model takes at most 300 MB and 10 seconds, whatever it holds."""

import base64
import io
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

from autoformer.bounds import BOUNDS
from autoformer.cards import Preprocessing, SubnetCard
from autoformer.checkpoint import save_subnet
from autoformer.named import load_space
from autoformer.vit import AutoFormer
from runtime.tracking.served_model import ServedModel

MOST_MB, MOST_SECONDS = 300, 10.0


def memory_mb(line: str) -> float:
    """`VmRSS`, the memory of this process, or `VmHWM`, its peak since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(next(text for text in status.splitlines() if text.startswith(line)).split()[1]) / 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    space, folder = load_space("photos-64"), tmp_path_factory.mktemp("served") / "model"
    preprocessing = Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3, classes=tuple(map(str, range(space.num_classes))))
    card = SubnetCard(space=space, subnet=space.largest, preprocessing=preprocessing, provenance={})
    save_subnet(folder, AutoFormer.from_spec(space, space.largest), card)
    model = ServedModel()
    model.load_context(SimpleNamespace(artifacts={"model": str(folder)}))
    return model


def encoded(kind: str, side: int, mode: str = "RGB", **options: object) -> str:
    out = io.BytesIO()
    Image.new(mode, (side, side)).save(out, kind, **options)
    return base64.b64encode(out.getvalue()).decode()


def largest(kind: str, bytes_per_pixel: int, mode: str = "RGB", **options: object) -> str:
    """An image that is just allowed."""
    return encoded(kind, int((BOUNDS.served_image_bytes / bytes_per_pixel) ** 0.5) - 1, mode, **options)


REQUESTS = {
    "one small image": (lambda: encoded("PNG", 64), 1, "1 rows"),
    "the largest PNG": (lambda: largest("PNG", 9, "RGBA"), 1, "1 rows"),
    "many of the largest": (lambda: largest("PNG", 9, "RGBA"), 50, "million pixels"),
    "the largest JPEG 2000": (lambda: largest("JPEG2000", 25), 1, "1 rows"),
    "many JPEG 2000": (lambda: largest("JPEG2000", 25), 20, "INVALID_PARAMETER_VALUE"),
    "a larger one": (lambda: encoded("PNG", 5000), 1, "too large"),
    "many rows": (lambda: encoded("PNG", 64), 100, "100 rows"),
    "more rows": (lambda: encoded("PNG", 64), BOUNDS.served_rows + 1, "a request may have"),
    "much text": (lambda: "A" * (BOUNDS.served_text + 4), 1, "MB of images"),
    "many numbers": (lambda: "", 1, "too many"),
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_request_takes_at_most_300_mb_and_10_seconds(kind: str, served: ServedModel) -> None:
    make, count, wanted = REQUESTS[kind]
    name, value = ("pixels", [[0] * 3000] * 3000) if kind == "many numbers" else ("image", make())
    request = pd.DataFrame([{name: value}] * count)
    forget_peak()
    before, start = memory_mb("VmRSS"), time.monotonic()
    try:
        answer = f"{len(served.predict(None, request))} rows"
    except MlflowException as error:
        answer = f"{error.error_code}: {error}"
    assert wanted in answer
    assert time.monotonic() - start <= MOST_SECONDS
    assert memory_mb("VmHWM") - before <= MOST_MB


@pytest.mark.parametrize(
    "pixels", [1, [1, 2], [[1], [1, 2]], [["x"]], [[[1, 2]]], [], [[]], [[-1]], [[None]], "ab", [{}]]
)
def test_numbers_of_another_shape_are_refused(pixels: object, served: ServedModel) -> None:
    with pytest.raises(MlflowException, match=r"pixels: (expected|not readable)|neither"):
        served.predict(None, pd.DataFrame([{"pixels": pixels}]))
