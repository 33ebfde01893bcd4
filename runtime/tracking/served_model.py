"""The model that `mlflow models serve` runs: images in, class names and probabilities out.

MLflow copies this file into the logged model and executes it there ("models from code"), with the model's own copy of
the package `autoformer` on the path. So a version answers as it did on the day it was registered.
"""

import base64
import binascii
import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import mlflow
import pandas as pd
from PIL import Image

from autoformer.checkpoint import load_subnet
from autoformer.errors import AutoFormerError
from autoformer.images.pixels import open_image
from autoformer.predict import image_from_pixels, probabilities, ranked

BATCH = 256
TOP = 5
MOST_BYTES = 256 * 2**20  # of memory for one image: about 30 million pixels of PNG, 53 million of JPEG


class ServedModel(mlflow.pyfunc.PythonModel):
    """A row has `image` (base64 of a PNG or JPEG file) or `pixels` (height x width, or height x width x 3; or as JSON).

    Base64 may be a data URL, have line breaks, the alphabet of URLs, and no padding, as common tools write it.
    """

    def load_context(self, context: Any) -> None:
        self.model, self.card = load_subnet(Path(context.artifacts["model"]))

    # no type hints: MLflow would read them as a second signature
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """A row for each image: `class`, `probability`, and lists of the `top` classes with their probabilities."""
        top = int((params or {}).get("top", TOP))
        if top < 1:
            raise _refusal(f"top: expected at least 1 class, found {top}")
        requests = model_input.to_dict("records") or [{}]
        rows = []
        for first in range(0, len(requests), BATCH):
            images = map(_image, requests[first : first + BATCH])  # one decoded image in memory at a time
            for scores in probabilities(self.model, self.card, images):
                names, values = zip(*ranked(scores, self.card)[:top], strict=True)
                rows.append(
                    {"class": names[0], "probability": values[0], "classes": [*names], "probabilities": [*values]}
                )
        return pd.DataFrame(rows)


def _image(row: dict[str, Any]) -> Image.Image:
    image, pixels = (None if _is_missing(row.get(name)) else row[name] for name in ("image", "pixels"))
    try:
        if isinstance(image, bytes | str):
            return open_image(_decoded(image) if isinstance(image, str) else image, most_bytes=MOST_BYTES)
        if image is not None:
            raise AutoFormerError(f"image: expected the base64 text of a file, found {type(image).__name__}")
        if pixels is not None:
            return image_from_pixels(json.loads(pixels) if isinstance(pixels, str) else pixels)
        raise AutoFormerError("a row has neither `image` (base64 of a file) nor `pixels`")
    except binascii.Error:
        reason = "image: not base64; send the base64 text of a PNG or JPEG file"
    except json.JSONDecodeError:
        reason = "pixels: not readable as JSON; send nested lists of numbers from 0 to 255"
    except AutoFormerError as error:
        reason = str(error)
    raise _refusal(reason)


def _is_missing(value: Any) -> bool:
    """Whether a row has no such value: pandas reads an empty cell of a CSV as NaN."""
    return value is None or (isinstance(value, float) and value != value)


def _decoded(text: str) -> bytes:
    if text.lstrip().startswith("data:"):
        text = unquote(text.partition(",")[2])
    plain = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)


def _refusal(reason: str) -> Exception:
    error: Exception = mlflow.exceptions.MlflowException.invalid_parameter_value(reason)
    return error  # the server answers 400, not 500


mlflow.models.set_model(ServedModel())
