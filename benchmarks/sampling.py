"""The three ways to sample subnets, on the demo: one budget, counted in images through a forward pass.

    python -m benchmarks.sampling [--quick] [--seed N] [--out sampling.json]

The recipe is the demo's, with its schedule stretched over the steps that the budget allows: a sandwich of four subnets
takes a quarter of the steps of the others. Told are top-1 on the search split of averaged weights, for three named
subnets, for random ones as a search draws them, and for ones spread evenly over the range of parameters; the same
subnets for all. One seed each: differences of some tenths of a point are noise.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch

from autoformer.evaluation import predict_logits, score
from autoformer.files import write_json
from autoformer.images.split_images import DecodedSplit
from autoformer.images.training_loader import training_loader
from autoformer.layers import initialise
from autoformer.randomness import derived_rng
from autoformer.sampling import Sampling, make_sampler, uniform_params
from autoformer.space import SubnetSpec
from autoformer.supernet import Supernet
from autoformer.training import Trainer
from benchmarks.demo_recipe import Data, read
from benchmarks.rows import Row, measured, table
from runtime.common.config import ROOT, Config, TrainSupernet, load_config

KINDS: tuple[Sampling, ...] = get_args(Sampling)
EPOCHS, QUICK_EPOCHS = 8.0, 0.6  # images through a forward pass, in passes over the train split
SUBNETS, QUICK_SUBNETS = 20, 4
THREADS = 2
SCORED = ("smallest", "middle", "largest")


def measure(quick: bool = False, seed: int = 0) -> dict[str, Any]:
    """Of the demo, with its images. `quick`: a shorter budget, fewer subnets and images, to see it run."""
    torch.set_num_threads(THREADS)
    config = load_config("demo")
    data = read(ROOT / "data" / "fashion-mnist", config)
    if quick:
        return compare(data, config, QUICK_EPOCHS, QUICK_SUBNETS, 2000, seed)
    return compare(data, config, seed=seed)


def compare(
    data: Data, config: Config, epochs: float = EPOCHS, subnets: int = SUBNETS, images: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Train with each kind of sampling and score. `images`: of the search split; None for all."""
    space = config.space
    rng = derived_rng("benchmark subnets")
    groups = {name: [getattr(space, name)] for name in SCORED}
    groups[f"mean of {subnets} random subnets"] = [space.sample(rng) for _ in range(subnets)]
    even = uniform_params(space, 1, bins=subnets)
    groups[f"mean of {subnets} even in parameters"] = [even(step)[0].subnet or space.middle for step in range(subnets)]
    rows, details = [], {}
    for kind in KINDS:
        start = time.perf_counter()
        trainer = make_trainer(kind, data, config, epochs, seed)
        passes = trainer.total_steps * trainer.images_per_step * len(trainer.sampler(0))
        trainer.advance(trainer.total_steps)
        seconds = time.perf_counter() - start
        model = trainer.averaged.eval()
        for group, specs in groups.items():
            top1 = statistics.mean(top1_percent(model, spec, data, images) for spec in specs)
            rows.append(Row(f"{kind}: {group}", top1, "%", note="top-1 on the search split"))
        details[kind] = {"steps": trainer.total_steps, "images_through_forward": passes, "seconds": round(seconds, 1)}
    return measured(rows, epochs=epochs, seed=seed, trainings=details)


def make_trainer(kind: Sampling, data: Data, config: Config, epochs: float, seed: int) -> Trainer:
    """The demo's supernet training, as long as lets `epochs` train splits through its forward passes."""
    section, space = config.section(TrainSupernet), config.space
    sampler = make_sampler(kind, space, seed, section.sandwich_random)
    own = epochs / len(sampler(0))
    recipe = section.recipe()
    warmup = recipe.warmup_epochs / recipe.epochs * own
    recipe = recipe.model_copy(update={"epochs": own, "warmup_epochs": warmup})
    torch.manual_seed(seed)
    model = Supernet(space, recipe.drop_path)
    initialise(model, recipe.init_gain)
    split = DecodedSplit(data.pixels.numpy(), data.labels.numpy(), [])
    images = training_loader(split, recipe, seed, space.image_size, data.mean)
    return Trainer(model, sampler, images, space.num_classes, data.mean, data.std, recipe, seed)


def top1_percent(model: torch.nn.Module, spec: SubnetSpec, data: Data, images: int | None) -> float:
    forward = partial(model, spec=spec)
    logits = predict_logits(forward, data.search_pixels[:images], data.mean, data.std, batch_size=500)
    return score(logits, data.search_labels[:images]).top1_percent


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampling", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of training (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a shorter budget, and fewer subnets and images")
    parser.add_argument("--out", type=Path, help="to write: rows and details (JSON)")
    given = parser.parse_args(argv)
    result = measure(given.quick, given.seed)
    print(table(result["rows"]))
    for kind, details in result["trainings"].items():
        print(f"{kind}: " + ", ".join(f"{key} {value:,}" for key, value in details.items()))
    if given.out:
        write_json(given.out, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
