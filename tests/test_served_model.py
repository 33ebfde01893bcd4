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
from fastapi.testclient import TestClient
from mlflow.pyfunc.scoring_server import init, parse_csv_input
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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    """MLflow's server of the logged model, without a socket."""
    folder = tmp_path_factory.mktemp("logged")
    save_random_subnet(folder / "model", 0)
    mlflow.pyfunc.save_model(
        folder / "logged", python_model=str(models._CODE), artifacts={"model": str(folder / "model")},
        pip_requirements=["mlflow"], signature=models._signature(),
    )  # fmt: skip
    return TestClient(init(mlflow.pyfunc.load_model(str(folder / "logged"))), raise_server_exceptions=False)


def posted(server: TestClient, body: Any) -> tuple[int, Any]:
    """The status, and the classes of each image or the message."""
    response = server.post("/invocations", json=body)
    found = response.json()
    if response.status_code != 200:
        return response.status_code, found["message"]
    return 200, [row["classes"] for row in found["predictions"]]


URL, B64, DARK = f"data:image/png;base64,{PLAIN}", {"b64": PLAIN}, (PIXELS // 9).tolist()
TWO_IMAGES = {
    "records": {"dataframe_records": [{"image": PLAIN}, {"pixels": DARK}]},
    "records, nested": {"dataframe_records": [{"image": B64}, {"pixels": DARK}]},
    "split": {"dataframe_split": {"columns": ["image", "pixels"], "data": [[PLAIN, None], [None, DARK]]}},
    "split, nested": {"dataframe_split": {"columns": ["image", "pixels"], "data": [[B64, None], [None, DARK]]}},
    "inputs by row": {"inputs": [{"image": B64}, {"pixels": DARK}]},
    "inputs, image by name": {"inputs": [B64, {"pixels": DARK}]},
}
THE_SAME_TWICE = {
    "inputs": {"inputs": {"image": [PLAIN, PLAIN]}},
    "inputs, nested": {"inputs": {"image": [B64, B64]}},
    "inputs, nested, by row": {"inputs": [{"image": B64}, {"image": {"b64": base64.encodebytes(png()).decode()}}]},
    "instances": {"instances": [{"image": PLAIN}, {"image": PLAIN}]},
    "instances, nested": {"signature_name": "serving_default", "instances": [{"image": B64}, {"image": B64}]},
    "instances of one input": {"instances": [B64, B64]},
    "instances, data URLs": {"instances": [{"image": URL}, {"image": URL}]},
    "instances, nested data URLs": {"instances": [{"image": {"b64": URL}}, {"image": {"b64": URL}}]},
    "instances, pixels": {"instances": [{"pixels": PIXELS.tolist()}, {"pixels": PIXELS.tolist()}]},
}


@pytest.mark.parametrize("form", [*TWO_IMAGES, *THE_SAME_TWICE])
def test_every_form_of_a_request_answers_for_each_image_in_order(form: str, server: TestClient) -> None:
    bright, dark = (posted(server, {"inputs": {"pixels": [one]}})[1][0] for one in (PIXELS.tolist(), DARK))
    assert bright != dark
    wanted = [bright, dark] if form in TWO_IMAGES else [bright, bright]
    assert posted(server, (TWO_IMAGES | THE_SAME_TWICE)[form]) == (200, wanted)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"instances": [{"image": PLAIN}, {"pixels": DARK}]}, "a row has `image` and `pixels`; send one for each"),
        ({"dataframe_records": [{"image": PLAIN, "b64": PLAIN}]}, "a row has `image` and `b64`; send one"),
        ({"dataframe_records": [{"image": {"base64": PLAIN}}]}, "image: expected the base64 text of a file, found"),
        ({"instances": [{"image": {"b64": "no base64!"}}]}, "image: not base64"),
        ({"instances": [{"image": {"b64": 7}}]}, "image: not base64"),
        ({"dataframe_records": [{"image": {"b64": 7}}]}, "image: expected the base64 text of a file, found int"),
        ({"instances": [{"photo": B64}]}, 'a row has neither `image` (base64 of a file) nor `pixels`; send {"inst'),
        ({"inputs": [PLAIN]}, "a row has neither `image`"),
    ],
)
def test_a_refused_request_gets_the_reason_alone_and_not_the_request(
    body: Any, message: str, server: TestClient
) -> None:
    status, found = posted(server, body)
    assert status == 400 and found.startswith(message) and len(found) < 150 and "\n" not in found


def test_bytes_of_a_file_and_of_its_base64_are_one_image(served: ServedModel) -> None:
    import pandas as pd

    raw, encoded = (answer(served, pd.DataFrame({"image": [given]})) for given in (png(), PLAIN.encode()))
    assert raw == encoded


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
