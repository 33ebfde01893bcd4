"""What each part of the demo's training recipes earns, at equal time: the tables of docs/demo-recipe.md.

A variant changes one thing in a recipe of the `demo` preset. Every variant gets the same time, and time is counted
in images: each variant's rate is measured first, all of them in turn and several times over, and the best window
counts. So another program on the same cores spoils no comparison. Accuracy is on the search split; the test
images are never read for a decision.

    python -m benchmarks.demo_recipe --data data/fashion-mnist --stage scratch --out scratch.json
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from autoformer.checkpoint import load_supernet
from autoformer.complexity import count_params
from autoformer.evaluation import predict_logits, score
from autoformer.files import write_json
from autoformer.images.split_images import DecodedSplit, raw_pixels
from autoformer.images.statistics import pixel_statistics
from autoformer.images.training_loader import training_loader
from autoformer.layers import drop_path_rates, initialise
from autoformer.recipe import Recipe
from autoformer.sampling import SubnetSampler, uniform, whole_model
from autoformer.space import SubnetSpec
from autoformer.supernet import Supernet
from autoformer.training import Trainer
from autoformer.vit import AutoFormer
from components.prepare_data import fashion_mnist
from components.prepare_data.splitting import split
from runtime.common.config import Config, PrepareData, RetrainSubnet, TrainSupernet, load_config

STAGES = ("supernet", "finetune", "scratch")

# Changes to the preset's recipe; "as is" is the recipe itself.
VARIANTS: dict[str, dict[str, Any]] = {
    "as is": {},
    "flip": {"augmentation": {"flip": True}},
    "crop 1": {"augmentation": {"crop_padding": 1}},
    "crop 2": {"augmentation": {"crop_padding": 2}},
    "erase 0.25": {"augmentation": {"erase_probability": 0.25}},
    "official initialisation": {"init_gain": None},
    "no smoothing": {"label_smoothing": 0.0},
    "no average": {"ema_decay": None},
    "no clipping": {"clip_grad": None},
    "batch 64": {"batch_size": 64},
    "batch 256": {"batch_size": 256},
    "drop path 0.1": {"drop_path": 0.1},
}
LEARNING_RATES = (0.5, 2.0)  # times the preset's: variants too


class Data(NamedTuple):
    pixels: torch.Tensor  # uint8 (n, 1, 28, 28), the train split
    labels: torch.Tensor  # int64 (n,)
    search_pixels: torch.Tensor
    search_labels: torch.Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]


def read(folder: Path, config: Config) -> Data:
    """The train and search split, as `prepare_data` makes them."""
    splits = split(fashion_mnist.index(folder), config.section(PrepareData), config.seed).rows
    train, search = (
        torch.from_numpy(raw_pixels(splits[name], folder, 1, fashion_mnist.IMAGE_SIZE)) for name in ("train", "search")
    )
    labels, search_labels = (torch.from_numpy(splits[name].labels).long() for name in ("train", "search"))
    return Data(train, labels, search, search_labels, *pixel_statistics(train.numpy()))


def recipes(stage: str, config: Config) -> dict[str, Recipe]:
    """The preset's recipe of a stage and its variants, by name."""
    section = config.section(TrainSupernet) if stage == "supernet" else config.section(RetrainSubnet)
    base = section.recipe().model_dump()
    changes = VARIANTS | {
        f"learning rate x {x:g}": {"learning_rate": x * base["learning_rate"]} for x in LEARNING_RATES
    }
    if stage == "finetune":
        del changes["official initialisation"]  # nothing is initialised
    return {name: Recipe.model_validate(base | change) for name, change in changes.items()}


class Bench:
    """Makes trainers of one stage, measures their rates and scores what they train."""

    def __init__(self, stage: str, config: Config, data: Data, spec: SubnetSpec, supernet: Path | None) -> None:
        self.stage, self.space, self.data, self.spec, self.supernet = stage, config.space, data, spec, supernet

    def trainer(self, recipe: Recipe, seed: int) -> Trainer:
        torch.manual_seed(seed)
        data = self.data
        model: torch.nn.Module
        sampler: SubnetSampler = whole_model
        if self.stage == "supernet":
            model, sampler = Supernet(self.space, recipe.drop_path), uniform(self.space, seed)
            initialise(model, recipe.init_gain)
        elif self.stage == "finetune":
            assert self.supernet is not None
            model = load_supernet(self.supernet, "ema", recipe.drop_path).model.extract(self.spec)
        else:
            rates = drop_path_rates(recipe.drop_path, self.space.supernet.depth)[: self.spec.depth]
            model = AutoFormer.from_spec(self.space, self.spec, rates)
            initialise(model, recipe.init_gain)
        split = DecodedSplit(data.pixels.numpy(), data.labels.numpy(), [])
        images = training_loader(split, recipe, seed, self.space.image_size, data.mean)
        return Trainer(model, sampler, images, self.space.num_classes, data.mean, data.std, recipe, seed)

    def rates(self, variants: Mapping[str, Recipe], rounds: int, steps: int = 8) -> dict[str, float]:
        """Images a second of each variant: the best of `rounds` windows, the variants in turn."""
        trainers = {name: self.trainer(recipe, seed=0) for name, recipe in variants.items()}
        best = dict.fromkeys(variants, float("inf"))
        for window in range(-1, rounds):  # the first is to warm up
            for name, trainer in trainers.items():
                trainer.step = 0  # the same subnets for all
                start = time.perf_counter()
                trainer.advance(steps)
                if window >= 0:
                    best[name] = min(best[name], time.perf_counter() - start)
        return {name: steps * trainer.images_per_step / best[name] for name, trainer in trainers.items()}

    def train(self, recipe: Recipe, images: float, seed: int) -> dict[str, float]:
        """Train on so many images; top-1 on the search split, in percent, of averaged and of raw weights."""
        epochs = images / len(self.data.pixels)
        share = recipe.warmup_epochs / recipe.epochs
        shaped = recipe.model_copy(update={"epochs": epochs, "warmup_epochs": share * epochs})
        trainer = self.trainer(shaped, seed)
        trainer.advance(trainer.total_steps)
        trainer.model.eval()
        trainer.averaged.eval()
        return self._scores("averaged", trainer.averaged) | self._scores("raw", trainer.model)

    def _scores(self, weights: str, model: torch.nn.Module) -> dict[str, float]:
        names = ("smallest", "middle", "largest") if self.stage == "supernet" else ("subnet",)
        return {f"{name}_{weights}_top1_percent": self._top1(model, name) for name in names}

    def _top1(self, model: torch.nn.Module, name: str) -> float:
        data = self.data
        forward: Callable[..., torch.Tensor] = model
        if name != "subnet":
            forward = partial(model, spec=getattr(self.space, name))
        logits = predict_logits(forward, data.search_pixels, data.mean, data.std, batch_size=500)
        return score(logits, data.search_labels).top1_percent


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    torch.set_num_threads(arguments.threads)
    config = load_config(arguments.config)
    spec = SubnetSpec.from_json(arguments.subnet) if arguments.subnet else config.space.middle
    if arguments.stage == "finetune" and arguments.supernet is None:
        raise SystemExit("--stage finetune needs --supernet, a folder made by train_supernet")
    bench = Bench(arguments.stage, config, read(arguments.data, config), spec, arguments.supernet)
    variants = recipes(arguments.stage, config)
    variants = {name: recipe for name, recipe in variants.items() if not arguments.only or name in arguments.only}
    rates = bench.rates(variants, arguments.rounds)
    result: dict[str, Any] = {
        "stage": arguments.stage,
        "seconds": arguments.seconds,
        "threads": arguments.threads,
        "torch": torch.__version__,
        "subnet": spec.to_dict(),
        "params": count_params(config.space, spec),
        "rows": [],
    }
    for name, recipe in variants.items():
        for seed in range(arguments.seeds):
            images = rates[name] * arguments.seconds
            row = {"variant": name, "seed": seed, "images_per_second": round(rates[name]), "images": round(images)}
            row |= bench.train(recipe, images, seed)
            result["rows"].append(row)
            write_json(arguments.out, result)
            print(row, flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo_recipe", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the four IDX files")
    parser.add_argument("--out", type=Path, required=True, help="to write: all rows (JSON)")
    parser.add_argument("--stage", choices=STAGES, default="scratch", help="which recipe (default: %(default)s)")
    parser.add_argument("--config", default="demo", help="preset or YAML file (default: %(default)s)")
    parser.add_argument("--supernet", type=Path, help="for finetune: a folder made by train_supernet")
    parser.add_argument("--subnet", help="for finetune and scratch: the subnet as JSON (default: the space's middle)")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help=f"of: {', '.join(VARIANTS)}, …")
    parser.add_argument("--seconds", type=float, default=100, help="training time of a variant (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="runs of a variant (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=5, help="windows that a rate is the best of (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=2, help="of torch (default: %(default)s)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
