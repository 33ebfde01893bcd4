"""`python -m commands.evaluate_official`: the accuracy of a published subnet, measured again.

The published protocol: the shorter side resized to int(256 / 224 x size) pixels, bicubic, the centre cut out,
normalised by ImageNet's mean and deviation; top-1 and top-5 of the subnet with the weights that it inherits from the
official supernet. No other step needs to have run.
"""

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from autoformer.complexity import count_params
from autoformer.errors import AutoFormerError
from autoformer.files import hash_file, write_json
from autoformer.images.split_files import Split, hash_split
from autoformer.named import load_space, load_subnet
from autoformer.space import NamedSubnet, Offsets, SearchSpace
from components.prepare_data.delivered import IMAGENET_STATISTICS, Delivered
from components.prepare_data.readers import read_to_test
from runtime.common.console import Parser, Progress, existing, print_line, report_error
from runtime.storage.data import Data, open_data

COMMAND = "evaluate-official"


class Task(NamedTuple):
    """What is evaluated, on what."""

    subnet: NamedSubnet
    space: SearchSpace
    image_size: int
    source: Data
    delivered: Delivered
    rows: Split
    split: str


def parser() -> argparse.ArgumentParser:
    result = Parser(
        prog="python -m commands.evaluate_official",
        description="Evaluate a published subnet, inherited from an official checkpoint, by the published protocol.",
    )
    result.add_argument("--checkpoint", type=Path, required=True, help="an official supernet, supernet-tiny.pth say")
    result.add_argument("--subnet", required=True, help="a file of configs/subnets/, or the path of such a file")
    result.add_argument("--data", required=True, help="a data folder, made by `make data`, a tree, or s3://…")
    result.add_argument("--size", type=_positive, help="pixels in height and in width (default: the space's)")
    result.add_argument(
        "--offsets",
        choices=get_args(Offsets),
        default="stretch",
        help="relative positions at another size than the space's: see AutoFormer.set_input_size (%(default)s)",
    )
    result.add_argument("--batch-size", type=_positive, default=256, help="images of a forward pass (%(default)s)")
    result.add_argument("--limit", type=_positive, help="so many images, evenly out of all (default: all)")
    result.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (%(default)s)")
    result.add_argument(
        "--precision", choices=("float32", "bfloat16", "float16"), default="float32", help="(%(default)s)"
    )
    result.add_argument("--out", type=Path, help="to write: all figures (JSON)")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    try:
        arguments = parser().parse_args(argv)
        found = evaluate(arguments)
        for line in summary(found):
            print_line(line)
        if arguments.out:
            write_json(arguments.out, found)
    except (AutoFormerError, OSError) as error:
        return report_error(COMMAND, error)
    return 0


def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures, as plain data."""
    existing(arguments.checkpoint, "https://github.com/microsoft/Cream/tree/main/AutoFormer")
    task = read_task(arguments)
    import torch

    from autoformer.devices import autocast, find_device
    from autoformer.evaluation import predict_batches, score
    from autoformer.images.archives import EncodedImages
    from autoformer.images.pixels import model_pixels
    from autoformer.images.streaming import StreamedPixels
    from autoformer.official import load_official, read_checkpoint
    from runtime.steps.workers import worker_count

    device, size = find_device(arguments.device), task.image_size
    model = load_official(read_checkpoint(arguments.checkpoint), task.space).extract(task.subnet.subnet).eval()
    model.set_input_size((size, size), offsets=arguments.offsets)
    model.to(device)
    delivered = task.delivered
    encoded = EncodedImages(
        task.source.folder, task.rows, delivered.channels, delivered.upright, delivered.files, task.source.remote
    )
    pixels_of = partial(
        model_pixels, channels=delivered.channels, image_size=size, shorter_side=published_shorter_side(size)
    )
    streamed = StreamedPixels(encoded, pixels_of, arguments.batch_size, worker_count(device))

    def forward(images: torch.Tensor) -> torch.Tensor:
        with autocast(device, arguments.precision):
            return model(images)

    started = time.monotonic()
    with Progress(f"{COMMAND}: images", streamed.images, "images") as bar:
        mean, std = IMAGENET_STATISTICS
        logits = predict_batches([forward], streamed, mean, std, device, bar.update)[0]
    seconds = time.monotonic() - started
    scores = score(logits, torch.from_numpy(task.rows.labels.astype(np.int64)))
    return _described(arguments, task, str(device)) | {
        "top1_percent": scores.top1_percent,
        "top1_low_percent": scores.top1_interval.low,
        "top1_high_percent": scores.top1_interval.high,
        "top5_percent": scores.top5_percent,
        "loss": scores.loss,
        "images_per_second": streamed.images / seconds,
    }


def published_shorter_side(image_size: int) -> int:
    return int(256 / 224 * image_size)


def read_task(arguments: argparse.Namespace) -> Task:
    """Everything but the weights, read and checked."""
    subnet = load_subnet(arguments.subnet)
    space = load_space(subnet.space)
    size = arguments.size or space.image_size
    space.resized(size)  # refuses a size that the patches do not divide
    data = open_data(arguments.data)
    delivered = read_to_test(data.folder, data.folder.name)
    if delivered.encoding != "image":
        raise AutoFormerError(
            f"{arguments.data}: raw images of {delivered.image_size} pixels; the protocol is for files"
        )
    for what, found, wanted in (
        ("classes", len(delivered.classes), space.num_classes),
        ("channels", delivered.channels, space.in_channels),
    ):
        if found != wanted:
            raise AutoFormerError(
                f"{arguments.data}: {delivered.title} has {found} {what}, but '{space.name}' is for {wanted}; "
                "give the data that the checkpoint was made for"
            )
    split = next((name for name in ("test", "val") if (delivered.splits == name).any()), None)
    if split is None:
        raise AutoFormerError(f"{arguments.data}: {delivered.title} has neither a test nor a val split")
    numbers = np.flatnonzero(delivered.splits == split)
    if arguments.limit is not None and arguments.limit < len(numbers):
        numbers = numbers[np.arange(arguments.limit) * len(numbers) // arguments.limit]
    return Task(subnet, space, size, data, delivered, delivered.rows.take(numbers), split)


def _described(arguments: argparse.Namespace, task: Task, device: str) -> dict[str, Any]:
    """What was evaluated, on what, and what others have found."""
    comparable = task.image_size == task.space.image_size and task.subnet.published is not None
    return {
        "subnet": task.subnet.name,
        "space": task.space.name,
        "params": count_params(task.space, task.subnet.subnet),
        "checkpoint": {"file": arguments.checkpoint.name, "sha256": hash_file(arguments.checkpoint)},
        "data": task.delivered.title,
        "split": task.split,
        "split_hash": hash_split(task.rows.checksums, task.rows.labels),
        "images": len(task.rows.labels),
        "split_images": int((task.delivered.splits == task.split).sum()),
        "image_size": task.image_size,
        "shorter_side": published_shorter_side(task.image_size),
        "offsets": arguments.offsets,
        "precision": arguments.precision,
        "device": device,
        "published": task.subnet.published.model_dump() if comparable and task.subnet.published else None,
    }


def summary(found: dict[str, Any]) -> list[str]:
    """The figures in a few lines."""
    low, high = found["top1_low_percent"], found["top1_high_percent"]
    part = "" if found["images"] == found["split_images"] else f" of {found['split_images']:,}"
    lines = [
        f"{found['subnet']}: {found['params']:,} parameters, inherited from {found['checkpoint']['file']}",
        f"{found['data']}: {found['images']:,}{part} {found['split']} images at {found['image_size']} pixels, "
        f"cut out of {found['shorter_side']}",
        f"top-1 {found['top1_percent']:.2f} % (95 % interval {low:.2f} to {high:.2f} %), "
        f"top-5 {found['top5_percent']:.2f} %, loss {found['loss']:.4f}",
    ]
    if found["published"]:
        published = found["published"]
        top5 = f", top-5 {published['top5_percent']:.2f} %" if published["top5_percent"] is not None else ""
        verdict = "within the interval" if low <= published["top1_percent"] <= high else "outside the interval"
        lines.append(f"published: top-1 {published['top1_percent']:.2f} %{top5}, {verdict} ({published['source']})")
    return [*lines, f"{found['images_per_second']:.4g} images/s on {found['device']}, {found['precision']}"]


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}': expected a number above 0")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main())
