"""Check resumed training, `accumulation: auto`, the out-of-memory line, and Ctrl-C."""

import contextlib
import gzip
import io
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from autoformer.devices import is_out_of_memory
from autoformer.images.training_loader import training_loader
from autoformer.named import load_space
from autoformer.supernet import Supernet
from benchmarks.gpu.machine import ROOT
from benchmarks.gpu.recorder import GIGA, Recorder
from benchmarks.gpu.throughput import card_of, published_recipe, random_images, supernet_trainer
from benchmarks.loader import MEAN
from components.prepare_data import fashion_mnist
from components.prepare_data.step import SPLITS, prepare, write_prepared
from components.train_supernet.step import main as train_supernet
from runtime.common.config import load_config
from runtime.common.sections import PrepareData, TrainSupernet
from runtime.steps.training_setup import Training, make_trainer, out_of_memory

TRAINED = 8  # steps, half of them before the state is saved
IN_BATCHES = {"flip": True, "mixup": 0.8, "cutmix": 1.0}  # augmentation without a loader
TRAIN_IMAGES, SEARCH_IMAGES, BATCH = 640, 60, 32
STOP_AFTER, PATIENCE_SECONDS = 10, 120  # optimiser steps; of one process


def resume(recorder: Recorder) -> None:
    recorder.fact("ran", "the library's Trainer, runtime.steps.training_setup, and train_supernet with tracking off")
    parts = {"Trainer": _trainer, "Ctrl-C": _interrupted, "memory": _memory}
    recorder.each({name: partial(part, recorder) for name, part in parts.items()})


def largest_difference(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest absolute difference of any weight; 0 if all are bit-identical."""
    return max(float((weights[name].double() - weight.double()).abs().max()) for name, weight in expected.items())


def _trainer(recorder: Recorder, name: str) -> None:
    space = next(iter(recorder.size.cases().values())).space
    recipe = published_recipe(batch_size=recorder.size.batches[-1], augmentation=IN_BATCHES, epochs=100)
    images = random_images(space, 2 * recipe.batch_size)
    whole, again, first, second = (
        supernet_trainer(recorder, space, training_loader(images, recipe, 0, space.image_size, MEAN), recipe, seed)
        for seed in (0, 0, 0, 1)
    )
    loss, _ = whole.advance(TRAINED), again.advance(TRAINED)
    first.advance(TRAINED // 2)
    saved = io.BytesIO()
    torch.save(first.state_dict(), saved)
    saved.seek(0)
    second.load_state_dict(torch.load(saved, map_location="cpu", weights_only=True))
    second.advance(TRAINED - TRAINED // 2)
    case, limit = f"{name}, {TRAINED} steps of {recipe.batch_size} in {whole.precision}", _exact(recorder)
    for run, trainer in (("twice", again), ("resumed", second)):
        difference = largest_difference(trainer.model.state_dict(), whole.model.state_dict())
        recorder.row(f"{case}: {run}, largest difference", difference, "", limit)
    recorder.row(f"{case}: loss", loss, "")


def _exact(recorder: Recorder) -> float | None:
    """The limit of a difference: None on a GPU, where sums have no fixed order."""
    return None if recorder.on_gpu else 0.0


# --- accumulation: auto, and a step that does not fit ---


def _memory(recorder: Recorder, name: str) -> None:
    """Accumulation and the out-of-memory line, with limited memory to save time."""
    size, device = recorder.size, recorder.device
    space, gigabytes = load_space(size.memory_space), size.memory_bytes / GIGA
    images = random_images(space, size.auto_batch)

    def training(accumulation: int | str, found: Path) -> Training:
        """The published supernet's recipe, with all images in one step."""
        settings = {"batch_size": size.auto_batch, "accumulation": accumulation, "augmentation": IN_BATCHES}
        overrides = [f"space={space.name}", *(f"train_supernet.{key}={value}" for key, value in settings.items())]
        section = load_config("imagenet-tiny", overrides).section(TrainSupernet)
        return Training(
            step="train_supernet", section=section, space=space, model=Supernet(space), subnet=space.largest,
            sampler=section.sampler(space, 0), images=images, card=card_of(space), seed=0, device=recorder.device,
            accumulation_file=found,
        )  # fmt: skip

    with tempfile.TemporaryDirectory() as folder, limited(device, size.memory_bytes):
        found = make_trainer(training("auto", Path(folder) / "auto.json"))
        recorder.row("accumulation: found", found.micro_batches, "")
        recorder.fact("accumulation", f"of {size.auto_batch} images a step of {space.name}, in {gigabytes:g} GB")
        if recorder.on_gpu:  # on a CPU there is no search
            torch.cuda.reset_peak_memory_stats(device)
            found.take_step()
            recorder.row("accumulation: memory of its step", torch.cuda.max_memory_allocated(device) / GIGA, "GB")
        del found
        one = training(1, Path(folder) / "one.json")
        trainer = make_trainer(one)
        try:
            trainer.take_step()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        else:
            raise RuntimeError(f"{size.auto_batch} images fit into {gigabytes:g} GB: nothing to see")
        recorder.fact("out of memory", str(out_of_memory(one, trainer)))


@contextlib.contextmanager
def limited(device: torch.device, memory_bytes: int) -> Iterator[None]:
    """Limit the memory of the GPU, or the memory that this process may take beyond what it has.

    On the CPU it disables oneDNN, which does not recover from a failed allocation.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        index = torch.cuda.current_device() if device.index is None else device.index  # it wants a number
        total = torch.cuda.get_device_properties(index).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory_bytes / total), index)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, index)
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


def _interrupted(recorder: Recorder, name: str) -> None:
    """Interrupt a process by Ctrl-C, repeat its command here, and compare with an undisturbed run."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, codes, printed = Path(temporary), list[int](), dict[str, str]()
        settings = {"epochs": recorder.size.steps * BATCH / TRAIN_IMAGES, "batch_size": BATCH}
        settings |= {"score_steps": 10 * STOP_AFTER, "checkpoint_steps": STOP_AFTER}
        arguments = [*_data(folder), "--config", "smoke", "--set", f"device={recorder.device}"]
        for key, value in settings.items():
            arguments += ["--set", f"train_supernet.{key}={value}"]
        with _environment(folder / "stopped"):
            code, printed[name] = _stopped([*arguments, *_outputs(folder / "stopped")], folder / "stopped")
        recorder.row("train_supernet: exit code after Ctrl-C", code, "", 130)
        for run in ("undisturbed", "stopped"):
            with _environment(folder / run), contextlib.redirect_stdout(io.StringIO()) as out:
                codes.append(train_supernet([*arguments, *_outputs(folder / run)]))
            printed["again"] = out.getvalue()
        for fact, text in printed.items():
            recorder.fact(fact, (text.strip().splitlines() or ["printed nothing"])[-1])
        recorder.row("train_supernet: exit code of the same command", max(codes), "", 0)
        weights = [load_file(folder / run / "out" / "weights.safetensors") for run in ("stopped", "undisturbed")]
        difference = largest_difference(*weights)
        recorder.row("train_supernet: resumed, largest difference", difference, "", _exact(recorder))


def _stopped(arguments: list[str], folder: Path) -> tuple[int, str]:
    """Exit code and output of a process that gets Ctrl-C after its first checkpoint."""
    command = [sys.executable, "-m", "components.train_supernet", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end = time.monotonic() + PATIENCE_SECONDS
    while not list(folder.glob("work/*/*/checkpoint.pt")) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    try:
        printed, _ = process.communicate(timeout=PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        printed, _ = process.communicate()
    return process.returncode, printed


def _data(folder: Path) -> list[str]:
    """Random images in Fashion-MNIST's layout, their splits, and the arguments that name them."""
    data, splits = folder / "data", {name: folder / f"{name}.parquet" for name in SPLITS}
    data.mkdir()
    for prefix, images in (("train", TRAIN_IMAGES + SEARCH_IMAGES), ("t10k", SEARCH_IMAGES)):
        pixels, labels, _ = random_images(load_space("fashion-mnist"), images)
        for name, values in (("images-idx3", pixels[:, 0]), ("labels-idx1", labels.astype(np.uint8))):
            header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
            (data / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(header + values.tobytes()))
    prepared = prepare(data, fashion_mnist.index(data), PrepareData(search_images=SEARCH_IMAGES), 0)
    write_prepared(prepared, folder / "card.json", splits)
    arguments = ["--data", str(data), "--card", str(folder / "card.json")]
    return [*arguments, "--train-split", str(splits["train"]), "--search-split", str(splits["search"])]


def _outputs(folder: Path) -> list[str]:
    return ["--out", str(folder / "out"), "--record", str(folder / "record.json")]


def _environment(folder: Path) -> "contextlib.AbstractContextManager[object]":
    environment = {"AUTOFORMER_WORK": str(folder / "work"), "AUTOFORMER_TRACKING": "off", "AUTOFORMER_PROCESSES": "1"}
    environment["AUTOFORMER_RUNNER_PID"] = str(os.getpid())  # a remaining process ends with this one
    return mock.patch.dict(os.environ, environment)
