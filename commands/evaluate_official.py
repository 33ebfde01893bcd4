"""Measure the accuracy of a published subnet with weights inherited from an official checkpoint.

    python -m commands.evaluate_official --checkpoint supernet-tiny.pth --subnet autoformer-tiny --data data/imagenet-1k

The published protocol: resize the shorter side to int(256 / 224 x size) pixels, bicubic; crop the centre; normalise by
ImageNet's mean and standard deviation. It needs no output of the pipeline.
"""

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np

from autoformer.complexity import count_params
from autoformer.errors import AutoFormerError, quantity
from autoformer.files import check_writable, hash_file, write_json
from autoformer.images.split_files import Split, hash_split
from autoformer.named import load_space, load_subnet
from autoformer.recipe import Dtype
from autoformer.space import Offsets, SearchSpace
from components.prepare_data.delivered import IMAGENET_STATISTICS, Delivered
from components.prepare_data.readers import read_to_test
from runtime.common.console import Parser, Progress, check_apart, existing, positive, print_line, run_command
from runtime.common.processes import set_threads
from runtime.storage.data import open_data

COMMAND = "evaluate-official"


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m commands.evaluate_official",
        description="Evaluate a published subnet, inherited from an official checkpoint, by the published protocol.",
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="an official supernet, supernet-tiny.pth say")
    parser.add_argument("--subnet", required=True, help="a file of configs/subnets/, or the path of such a file")
    parser.add_argument("--data", required=True, help="a data folder, made by `make data`, a tree, or s3://…")
    parser.add_argument("--size", type=positive, help="pixels in height and in width (default: the space's)")
    parser.add_argument(
        "--offsets",
        choices=get_args(Offsets),
        default="stretch",
        help="relative positions at another size than the space's: see AutoFormer.set_input_size (%(default)s)",
    )
    parser.add_argument("--batch-size", type=positive, default=256, help="images of a forward pass (%(default)s)")
    parser.add_argument("--limit", type=positive, help="so many images, evenly spread over all (default: all)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (%(default)s)")
    parser.add_argument("--precision", choices=get_args(Dtype), default="float32", help="(%(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file to write all figures to")

    def work(arguments: argparse.Namespace) -> None:
        if arguments.out:
            check_writable(arguments.out)
            check_apart([arguments.out], arguments.checkpoint, arguments.data, arguments.subnet)
        figures = evaluate(arguments)
        for line in summary(figures):
            print_line(line)
        if arguments.out:
            write_json(arguments.out, figures)

    return run_command(COMMAND, parser, work, argv, after="")


def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures as plain data; see `main` for the arguments. Input is checked before torch loads, except weights."""
    existing(arguments.checkpoint, "https://github.com/microsoft/Cream/tree/main/AutoFormer")
    subnet = load_subnet(arguments.subnet)
    space = load_space(subnet.space)
    size = arguments.size or space.image_size
    space.resized(size)  # raises for a size that the patches do not divide
    data = open_data(arguments.data)
    delivered = read_to_test(data.folder, data.folder.name)
    _check_data(arguments.data, delivered, space)
    split, rows, split_images = _test_split(arguments.data, delivered, arguments.limit)
    import torch

    from autoformer.devices import autocast, find_device
    from autoformer.evaluation import predict_batches, score
    from autoformer.images.archives import EncodedImages
    from autoformer.images.pixels import model_pixels
    from autoformer.images.streaming import StreamedPixels
    from autoformer.official import load_official, read_checkpoint
    from runtime.steps.workers import worker_count

    set_threads(None)
    device, shorter_side = find_device(arguments.device), published_shorter_side(size)
    model = load_official(read_checkpoint(arguments.checkpoint), space).extract(subnet.subnet).eval()
    model.set_input_size((size, size), offsets=arguments.offsets)
    model.to(device)
    encoded = EncodedImages(data.folder, rows, delivered.channels, delivered.upright, delivered.files, data.remote)
    pixels_of = partial(model_pixels, channels=delivered.channels, image_size=size, shorter_side=shorter_side)
    streamed = StreamedPixels(encoded, pixels_of, arguments.batch_size, worker_count(device))

    def forward(images: torch.Tensor) -> torch.Tensor:
        with autocast(device, arguments.precision):
            return model(images)

    started = time.monotonic()
    with Progress(f"{COMMAND}: images", streamed.images, "images") as bar:
        mean, std = IMAGENET_STATISTICS
        logits = predict_batches([forward], streamed, mean, std, device, bar.update)[0]
    seconds = time.monotonic() - started
    scores = score(logits, torch.from_numpy(rows.labels.astype(np.int64)))
    published = subnet.published if size == space.image_size else None  # published at the space's size only
    return {
        "subnet": subnet.name,
        "space": space.name,
        "params": count_params(space, subnet.subnet),
        "checkpoint": {"file": arguments.checkpoint.name, "sha256": hash_file(arguments.checkpoint)},
        "data": delivered.title,
        "notes": list(delivered.notes),
        "split": split,
        "split_hash": hash_split(rows.checksums, rows.labels),
        "images": len(rows.labels),
        "split_images": split_images,
        "image_size": size,
        "shorter_side": shorter_side,
        "offsets": arguments.offsets,
        "precision": arguments.precision,
        "device": str(device),
        "published": published.model_dump() if published else None,
        "top1_percent": scores.top1_percent,
        "top1_low_percent": scores.top1_interval.low,
        "top1_high_percent": scores.top1_interval.high,
        "top5_percent": scores.top5_percent,
        "loss": scores.loss,
        "images_per_second": streamed.images / seconds,
    }


def published_shorter_side(image_size: int) -> int:
    return int(256 / 224 * image_size)


def _check_data(data: str, delivered: Delivered, space: SearchSpace) -> None:
    if delivered.encoding != "image":
        raise AutoFormerError(f"{data}: raw images of {delivered.image_size} pixels; the protocol is for files")
    for unit, count, wanted in (
        ("classes", len(delivered.classes), space.num_classes),
        ("channels", delivered.channels, space.in_channels),
    ):
        if count != wanted:
            raise AutoFormerError(
                f"{data}: {delivered.title} has {count} {unit}, but '{space.name}' is for {wanted}; "
                "give the data that the checkpoint was made for"
            )


def _test_split(data: str, delivered: Delivered, limit: int | None) -> tuple[str, Split, int]:
    """Name of the test split, its rows, spread evenly over the split up to `limit`, and its size."""
    split = next((name for name in ("test", "val") if (delivered.splits == name).any()), None)
    if split is None:
        raise AutoFormerError(f"{data}: {delivered.title} has neither a test nor a val split")
    numbers = np.flatnonzero(delivered.splits == split)
    count = min(limit or len(numbers), len(numbers))
    return split, delivered.rows.take(numbers[np.arange(count) * len(numbers) // count]), len(numbers)


def summary(figures: dict[str, Any]) -> list[str]:
    """The figures as a few lines of text."""
    low, high = figures["top1_low_percent"], figures["top1_high_percent"]
    shown = quantity(figures["images"], f"{figures['split']} image")
    if figures["images"] != figures["split_images"]:
        shown = f"{figures['images']:,} of {quantity(figures['split_images'], figures['split'] + ' image')}"
    lines = [
        f"{figures['subnet']}: {quantity(figures['params'], 'parameter')}, inherited from "
        f"{figures['checkpoint']['file']}",
        f"{figures['data']}: {shown} at {figures['image_size']} pixels, cut out of {figures['shorter_side']}",
        *figures["notes"],
        f"top-1 {figures['top1_percent']:.2f} % (95 % interval {low:.2f} to {high:.2f} %), "
        f"top-5 {figures['top5_percent']:.2f} %, loss {figures['loss']:.4f}",
    ]
    if published := figures["published"]:
        top5 = f", top-5 {published['top5_percent']:.2f} %" if published["top5_percent"] is not None else ""
        verdict = "within the interval" if low <= published["top1_percent"] <= high else "outside the interval"
        lines.append(f"published: top-1 {published['top1_percent']:.2f} %{top5}, {verdict} ({published['source']})")
    return [*lines, f"{figures['images_per_second']:.4g} images/s on {figures['device']}, {figures['precision']}"]


if __name__ == "__main__":
    raise SystemExit(main())
