"""(g) Resume bit by bit or how far off, accumulation that is found, an out-of-memory line, Ctrl-C."""

import contextlib
import io
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from autoformer.devices import is_out_of_memory
from autoformer.files import hash_file, write_json
from autoformer.images.split_files import Split, hash_split, image_checksums, write_split
from autoformer.images.split_images import DecodedSplit
from autoformer.images.training_loader import training_loader
from autoformer.named import load_space
from autoformer.recipe import Recipe
from autoformer.sampling import uniform
from autoformer.space import SearchSpace
from autoformer.supernet import Supernet
from autoformer.training import Trainer
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.machine import ROOT
from benchmarks.gpu.work import card_of, random_images
from benchmarks.loader import MEAN, STD
from components.train_supernet.step import main as train_supernet
from runtime.common.config import TrainSupernet, load_config
from runtime.steps.training_setup import Training, make_trainer, out_of_memory

TRAINED = 8  # steps, half of them before the state is saved
IN_BATCHES = {"flip": True, "mixup": 0.8, "cutmix": 1.0}  # augmentation without a loader
STEP_IMAGES, SEARCH_IMAGES, BATCH = 640, 64, 64
STOP_AFTER, PATIENCE_SECONDS = 10, 120  # optimiser steps; of one process


def resume(bench: Bench) -> None:
    bench.fact("ran", "the library's Trainer, runtime.steps.training_setup, and train_supernet with tracking off")
    for name, part in (("Trainer", _trainer), ("Ctrl-C", _interrupted), ("memory", _memory)):
        if bench.cut(f"{name} and what follows"):
            return
        with bench.attempt(name):
            part(bench)


def differences(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest of any weight; 0 where all are equal to the bit."""
    return max(float((found[name].double() - weight.double()).abs().max()) for name, weight in expected.items())


# --- the library's Trainer ---


def _trainer(bench: Bench) -> None:
    space, recipe = next(iter(bench.size.cases().values())).space, _recipe(bench.size.batches[-1])
    images = random_images(space, 2 * recipe.batch_size)

    def trainer(seed: int) -> Trainer:
        torch.manual_seed(seed)
        source = training_loader(images, recipe, 0, space.image_size, MEAN)
        model = Supernet(space, recipe.drop_path).to(bench.device)
        return Trainer(model, uniform(space, 0), source, space.num_classes, MEAN, STD, recipe, 0)

    whole, again, first, second = (trainer(seed) for seed in (0, 0, 0, 1))
    losses = [each.advance(TRAINED) for each in (whole, again)]
    first.advance(TRAINED // 2)
    saved = io.BytesIO()
    torch.save(first.state_dict(), saved)
    saved.seek(0)
    second.load_state_dict(torch.load(saved, map_location="cpu", weights_only=True))
    second.advance(TRAINED - TRAINED // 2)
    expected, exact = whole.model.state_dict(), None if bench.on_gpu else 0.0
    case = f"Trainer, {TRAINED} steps of {recipe.batch_size} in {whole.precision}"
    bench.row(f"{case}: twice, largest difference", differences(again.model.state_dict(), expected), "", exact)
    bench.row(f"{case}: resumed, largest difference", differences(second.model.state_dict(), expected), "", exact)
    bench.row(f"{case}: loss", losses[0], "")


def _recipe(batch: int) -> Recipe:
    """The published one, on images that lie in memory."""
    published = load_config("imagenet-tiny").section(TrainSupernet).recipe().model_dump()
    changed = {"batch_size": batch, "accumulation": 1, "augmentation": IN_BATCHES, "epochs": 100}
    return Recipe.model_validate(published | changed)


# --- accumulation: auto, and a step that does not fit ---


def _memory(bench: Bench) -> None:
    """In less memory than there is, so that it takes no time."""
    space, batch = load_space(bench.size.memory_space), bench.size.auto_batch
    images = random_images(space, batch)
    with tempfile.TemporaryDirectory() as folder, limited(bench.device, bench.size.memory_bytes):
        found = make_trainer(_training(bench, space, images, "auto", Path(folder) / "auto.json"))
        bench.row("accumulation: found", found.micro_batches, "")
        bench.fact("accumulation", f"of {batch} images a step of {space.name}, in {bench.size.memory_bytes / 1e9:g} GB")
        if bench.on_gpu:  # a CPU is not asked
            torch.cuda.reset_peak_memory_stats(bench.device)
            found.take_step()
            bench.row("accumulation: memory of its step", torch.cuda.max_memory_allocated(bench.device) / 1e9, "GB")
        del found
        training = _training(bench, space, images, 1, Path(folder) / "one.json")
        trainer = make_trainer(training)
        try:
            trainer.take_step()
            raise RuntimeError(f"{batch} images fit into {bench.size.memory_bytes / 1e9:g} GB: nothing to see")
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        bench.fact("out of memory", str(out_of_memory(training, trainer)))


def _training(bench: Bench, space: SearchSpace, images: DecodedSplit, accumulation: int | str, found: Path) -> Training:
    """That of the published supernet's recipe, with all images in one step."""
    given = {
        "space": space.name, "train_supernet.batch_size": len(images.labels),
        "train_supernet.accumulation": accumulation, "train_supernet.augmentation": IN_BATCHES,
    }  # fmt: skip
    section = load_config("imagenet-tiny", [f"{key}={value}" for key, value in given.items()]).section(TrainSupernet)
    return Training(
        step="train_supernet", section=section, space=space, model=Supernet(space), subnet=space.largest,
        sampler=section.sampler(space, 0), images=images, card=card_of(space), seed=0, device=bench.device,
        accumulation_file=found,
    )  # fmt: skip


@contextlib.contextmanager
def limited(device: torch.device, memory_bytes: int) -> Iterator[None]:
    """So much memory and no more: of the GPU, or beyond what this process has taken of the machine.

    On the CPU without oneDNN, which does not recover from an allocation that failed.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory_bytes / total), device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
        return
    former = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + memory_bytes, former[1]))
    try:
        with torch.backends.mkldnn.flags(enabled=False):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, former)


# --- the training step, as a user runs it ---


def _interrupted(bench: Bench) -> None:
    """A process gets Ctrl-C, and its command is given again; meanwhile the same runs undisturbed in this process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = _data(folder, load_space("fashion-mnist"))
        epochs = bench.size.steps * BATCH / STEP_IMAGES
        given += ["--config", "smoke", "--set", f"device={bench.device}"]
        for key, value in (("epochs", epochs), ("batch_size", BATCH), ("score_steps", 10 * STOP_AFTER)):
            given += ["--set", f"train_supernet.{key}={value}"]
        given += ["--set", f"train_supernet.checkpoint_steps={STOP_AFTER}"]
        stopped, end = _start(folder / "stopped", given), time.monotonic() + PATIENCE_SECONDS
        while not list((folder / "stopped").glob("work/*/*/checkpoint.pt")) and stopped.poll() is None:
            if time.monotonic() > end:
                break
            time.sleep(0.02)
        stopped.send_signal(signal.SIGINT)
        bench.row("train_supernet: exit code after Ctrl-C", _ended(bench, "Ctrl-C", stopped), "", 130)
        again = _start(folder / "stopped", given)
        with _environment(folder / "undisturbed"):
            undisturbed = train_supernet([*given, *_places(folder / "undisturbed")])
        codes = undisturbed, _ended(bench, "again", again)
        bench.row("train_supernet: exit code of the same command", max(codes), "", 0)
        weights = [load_file(folder / where / "out" / "weights.safetensors") for where in ("stopped", "undisturbed")]
        off = differences(*weights)
        bench.row("train_supernet: resumed, largest difference", off, "", None if bench.on_gpu else 0.0)


def _data(folder: Path, space: SearchSpace) -> list[str]:
    """Images in the layout of a data set, and the arguments that name them."""
    images = random_images(space, STEP_IMAGES + SEARCH_IMAGES)
    size = images.pixels[0].nbytes
    (folder / "data").mkdir()
    (folder / "data" / "images.bin").write_bytes(images.pixels.tobytes())
    count = len(images.labels)
    rows = Split(
        np.full(count, "images.bin", object), np.arange(count) * size, np.full(count, size, np.int32),
        images.labels.astype(np.int32), image_checksums(images.pixels),
    )  # fmt: skip
    hashes, given = {}, ["--data", str(folder / "data"), "--card", str(folder / "card.json")]
    for name, here in (("train", np.arange(STEP_IMAGES)), ("search", np.arange(STEP_IMAGES, count))):
        part = rows.take(here)
        write_split(folder / f"{name}.parquet", part)
        hashes[name] = hash_split(part.checksums, part.labels)
        given += [f"--{name}-split", str(folder / f"{name}.parquet")]
    archives = {"images.bin": hash_file(folder / "data" / "images.bin")}
    card = card_of(space, archives=archives, split_hashes=hashes)
    write_json(folder / "card.json", card.model_dump(mode="json"))
    return given


def _start(folder: Path, given: list[str]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "components.train_supernet", *given, *_places(folder)]
    with _environment(folder):
        environment = os.environ | {"AUTOFORMER_RUNNER_PID": str(os.getpid())}  # it ends when this process does
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _places(folder: Path) -> list[str]:
    return ["--out", str(folder / "out"), "--record", str(folder / "record.json")]


@contextlib.contextmanager
def _environment(folder: Path) -> Iterator[None]:
    former = dict(os.environ)
    os.environ |= {"AUTOFORMER_WORK": str(folder / "work"), "AUTOFORMER_TRACKING": "off", "AUTOFORMER_PROCESSES": "1"}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(former)


def _ended(bench: Bench, what: str, process: "subprocess.Popen[str]") -> int:
    try:
        printed, _ = process.communicate(timeout=PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        printed, _ = process.communicate()
    bench.fact(what, (printed.strip().splitlines() or ["printed nothing"])[-1])
    return process.returncode
