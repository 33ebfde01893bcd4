"""The accuracy of plain models in the demo's time: an MLP and a CNN with as many parameters, and a subnet.

    python -m benchmarks.anchors [--params N] [--seconds S] [--seeds N]

The subnet is the largest of the demo's space with the same choices in each block, trained from random weights with the
recipe of the demo's supernet. All models train on the train split for the same time: their rates are measured first,
and each gets as many images as it trains in `seconds`. The table at the end of `make run` has parameters and seconds of
a run. Accuracy is that of averaged weights on the search and the test split. Neither split chooses anything; the search
split comes from the training images and is easier.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from autoformer.complexity import count_params
from autoformer.layers import initialise
from autoformer.recipe import Recipe
from autoformer.sampling import whole_model
from autoformer.space import SubnetSpec
from autoformer.stem import ChannelsLastMaxPool2d
from autoformer.training import Trainer
from autoformer.vit import AutoFormer
from benchmarks.demo import DATA, demo_images
from benchmarks.rows import Row, measured, table
from runtime.common.config import Config, load_config
from runtime.common.console import Parser, positive, run_command
from runtime.common.sections import TrainSupernet

BATCHES = 20  # minimum optimiser steps of a training
# recipe of the plain models: AdamW, cosine to zero, no augmentation
ANCHOR: dict[str, Any] = {"optimizer": "adamw", "learning_rate": 2e-3, "clip_grad": None, "init_gain": None}
ROUNDS, STEPS = 4, 8  # timed windows, of which the fastest counts, and optimiser steps per window


class Plain(nn.Sequential):
    """A sequence of layers, with the methods that `Trainer` needs."""

    def no_weight_decay(self) -> set[str]:
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Not supported."""


def mlp(width: int) -> Plain:
    layers = [nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)]
    return Plain(nn.Flatten(), *layers)


def cnn(width: int) -> Plain:
    """Three stages of two 3 x 3 convolutions with batch norm, each with max pooling; then global average pooling."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, width), (width, 2 * width), (2 * width, 4 * width)):
        for channels in (inputs, outputs):
            layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers.append(ChannelsLastMaxPool2d(2))
    return Plain(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def widest(build: Callable[[int], nn.Module], params: int) -> int:
    """The largest width of a model with at most `params` parameters."""
    width = 1
    while size(build(width + 1)) <= params:
        width += 1
    return width


def subnet(config: Config, params: int) -> SubnetSpec:
    """The largest uniform subnet of the demo's space within the parameters."""
    choices = config.space.choices
    specs = [
        SubnetSpec(depth, embed, (heads,) * depth, (ratio,) * depth)
        for depth in choices.depth
        for embed in choices.embed_dim
        for heads in choices.num_heads
        for ratio in choices.mlp_ratio
    ]
    fitting = [spec for spec in specs if count_params(config.space, spec) <= params]
    if not fitting:
        raise SystemExit(f"no subnet of '{config.space.name}' has at most {params:,} parameters")
    return max(fitting, key=lambda spec: count_params(config.space, spec))


class Anchors:
    """Trains each model for the same time, and scores it."""

    def __init__(self, config: Config, params: int) -> None:
        self.config, self.base = config, config.section(TrainSupernet).recipe().model_dump()
        self.images = demo_images(config, DATA)
        spec, mlp_width, cnn_width = subnet(config, params), widest(mlp, params), widest(cnn, params)
        self.models: dict[str, Callable[[], Any]] = {
            "subnet from scratch": lambda: AutoFormer.from_spec(config.space, spec),
            "MLP": lambda: mlp(mlp_width),
            "CNN": lambda: cnn(cnn_width),
        }

    def trainer(self, name: str, seed: int, images: float) -> Trainer:
        torch.manual_seed(seed)
        model = self.models[name]()
        epochs = images / len(self.images.splits["train"].labels)
        changes = {} if isinstance(model, AutoFormer) else ANCHOR
        recipe = Recipe.model_validate(self.base | changes | {"epochs": epochs, "warmup_epochs": epochs / 20})
        if isinstance(model, AutoFormer):
            initialise(model, recipe.init_gain)
        return self.images.trainer(model, whole_model, recipe, seed)

    def rates(self) -> dict[str, float]:
        """Images a second of each model."""
        trainers = {name: self.trainer(name, 0, len(self.images.splits["train"].labels)) for name in self.models}
        seconds: dict[str, list[float]] = {name: [] for name in trainers}
        for _ in range(1 + ROUNDS):  # the first is warm-up
            for name, trainer in trainers.items():
                start = time.perf_counter()
                trainer.advance(STEPS)
                seconds[name].append(time.perf_counter() - start)
        return {name: STEPS * trainers[name].images_per_step / min(taken[1:]) for name, taken in seconds.items()}

    def rows(self, seconds: float, seeds: int) -> list[Row]:
        rows = []
        for name, rate in self.rates().items():
            found: dict[str, list[float]] = {"search": [], "test": []}
            for seed in range(seeds):
                trainer = self.trainer(name, seed, max(rate * seconds, BATCHES * self.base["batch_size"]))
                trainer.advance(trainer.total_steps)
                model = trainer.averaged.eval()
                for of_split, scores in found.items():
                    scores.append(self.images.score(model, of_split).top1_percent)
            rows += [
                Row(f"{name}, {size(trainer.model):,} parameters: {of_split} split", statistics.mean(scores), "%")
                for of_split, scores in found.items()
            ]
            rows.append(Row(f"{name}: training images", trainer.total_steps * trainer.images_per_step, "images"))
            print(f"{name}: {json.dumps(found)}", flush=True)
        return rows


def measure(quick: bool = False, params: int = 250_000, seconds: float = 240, seeds: int = 1) -> dict[str, Any]:
    """The models in turn; `quick` trains each for two seconds."""
    anchors = Anchors(load_config("demo"), params)
    return measured(anchors.rows(2 if quick else seconds, seeds), params=params, seconds=seconds, seeds=seeds)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.anchors", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--params", type=positive, default=250_000, help="most parameters (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=240, help="training time of each (default: %(default)s)")
    parser.add_argument("--seeds", type=positive, default=1, help="trainings of each (default: %(default)s)")

    def work(arguments: argparse.Namespace) -> None:
        if not 0 < arguments.seconds < math.inf:
            parser.error(f"--seconds {arguments.seconds:g}: expected a number above 0")
        print(table(measure(False, arguments.params, arguments.seconds, arguments.seeds)["rows"]))

    return run_command("benchmarks.anchors", parser, work, argv, after="")


if __name__ == "__main__":
    raise SystemExit(main())
