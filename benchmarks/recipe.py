"""What each part of the demo's recipe earns, over several seeds.

    python -m benchmarks.recipe [PART …] [--seeds N]

The parts are `stem`, `augmentation`, `supernet` and `fine_tuning`: tables of docs/demo-recipe.md. All trainings of a
part have equally many images. Scores are of averaged weights on the search split, on which the recipe was chosen; no
test image is read. Intervals are Student's over the seeds. Rates are images per second of processor time.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from autoformer.complexity import count_params
from autoformer.layers import initialise
from autoformer.recipe import Recipe
from autoformer.sampling import SubnetSampler, whole_model
from autoformer.space import SearchSpace, SubnetSpec
from autoformer.supernet import Supernet
from autoformer.vit import AutoFormer
from benchmarks.demo import DATA, demo_images
from benchmarks.rows import aligned
from benchmarks.searches import mean_interval
from runtime.common.config import Config, load_config
from runtime.common.console import Parser, positive, run_command
from runtime.common.processes import set_threads
from runtime.common.sections import RetrainSubnet, TrainSupernet

LARGE = SubnetSpec(4, 96, (3, 2, 3, 2), (2.0, 2.0, 3.0, 2.0))
SMALL = SubnetSpec(4, 96, (2, 2, 2, 2), (1.0, 1.0, 1.0, 1.0))
FLIPS: dict[str, Any] = {"augmentation": {"flip": True}}
SHIFTS: dict[str, Any] = {"augmentation": {"flip": True, "crop_padding": 1}}
ADAMW, NADAMW, MUON, WHOLE = (
    {"optimizer": name, "learning_rate": rate}
    for name, rate in (("adamw", 2e-3), ("nadamw", 2e-3), ("muon", 6e-3), ("muon_whole", 6e-3))
)


class Trained(NamedTuple):
    """A training: the score of a subnet, and images per second of processor time."""

    top1_percent: float
    loss: float
    rate: float


class Bench:
    """Trains from a seed, and scores on the search split."""

    def __init__(self, config: Config, share: float) -> None:
        """`share`: of the images of each training."""
        self.config, self.share = config, share
        self.images = demo_images(config, DATA)

    def train(
        self, model: Supernet | AutoFormer, sampler: SubnetSampler, images: int, recipe: dict[str, Any], seed: int
    ) -> tuple[nn.Module, float]:
        """The averaged model, and images per second. `recipe`: changes of the supernet's."""
        epochs = images * self.share / len(self.images.splits["train"].labels)
        base = self.config.section(TrainSupernet).recipe().model_dump()
        changed = Recipe.model_validate(base | {"epochs": epochs, "warmup_epochs": epochs / 10} | recipe)
        trainer = self.images.trainer(model, sampler, changed, seed)
        start = time.process_time()
        trainer.advance(trainer.total_steps)
        rate = trainer.total_steps * trainer.images_per_step / (time.process_time() - start)
        return trainer.averaged.eval(), rate

    def score(self, model: nn.Module, rate: float) -> Trained:
        scored = self.images.score(model, "search")
        return Trained(scored.top1_percent, scored.loss, rate)

    def subnet(self, space: SearchSpace, spec: SubnetSpec, images: int, recipe: dict[str, Any], seed: int) -> Trained:
        """A subnet from random weights, with averaged weights of a short training."""
        torch.manual_seed(seed)
        model = AutoFormer.from_spec(space, spec)
        initialise(model, self.config.section(TrainSupernet).init_gain)
        return self.score(*self.train(model, whole_model, images, {"ema_decay": 0.99} | recipe, seed))

    def supernet(self, images: int, recipe: dict[str, Any], seed: int) -> tuple[Supernet, float]:
        torch.manual_seed(seed)
        space, section = self.config.space, self.config.section(TrainSupernet)
        model = Supernet(space)
        initialise(model, section.init_gain)
        trained, rate = self.train(model, section.sampler(space, seed), images, recipe, seed)
        assert isinstance(trained, Supernet)
        return trained, rate


Result = tuple[str, Trained]


def stem(bench: Bench, seed: int) -> Iterator[Result]:
    """A subnet from scratch, 48,000 images."""
    space = bench.config.space
    patches = space.model_copy(update={"stem_channels": ()})
    wide = space.model_copy(update={"stem_channels": (24, 48)})
    for name, of, recipe in (
        ("patches, AdamW", patches, ADAMW),
        ("patches, NAdamW", patches, NADAMW),
        ("patches, Muon", patches, MUON),
        ("stem, AdamW", space, ADAMW),
        ("stem, Muon", space, MUON),
        ("stem of 24 and 48 channels, Muon", wide, MUON),
    ):
        params = count_params(of, LARGE)
        yield f"{name}: {params:,} parameters", bench.subnet(of, LARGE, 48_000, recipe, seed)


def augmentation(bench: Bench, seed: int) -> Iterator[Result]:
    """A subnet from scratch, 108,000 images."""
    for name, recipe in (("none", {}), ("flips", FLIPS), ("flips and shifts of a pixel", SHIFTS)):
        yield name, bench.subnet(bench.config.space, SMALL, 108_000, recipe, seed)


def supernet(bench: Bench, seed: int) -> Iterator[Result]:
    """A supernet of the demo's space, 60,000 images."""
    space = bench.config.space
    for name, recipe in (("AdamW", ADAMW), ("Muon on the slice", MUON), ("Muon on the whole matrix", WHOLE)):
        model, rate = bench.supernet(60_000, {"ema_decay": 0.99} | recipe, seed)
        specs = {"smallest": space.smallest, "middle": space.middle, "largest": space.largest}
        for which, spec in specs.items():
            yield f"{name}, {which}", bench.score(model.extract(spec), rate)


def fine_tuning(bench: Bench, seed: int) -> Iterator[Result]:
    """A subnet with the weights of the demo's supernet, trained further."""
    section = bench.config.section(TrainSupernet)
    images = round(section.epochs * len(bench.images.splits["train"].labels))
    parent, rate = bench.supernet(images, {"warmup_epochs": section.warmup_epochs * bench.share}, seed)
    yield "inherited", bench.score(parent.extract(SMALL), rate)
    tuned = bench.config.section(RetrainSubnet).recipe().model_dump(include={"ema_decay", "min_learning_rate"})
    for peak, more, name, recipe in (
        (3e-3, 108_000, "no augmentation", {}),
        (3e-3, 108_000, "flips", FLIPS),
        (6e-3, 162_000, "no augmentation", {}),
        (4e-3, 162_000, "flips", FLIPS),
    ):
        recipe = tuned | recipe | {"learning_rate": peak}
        trained = bench.train(parent.extract(SMALL).train(), whole_model, more, recipe, seed)
        yield f"{peak:g}, {more:,} images, {name}", bench.score(*trained)


PARTS: dict[str, Callable[[Bench, int], Iterator[Result]]] = {
    "stem": stem, "augmentation": augmentation, "supernet": supernet, "fine_tuning": fine_tuning,
}  # fmt: skip


def lines(part: str, config: Config, seeds: int, share: float = 1.0) -> list[str]:
    """The table of a part. `share`: of the images of each training."""
    bench, found = Bench(config, share), dict[str, list[Trained]]()
    for seed in range(seeds):
        for name, trained in PARTS[part](bench, seed):
            found.setdefault(name, []).append(trained)
            top1, loss, rate = trained
            print(f"{part}, seed {seed}: {name}: {top1:.2f} %, loss {loss:.4f}, {rate:.0f} images/s", flush=True)
    rows = [(part, "top-1, %", "95 % interval", "loss", "images/s")]
    for name, trainings in found.items():
        top1s, losses, rates = zip(*trainings, strict=True)
        mean, low, high = mean_interval(top1s)
        loss, rate = statistics.fmean(losses), statistics.median(rates)
        rows.append((name, f"{mean:.2f}", f"{low:.2f} to {high:.2f}", f"{loss:.3f}", f"{rate:.0f}"))
    return aligned(rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.recipe", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--seeds", type=positive, default=3, help="trainings of each, 2 or more (default: %(default)s)")

    def work(arguments: argparse.Namespace) -> None:
        unknown = [part for part in arguments.parts if part not in PARTS]
        if unknown:
            parser.error(f"there is no part '{unknown[0]}'; the parts are {', '.join(PARTS)}")
        if arguments.seeds < 2:
            parser.error(f"--seeds {arguments.seeds}: an interval needs 2 or more")
        set_threads(1)
        for part in arguments.parts or PARTS:
            print("\n".join(lines(part, load_config("demo"), arguments.seeds)), flush=True)

    return run_command("benchmarks.recipe", parser, work, argv, after="")


if __name__ == "__main__":
    raise SystemExit(main())
