"""What the served model accepts: each everyday writing of an image, over each content type."""

import base64
import csv
import io
import json
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.pyfunc.scoring_server import parse_csv_input
from PIL import Image
from tracking_fixtures import save_random_subnet

from runtime.tracking import models
from runtime.tracking.served_model import TOP, ServedModel

PIXELS = np.random.default_rng(3).integers(0, 256, (40, 31), dtype=np.uint8)


def png() -> bytes:
    out = io.BytesIO()
    Image.fromarray(PIXELS).save(out, "PNG")
    return out.getvalue()


PLAIN = base64.b64encode(png()).decode()
WRITINGS = {
    "line breaks": base64.encodebytes(png()).decode(),
    "Windows' line breaks": base64.encodebytes(png()).decode().replace("\n", "\r\n"),
    "a final newline": f"{PLAIN}\n",
    "the alphabet of URLs": base64.urlsafe_b64encode(png()).decode(),
    "no padding": PLAIN.rstrip("="),
    "a data URL": f"data:image/png;base64,{PLAIN}",
    "a data URL in capitals": f"DATA:image/png;BASE64,{PLAIN}",
    "a data URL with escapes": "data:image/png;base64," + PLAIN.replace("+", "%2B").replace("/", "%2F"),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    folder = tmp_path_factory.mktemp("served")
    save_random_subnet(folder, 0)
    model = ServedModel()
    model.load_context(SimpleNamespace(artifacts={"model": str(folder)}))
    return model


def answer(served: ServedModel, table: Any, **params: int) -> list[Any]:
    return served.predict(None, table, params).to_dict("records")


def from_csv(rows: list[list[str]]) -> Any:
    """The table that MLflow's server makes of a CSV, by the signature of our models."""
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    out.seek(0)
    return parse_csv_input(out, models._signature().inputs)


@pytest.mark.parametrize("writing", WRITINGS)
def test_base64_is_read_however_common_tools_write_it(writing: str, served: ServedModel) -> None:
    wanted = answer(served, from_csv([["image"], [PLAIN]]))
    assert answer(served, from_csv([["image"], [WRITINGS[writing]]])) == wanted
    assert PLAIN not in WRITINGS.values()


def test_a_csv_has_images_or_pixels_as_json_and_other_columns_are_left_alone(served: ServedModel) -> None:
    pixels = json.dumps(PIXELS.tolist())
    first, second = answer(served, from_csv([["id", "image", "pixels"], ["7", PLAIN, ""], ["8", "", pixels]]))
    assert first == second
    assert len(first["classes"]) == TOP


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "no base64!"}, "image: not base64"),
        ({"image": [PLAIN]}, "image: expected the base64 text of a file, found list"),
        ({"image": None}, "a row has neither `image`"),
        ({"image": " \n"}, "image: an empty text"),
        ({"image": f"\ufeff{PLAIN}"}, "image: not base64"),
        ({"pixels": [[0.0, 1.0], [1.0, 0.0]]}, "pixels: found numbers from 0 to 1 alone; .* multiply them by 255"),
        ({"pixels": [[True, False]]}, "pixels: found numbers from 0 to 1 alone"),
        ({"pixels": [[1, 2, 3]] * 50}, "pixels: found 50 x 3, as one row of an image in colour has; send a list"),
        ({"pixels": "[[1, 2"}, "pixels: not readable as JSON"),
        ({"pixels": "7"}, "pixels: expected rows of equal length"),
        ({"image": PLAIN, "top": 0}, "top: expected at least 1 class, found 0"),
        ({"image": PLAIN, "top": -1}, "top: expected at least 1 class, found -1"),
    ],
)  # fmt: skip
def test_a_request_that_is_no_image_is_refused_by_its_column(
    row: dict[str, Any], message: str, served: ServedModel
) -> None:
    import pandas as pd

    params = {"top": row.pop("top")} if "top" in row else {}
    with pytest.raises(mlflow.exceptions.MlflowException, match=message) as refused:
        answer(served, pd.DataFrame([row]), **params)
    assert refused.value.get_http_status_code() == 400


def test_of_several_images_the_refused_one_is_named_by_its_row(served: ServedModel) -> None:
    with pytest.raises(mlflow.exceptions.MlflowException, match="row 2 of 3: image: not base64"):
        answer(served, from_csv([["image"], [PLAIN], ["no base64!"], [PLAIN]]))


def test_more_classes_than_there_are_is_all_of_them(served: ServedModel) -> None:
    (row,) = answer(served, from_csv([["image"], [PLAIN]]), top=1000)
    assert len(row["classes"]) == len(set(row["classes"])) == len(served.card.preprocessing.classes)


def test_what_could_be_meant_as_it_stands_is_read_as_pixels(served: ServedModel) -> None:
    """Dark pictures of whole numbers, and parameters that are left out by name."""
    import pandas as pd

    for pixels in ([[0, 1], [1, 0]], [[0.0, 0.0]], [[1, 2, 3]] * 3, [[1.0, 255.0]]):
        (row,) = answer(served, pd.DataFrame({"pixels": [pixels]}), top=None)  # type: ignore[arg-type]
        assert len(row["classes"]) == TOP
