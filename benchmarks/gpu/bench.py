"""What the parts of the check share: time left, timing on a device, which attention kernel ran."""

import contextlib
import gc
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from autoformer.devices import is_out_of_memory
from autoformer.named import load_space, load_subnet
from autoformer.space import SearchSpace, SubnetSpec
from benchmarks.engine import CPU, Run
from benchmarks.rows import Row

BF16, FP32 = torch.bfloat16, torch.float32
DTYPES = {"bf16": BF16, "fp32": FP32}
MOST_CALLS = 50  # of a run, in one measurement


class Case(NamedTuple):
    """A search space and the subnet that stands for it."""

    space: SearchSpace
    spec: SubnetSpec


@dataclass(frozen=True)
class Size:
    """How much is measured: `FULL` on a GPU, `TINY` to see on a CPU that all of it runs."""

    names: tuple[str, ...]  # of cases
    batches: tuple[int, ...]
    rounds: int
    least_seconds: float  # of one measurement, which calls a run as often as that takes
    parity_images: int
    compile_backend: str
    compile_shapes: int  # of the supernet's block
    search_images: int
    candidates: int
    jpeg_side: int
    epoch_batches: int
    steps: int  # of the training step that is stopped and resumed
    memory_space: str
    auto_batch: int  # images of a step of that space, for which accumulation is found
    memory_bytes: int  # in which it is

    def cases(self) -> dict[str, Case]:
        return {name: case_of(name) for name in self.names}


FULL = Size(
    names=("T", "S", "B"), batches=(256, 64), rounds=7, least_seconds=0.05, parity_images=2,
    compile_backend="inductor", compile_shapes=12, search_images=10_000, candidates=3, jpeg_side=500, epoch_batches=60,
    steps=200, memory_space="autoformer-tiny", auto_batch=1024, memory_bytes=8 * 10**9,
)  # fmt: skip
TINY = Size(
    names=("tiny",), batches=(4, 2), rounds=2, least_seconds=0.0, parity_images=2,
    compile_backend="eager", compile_shapes=3, search_images=24, candidates=2, jpeg_side=100, epoch_batches=3,
    steps=40, memory_space="fashion-mnist", auto_batch=2048, memory_bytes=300 * 10**6,
)  # fmt: skip


def case_of(name: str) -> Case:
    """T, S and B as published; "tiny": the middle of a small space."""
    files = {"T": "autoformer-tiny", "S": "autoformer-small", "B": "autoformer-base"}
    if name in files:
        named = load_subnet(files[name])
        return Case(load_space(named.space), named.subnet)
    space = load_space("photos-32")
    return Case(space, space.smallest)


@dataclass
class Bench:
    """What a part is called with, and what it tells."""

    device: torch.device
    size: Size
    ends: float  # on the monotonic clock
    tell: Callable[[str, object], None]  # kind ("row", "fact", "cut", "error") and what
    failed: bool = False

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def is_over(self) -> bool:
        return time.monotonic() >= self.ends

    def cut(self, what: str) -> bool:
        """Whether there is no time left for `what`, which is then told."""
        if self.is_over():
            self.tell("cut", what)
        return self.is_over()

    def row(self, name: str, value: float, unit: str, limit: float | None = None, least: bool = False) -> None:
        """A figure. `name`: "case: quantity". `least`: the limit is one from below."""
        self.tell("row", Row(name, value, unit, limit, "at least" if least else "at most").as_dict())

    def fact(self, name: str, text: str) -> None:
        self.tell("fact", [name, text])

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Whatever goes wrong inside is told, and what follows still gets its turn."""
        try:
            yield
        except Exception as error:
            if is_out_of_memory(error):
                self.fact(what, "does not fit into the memory of the device")
            else:
                self.failed = True
                self.tell("error", f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:500]}")
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()


class Timer:
    """Seconds of one call of a run, the mean of as many calls in a row as make up a measurement.

    On a GPU by CUDA events, so that the host may run ahead within a measurement, as it does in training. How many calls
    that are is found in the rounds before, so there must be one to warm up.
    """

    def __init__(self, device: torch.device, least_seconds: float) -> None:
        self._device, self._least = device, least_seconds
        self._calls: dict[int, int] = {}

    def __call__(self, run: Run) -> float:
        calls = self._calls.get(id(run), 1)
        seconds = self._measure(run, calls) / calls
        self._calls[id(run)] = min(MOST_CALLS, max(1, math.ceil(self._least / seconds)))
        return seconds

    def _measure(self, run: Run, calls: int) -> float:
        if self._device.type != "cuda":
            start = time.perf_counter()
            for _ in range(calls):
                run()
            return time.perf_counter() - start
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self._device)
        before.record()
        for _ in range(calls):
            run()
        after.record()
        after.synchronize()
        return before.elapsed_time(after) / 1000


def wait_for(device: torch.device) -> None:
    """Let the device finish what it was given, before a clock of the host is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def attention_kernel(run: Run, device: torch.device = CPU.device) -> str:
    """Which way `scaled_dot_product_attention` went in a run, with the operators and GPU kernels that show it."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        run()
        wait_for(device)
    events = profiler.key_averages()
    operators = {event.key for event in events if event.key.startswith("aten::_scaled_dot_product")}
    on_gpu = {event.key for event in events if str(event.device_type).endswith("CUDA")}
    kernels = {name[:90] for name in on_gpu if re.search(r"fmha|flash|sdpa|softmax|attention", name, re.IGNORECASE)}
    return f"{way(operators)} ({', '.join(sorted(operators | kernels))})"


def way(operators: set[str]) -> str:
    """flash, cudnn, efficient or math, by the operators that torch has chosen; none where there was no attention."""
    for name in ("flash", "cudnn", "efficient", "math"):
        if any(name in operator for operator in operators):
            return name
    return "none"
