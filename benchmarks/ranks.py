"""The cost of training in several processes: two ranks of one thread on two cores against one process.

In each round rank 0 trains alone with one thread, then with two threads and twice the images; then both train with
gradients averaged by DistributedDataParallel, and without. All runs use the same uniformly drawn subnets of one
supernet. gloo sends the gradients over loopback; NCCL between GPUs is not measured.
"""

import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from torch import distributed

from autoformer.distributed import SINGLE_PROCESS, World
from autoformer.images.training_loader import training_loader
from autoformer.named import load_space
from autoformer.recipe import Recipe
from autoformer.sampling import uniform
from autoformer.space import SearchSpace
from autoformer.supernet import Supernet
from autoformer.training import Trainer
from benchmarks.gpu.throughput import random_images
from benchmarks.rows import Row, interleaved, measured, ratio

SPACE = "autoformer-tiny"


def measure(quick: bool = False) -> dict[str, Any]:
    """The rows, and the measured seconds."""
    images, steps, rounds = (2, 1, 2) if quick else (8, 2, 7)  # images of a rank and step, steps of a run
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(2, get_context("spawn")) as pool:
        call = partial(time_ranks, f"file://{folder}/ranks", images, steps, rounds)
        seconds, _ = pool.map(call, range(2))
    one, two, both = seconds["one thread"], seconds["two threads"], seconds["two ranks"]
    rows = [
        Row("2 ranks of 1 thread: images a second / 1 process of 1 thread", 2 * ratio(one, both), "x"),
        Row("2 ranks of 1 thread: images a second / 1 process of 2 threads, as many images", ratio(two, both), "x"),
        Row("2 ranks: step with gradients averaged / without", ratio(both, seconds["two ranks, no sum"]), "x"),
    ]
    return measured(rows, space=SPACE, images_of_a_rank=images, seconds=seconds)


def time_ranks(rendezvous: str, images: int, steps: int, rounds: int, rank: int) -> dict[str, list[float]]:
    """Seconds of `steps` steps, of each run in each round; the same call in both ranks."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rendezvous, rank=rank, world_size=2)
    world = World(rank, 2)
    space = load_space(SPACE)
    alone, alone_twice = (make_trainer(SINGLE_PROCESS, space, count) for count in (images, 2 * images))
    shared, unshared = (make_trainer(world, space, 2 * images) for _ in range(3))
    unshared.ddp = None

    def train(trainer: Trainer, threads: int = 1) -> None:
        if trainer.world.size == 2 or rank == 0:
            torch.set_num_threads(threads)
            trainer.step = 0  # the same subnets each time
            for _ in range(steps):
                trainer.take_step()
            torch.set_num_threads(1)
        world.all_gather(None)

    runs = {
        "one thread": partial(train, alone),
        "two threads": partial(train, alone_twice, 2),
        "two ranks": partial(train, shared),
        "two ranks, no sum": partial(train, unshared),
    }
    try:
        return interleaved(runs, rounds)
    finally:
        distributed.destroy_process_group()


def make_trainer(world: World, space: SearchSpace, images: int) -> Trainer:
    """A trainer of a step of `images`, of all ranks together, on random pixels."""
    recipe = Recipe(epochs=1e6, batch_size=images, learning_rate=1e-3, clip_grad=1.0)
    half = (0.5,) * space.in_channels
    split = random_images(space, 2 * images)
    source = training_loader(split, recipe, 0, space.image_size, half, world.size, world=world)
    return Trainer(Supernet(space), uniform(space, 0), source, space.num_classes, half, half, recipe, 0)
