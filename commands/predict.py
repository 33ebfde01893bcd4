"""Classify images with the registered model or a model folder: `python -m commands.predict IMAGE…`."""

import argparse
import gc
from collections.abc import Sequence
from pathlib import Path

from autoformer.cards import read_subnet_card
from autoformer.errors import AutoFormerError, printable
from autoformer.files import check_regular
from runtime.common.console import Parser, existing, run_command
from runtime.common.processes import set_threads
from runtime.common.spelling import as_spelt, hint

TOP = 3


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m commands.predict",
        description="Name what images show. They must look like the training images: see autoformer/predict.py.",
    )
    parser.add_argument(
        "--model",
        help="the name of a registered model, or a folder with model.safetensors and model.json "
        "(default: the model that was registered last)",
    )
    parser.add_argument("--alias", default="champion", help="of the registered version to use (%(default)s)")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")

    def work(arguments: argparse.Namespace) -> None:
        gc.disable()  # saves a sixth of the time: the process does little but import
        for line in predictions(arguments.images, arguments.model, arguments.alias):
            print(line, flush=True)

    return run_command("predict", parser, work, argv, after="")


def predictions(paths: Sequence[Path], model_name: str | None, alias: str) -> list[str]:
    """A line for each image: the most probable classes and their probabilities."""
    paths = [as_spelt(path) for path in paths]
    for path in paths:  # before seconds of imports
        if path.is_dir() or not path.exists():
            fault = "a folder, not an image" if path.is_dir() else f"no such image{hint(path)}"
            raise AutoFormerError(f"{path}: {fault}")
        check_regular(path)
    folder = _model_folder(model_name, alias)
    from autoformer.checkpoint import load_subnet
    from autoformer.images.pixels import image_size, open_image, resized_side
    from autoformer.predict import predict

    side = resized_side(read_subnet_card(folder).space.image_size)
    for path in paths:  # before seconds of loading
        image_size(path)
    set_threads(None)
    model, card = load_subnet(folder)
    lines = []
    for path in paths:  # one decoded image in memory at a time
        image = open_image(path, side)
        try:
            best = predict(model, card, image)[:TOP]
        except AutoFormerError as error:
            raise AutoFormerError(f"{path}: {error}") from None
        lines.append(
            f"{printable(str(path))}: "
            + ", ".join(f"{printable(name)} {100 * probability:.1f} %" for name, probability in best)
        )
    return lines


def _model_folder(model: str | None, alias: str) -> Path:
    """`model` itself if it is a model folder, else the folder of the registered model of that name.

    A model may be written as MLflow writes it: `models:/name@alias`.
    """
    if model is not None and model.startswith("models:/"):
        model, at, own_alias = model.removeprefix("models:/").partition("@")
        if not at or "/" in model:
            raise AutoFormerError(f"models:/{model}: give the name of the model, or models:/name@alias")
        alias = own_alias
    if model is not None and ("/" in model or (Path(model) / "model.json").exists()):
        return existing(Path(model), "retrain_subnet")
    from runtime import tracking

    return tracking.model_folder(model, alias)


if __name__ == "__main__":
    raise SystemExit(main())
