"""Two ranks of one thread on two cores, against one process: what training in several processes costs.

    python -m benchmarks.ranks [--quick] [--space autoformer-tiny] [--out ranks.json]

All of it is measured in the two processes of one torchrun, round by round: rank 0 trains alone with one thread, then
alone with two threads and twice the images, then both train together, with our sum of gradients, with
DistributedDataParallel in its place, and with none; whoever does not train waits without work. Every run takes the
same subnets, drawn uniformly, of one supernet at its own image size. gloo carries the gradients over loopback; NCCL
between GPUs is another matter, and is not measured here.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from autoformer.distributed import SINGLE_PROCESS, World
from autoformer.files import write_json
from autoformer.images.split_images import DecodedSplit
from autoformer.images.training_loader import training_loader
from autoformer.named import load_space
from autoformer.recipe import Recipe
from autoformer.sampling import uniform
from autoformer.space import SearchSpace
from autoformer.supernet import Supernet
from autoformer.training import Trainer
from benchmarks.rows import Row, interleaved, measured, ratio, table

SPACE, IMAGES, STEPS, ROUNDS = "autoformer-tiny", 8, 2, 7  # images of a rank and step, steps of a window
QUICK = (2, 1, 2)


def measure(quick: bool = False) -> dict[str, Any]:
    """Rows, with all seconds. `quick`: fewer of everything, to see it run."""
    return measure_space(SPACE, *(QUICK if quick else (IMAGES, STEPS, ROUNDS)))


def measure_space(space: str, images: int, steps: int, rounds: int) -> dict[str, Any]:
    """Start the two ranks, and work out rows from what they have timed."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "seconds.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        arguments = ["--space", space, "--images", str(images), "--steps", str(steps), "--rounds", str(rounds)]
        subprocess.run(
            [*command, "-m", "benchmarks.ranks", *arguments, "--rank-writes", str(out)],
            env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            check=True,
        )
        seconds = json.loads(out.read_text())
    one, two, together = seconds["one thread"], seconds["two threads"], seconds["two ranks"]
    rows = [
        Row(
            "2 ranks of 1 thread: images a second against 1 process of 1 thread",
            2 * ratio(one, together), "x", note="2 would be perfect; both at once also share caches and memory",
        ),
        Row("the same, as efficiency", 100 * ratio(one, together), "%"),
        Row(
            "2 ranks of 1 thread: images a second against 1 process of 2 threads with as many images",
            ratio(two, together), "x",
        ),
        Row(
            "2 ranks: step with gradients summed against the same step without",
            ratio(together, seconds["two ranks, no sum"]), "x", note="what the backward pass does not hide of it",
        ),
        Row(
            "2 ranks: the sum of a step's gradients by itself, as a share of the step",
            100 * ratio(seconds["sum alone"], together), "%", note="gloo over loopback, all at once",
        ),
        Row(
            "2 ranks: step against the same step with torch's DistributedDataParallel",
            ratio(together, seconds["two ranks, DDP"]), "x", note="find_unused_parameters, which it needs",
        ),
        Row("2 ranks: step", statistics.median(together) / steps, "s"),
    ]  # fmt: skip
    return measured(rows, space=space, images_of_a_rank=images, seconds=seconds)


def time_ranks(world: World, space: SearchSpace, images: int, steps: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of `steps` steps, of each run in each round; the same call in both ranks."""
    alone, alone_twice = (make_trainer(SINGLE_PROCESS, space, count) for count in (images, 2 * images))
    shared, unshared, ddp = (make_trainer(world, space, 2 * images) for _ in range(3))
    unshared.gradients.world = SINGLE_PROCESS
    ddp.gradients.world = SINGLE_PROCESS
    ddp.model = DistributedDataParallel(  # type: ignore[assignment]
        ddp.model, find_unused_parameters=True, gradient_as_bucket_view=True
    )
    bucket = torch.zeros(_mean_gradients(space, steps))

    def only_rank_0(trainer: Trainer, threads: int) -> Callable[[], None]:
        def run() -> None:
            if world.is_rank_zero:
                torch.set_num_threads(threads)
                train(trainer, steps)
                torch.set_num_threads(1)
            world.all_gather(None)

        return run

    def both(trainer: Trainer) -> Callable[[], None]:
        def run() -> None:
            train(trainer, steps)
            world.all_gather(None)

        return run

    def add() -> None:
        for _ in range(steps):
            world.all_reduce(bucket)
        world.all_gather(None)

    runs: dict[str, Callable[[], object]] = {
        "one thread": only_rank_0(alone, 1),
        "two threads": only_rank_0(alone_twice, 2),
        "two ranks": both(shared),
        "two ranks, no sum": both(unshared),
        "two ranks, DDP": both(ddp),
        "sum alone": add,
    }
    return interleaved(runs, rounds, time.perf_counter)


def make_trainer(world: World, space: SearchSpace, images: int) -> Trainer:
    """A trainer of a step of `images`, of all ranks together, on random pixels."""
    side = space.image_size
    pixels = torch.randint(0, 256, (2 * images, space.in_channels, side, side), dtype=torch.uint8)
    split = DecodedSplit(pixels.numpy(), torch.randint(0, space.num_classes, (2 * images,)).numpy(), [])
    recipe = Recipe(epochs=1e6, batch_size=images, learning_rate=1e-3, clip_grad=1.0)
    statistics_ = (0.5,) * space.in_channels
    source = training_loader(split, recipe, 0, side, statistics_, world.size, world=world)
    model = Supernet(space)
    return Trainer(
        model, uniform(space, 0), source, space.num_classes, statistics_, statistics_, recipe, 0
    )  # fmt: skip


def train(trainer: Trainer, steps: int) -> None:
    trainer.step = 0  # the same subnets for all
    for _ in range(steps):
        trainer.take_step()


def _mean_gradients(space: SearchSpace, steps: int) -> int:
    """How many numbers a step sends, a mean over the steps: those of the blocks in use, whole."""
    model = Supernet(space)
    blocks = [sum(parameter.numel() for parameter in block.parameters()) for block in model.blocks]
    rest = sum(parameter.numel() for parameter in model.parameters()) - sum(blocks)
    depths = [lesson.subnet.depth for step in range(steps) for lesson in uniform(space, 0)(step) if lesson.subnet]
    return round(rest + statistics.mean(sum(blocks[:depth]) for depth in depths))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--space", default=SPACE, help="of configs/spaces (default: %(default)s)")
    parser.add_argument("--images", type=int, default=IMAGES, help="of a rank and step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="of a window (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of all runs in turn (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="fewer of everything")
    parser.add_argument("--out", type=Path, help="to write: rows and all seconds (JSON)")
    parser.add_argument("--rank-writes", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    sizes = QUICK if given.quick else (given.images, given.steps, given.rounds)
    if given.rank_writes:
        distributed.init_process_group("gloo")
        torch.set_num_threads(1)
        world = World(distributed.get_rank(), distributed.get_world_size())
        seconds = time_ranks(world, load_space(given.space), *sizes)
        if world.is_rank_zero:
            write_json(given.rank_writes, seconds)
        distributed.destroy_process_group()
        return 0
    result = measure_space(given.space, *sizes)
    print(table(result["rows"]))
    if given.out:
        write_json(given.out, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
