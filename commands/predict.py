"""`python -m commands.predict IMAGE…`: say what is in a picture, with the registered model or one of a folder."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from autoformer.cards import read_subnet_card
from autoformer.errors import AutoFormerError
from runtime.common.console import Parser, existing, report_error

TOP = 3


def parser() -> argparse.ArgumentParser:
    result = Parser(
        prog="python -m commands.predict",
        description="Name what images show. They must look like the training images: see autoformer/predict.py.",
    )
    result.add_argument(
        "--model",
        help="the name of a registered model, or a folder with model.safetensors and model.json "
        "(default: the model that was registered last)",
    )
    result.add_argument("--alias", default="champion", help="of the registered version to use (%(default)s)")
    result.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    try:
        arguments = parser().parse_args(argv)
        for line in answers(arguments):
            print(line, flush=True)
    except AutoFormerError as error:
        return report_error("predict", error)
    return 0


def answers(arguments: argparse.Namespace) -> list[str]:
    """A line for each image: the likeliest classes with their probabilities."""
    for path in arguments.images:  # before seconds of imports
        if not path.is_file():
            raise AutoFormerError(f"{path}: {'a folder, not an image' if path.is_dir() else 'no such image'}")
    folder = _model_folder(arguments.model, arguments.alias)
    from autoformer.checkpoint import load_subnet
    from autoformer.images.pixels import open_image, resized_side
    from autoformer.predict import predict

    side = resized_side(read_subnet_card(folder).space.image_size)
    images = [open_image(path, side) for path in arguments.images]
    model, card = load_subnet(folder)
    lines = []
    for path, image in zip(arguments.images, images, strict=True):
        best = predict(model, card, image)[:TOP]
        lines.append(f"{path}: " + ", ".join(f"{name} {100 * probability:.1f} %" for name, probability in best))
    return lines


def _model_folder(model: str | None, alias: str) -> Path:
    """The folder that is meant: itself, or that of a registered model."""
    if model is not None and ("/" in model or (Path(model) / "model.json").exists()):  # not any folder of that name
        return existing(Path(model), "retrain_subnet")
    from runtime import tracking

    return tracking.model_folder(model, alias)


if __name__ == "__main__":
    raise SystemExit(main())
