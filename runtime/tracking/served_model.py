"""The model for `mlflow models serve`: images in, class names and probabilities out.

MLflow copies this file into the logged model and executes it there ("models from code"), with the model's own copy of
the package `autoformer` on the path. So the answers of a version never change.
"""

import base64
import contextlib
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import mlflow
import pandas as pd
from PIL import Image

from autoformer.bounds import BOUNDS
from autoformer.checkpoint import load_subnet
from autoformer.errors import AutoFormerError, quantity
from autoformer.images.pixels import image_size, open_image
from autoformer.predict import image_from_pixels, probabilities, ranked
from autoformer.reading import parse_json

BATCH = 8  # images per forward pass: limits memory, and time beyond the deadline
TOP = 5
_NUMBER_BYTES = 25  # memory of a number in `pixels`
# MLflow turns an object in `inputs` or `instances` into its Python text
_NESTED = re.compile(r"""\s*\{\s*(['"])b64\1\s*:\s*(['"])([^'"]*)\2\s*\}\s*""")


class ServedModel(mlflow.pyfunc.PythonModel):
    """A row has `image` (base64 of a PNG or JPEG file) or `pixels` (height x width or height x width x 3, or JSON).

    Base64 may be a data URL, have line breaks or the URL alphabet, and lack padding. `b64`, as clients of TensorFlow
    Serving write it, is another name for `image`, and `{"b64": text}` for its text.
    """

    def load_context(self, context: Any) -> None:
        self.model, self.card = load_subnet(Path(context.artifacts["model"]))

    # no type hints: MLflow would derive a second signature from them
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """A row for each image: `class`, `probability`, and lists of the `top` classes and their probabilities."""
        top = (params or {}).get("top")
        top = TOP if top is None else int(top)
        if top < 1:
            raise _refusal(f"top: expected at least 1 class, found {top}")
        requests = model_input.to_dict("records") or [{}]
        if len(requests) > BOUNDS.served_rows:
            raise _refusal(f"{quantity(len(requests), 'image')}; a request may have {BOUNDS.served_rows}")
        request, rows = _Request(len(requests)), []
        for first in range(0, len(requests), BATCH):
            images = map(request.image, requests[first : first + BATCH])  # one decoded image in memory at a time
            for scores in probabilities(self.model, self.card, images):
                names, values = zip(*ranked(scores, self.card)[:top], strict=True)
                rows.append(
                    {"class": names[0], "probability": values[0], "classes": [*names], "probabilities": [*values]}
                )
        return pd.DataFrame(rows)


class _Request:
    """Decodes the images of one request, within limits for the whole request."""

    def __init__(self, images: int = 1) -> None:
        self._images, self._begun, self._characters, self._pixels = images, 0, 0, 0
        self._deadline = time.monotonic() + BOUNDS.served_seconds

    def image(self, row: dict[str, Any]) -> Image.Image:
        if time.monotonic() > self._deadline:
            raise _refusal(f"the request takes longer than {BOUNDS.served_seconds:g} s; send fewer or smaller images")
        self._begun += 1
        found = {name: row[name] for name in ("image", "b64", "pixels") if not _is_missing(row.get(name))}
        try:
            if len(found) > 1:
                raise AutoFormerError(
                    f"a row has {' and '.join(f'`{name}`' for name in found)}; send one for each image, and all images "
                    "of `instances` in one form"
                )
            if "pixels" in found:
                return self._from_pixels(found["pixels"])
            for name, given in found.items():
                image = _unwrapped(given)
                if isinstance(image, str | bytes):
                    return self._decode(image)
                raise AutoFormerError(f"{name}: expected the base64 text of a file, found {type(image).__name__}")
            raise AutoFormerError(
                'a row has neither `image` (base64 of a file) nor `pixels`; send {"instances": [{"image": "…"}]}'
            )
        except ValueError as error:
            where = f"row {self._begun} of {self._images}: " if self._images > 1 else ""
            raise _refusal(f"{where}{error}") from None

    def _decode(self, image: str | bytes) -> Image.Image:
        self._count_text(image)
        content = _from_base64(image) if isinstance(image, str) else image
        if content.isascii():  # as where a client sends base64 as bytes
            with contextlib.suppress(AutoFormerError):
                content = _from_base64(content.decode())
        width, height = image_size(content)
        self._count(width * height)
        return open_image(content, most_bytes=BOUNDS.served_image_bytes)

    def _from_pixels(self, pixels: Any) -> Image.Image:
        if isinstance(pixels, str):
            self._count_text(pixels)
            try:
                pixels = parse_json(pixels)
            except (ValueError, RecursionError):
                raise AutoFormerError(
                    "pixels: not readable as JSON; send nested lists of numbers from 0 to 255"
                ) from None
        try:
            numbers = sum(len(value) if hasattr(value, "__len__") else 1 for row in pixels for value in _values(row))
        except TypeError:
            raise AutoFormerError("pixels: expected rows of equal length, all numbers from 0 to 255") from None
        if numbers * _NUMBER_BYTES > BOUNDS.served_image_bytes:
            raise AutoFormerError(
                f"pixels: {quantity(numbers, 'number is', 'numbers are')} too many; send the image as a file"
            )
        self._count(numbers)
        return image_from_pixels(pixels)

    def _count_text(self, text: str | bytes) -> None:
        self._characters += len(text)
        if self._characters > BOUNDS.served_text:
            raise AutoFormerError(f"more than {BOUNDS.served_text >> 20} MB of images; send them in several requests")

    def _count(self, pixels: int) -> None:
        self._pixels += pixels
        if self._pixels > BOUNDS.served_pixels:
            raise AutoFormerError(
                f"more than {BOUNDS.served_pixels / 1e6:.0f} million pixels; send smaller images, or several requests"
            )


def _unwrapped(image: Any) -> Any:
    """The text in `{"b64": text}`, or what there is otherwise."""
    if isinstance(image, dict) and image.keys() == {"b64"}:
        return image["b64"]
    if isinstance(image, str) and (nested := _NESTED.fullmatch(image)):
        return re.sub(r"\\[rn]", "", nested[3])
    return image


def _values(row: Any) -> Any:
    return row if hasattr(row, "__len__") else (row,)


def _from_base64(text: str) -> bytes:
    """Decode base64, also in a data URL, with line breaks, in the URL alphabet, or without padding."""
    if text.lstrip()[:5].lower() == "data:":
        text = unquote(text.partition(",")[2])
    plain = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    if not plain:
        raise AutoFormerError("image: an empty text; send the base64 text of a PNG or JPEG file")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except ValueError:
        raise AutoFormerError("image: not base64; send the base64 text of a PNG or JPEG file") from None


def _is_missing(value: Any) -> bool:
    """Whether a value is missing: pandas reads an empty CSV cell as NaN."""
    return value is None or (isinstance(value, float) and value != value)


class _Refusal(mlflow.exceptions.MlflowException):
    """The server answers 400, not 500, with the reason alone: MLflow would put the whole request before it."""

    @property
    def message(self) -> str:
        return self._reason

    @message.setter
    def message(self, text: str) -> None:
        self._reason = text.rpartition(". \nError: ")[2]


def _refusal(reason: str) -> Exception:
    error: Exception = _Refusal.invalid_parameter_value(reason)
    return error


mlflow.models.set_model(ServedModel())
