"""Shared by the parts of the check: sizes, the recorder of figures, timing, the attention kernel."""

import contextlib
import gc
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch.profiler import ProfilerActivity, profile

from autoformer.devices import is_out_of_memory
from autoformer.named import load_space
from benchmarks.engine import CPU, Case, Run, published
from benchmarks.rows import Row, interleaved

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
MAX_CALLS = 50  # of a run per measurement
GIGA = 1e9


@dataclass(frozen=True)
class Size:
    """The amount of work: `FULL` on a GPU, `TINY` as a test on a CPU."""

    names: tuple[str, ...]  # of cases
    batches: tuple[int, ...]
    rounds: int
    min_seconds: float  # of one measurement, which repeats a run until then
    subnets: int  # for the measurement of changing subnets, each used twice
    compile_backend: str
    compile_shapes: int  # of the supernet's block
    search_images: int
    jpeg_side: int
    epoch_batches: int
    steps: int  # of the training step that is stopped and resumed
    memory_space: str
    auto_batch: int  # images of a step of that space, to find the accumulation for
    memory_bytes: int  # memory limit of this step

    def cases(self) -> dict[str, Case]:
        return {name: case_of(name) for name in self.names}


FULL = Size(
    names=("T", "S", "B"), batches=(256, 64), rounds=7, min_seconds=0.05, subnets=3,
    compile_backend="inductor", compile_shapes=12, search_images=10_000, jpeg_side=500, epoch_batches=60,
    steps=200, memory_space="autoformer-tiny", auto_batch=1024, memory_bytes=8 * 10**9,
)  # fmt: skip
TINY = Size(
    names=("tiny",), batches=(4, 2), rounds=2, min_seconds=0.0, subnets=1,
    compile_backend="eager", compile_shapes=3, search_images=24, jpeg_side=100, epoch_batches=3,
    steps=40, memory_space="fashion-mnist", auto_batch=1024, memory_bytes=150 * 10**6,
)  # fmt: skip


def case_of(name: str) -> Case:
    """T, S and B as published; "tiny": the smallest subnet of a small space."""
    space = load_space("photos-32")
    return Case(space, space.smallest) if name == "tiny" else published(name)


@dataclass
class Recorder:
    """The arguments of a part, and the receiver of its results.

    Attributes:
        end: end of the part's time, on the monotonic clock.
        send: called with a kind ("row", "fact", "cut" or "error") and its content.
    """

    device: torch.device
    size: Size
    end: float
    send: Callable[[str, object], None]
    failed: bool = field(default=False, init=False)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def is_over(self) -> bool:
        return time.monotonic() >= self.end

    def cut(self, left_out: str) -> bool:
        """Whether the time is over; if so, record what is left out."""
        if self.is_over():
            self.send("cut", left_out)
        return self.is_over()

    def row(self, name: str, value: float, unit: str, limit: float | None = None, at_least: bool = False) -> None:
        """A figure. `name` is "case: quantity"."""
        self.send("row", Row(name, value, unit, limit, "at least" if at_least else "at most").as_dict())

    def fact(self, name: str, text: str) -> None:
        self.send("fact", (name, text))

    @contextlib.contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Record any error inside, and continue."""
        try:
            yield
        except Exception as error:
            if is_out_of_memory(error):
                self.fact(name, "does not fit into the memory of the device")
            else:
                self.failed = True
                self.send("error", f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:500]}")
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def each(self, cases: Mapping[str, Callable[[str], None]]) -> None:
        """Measure each case by its name, until the time is over."""
        for name, measure in cases.items():
            if self.cut(f"{name} and what follows"):
                return
            with self.attempt(name):
                measure(name)

    def time(self, runs: Mapping[str, Run], warmup: int = 1, rounds: int | None = None) -> dict[str, list[float]]:
        """Seconds of one call of each run, by round; empty if the time was over before the first round."""
        timer = Timer(self.device, self.size.min_seconds)
        return interleaved(runs, rounds or self.size.rounds, timer, warmup, self.is_over)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished, before a clock of the host is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Timer:
    """Seconds of one call of a run: the mean over consecutive calls that fill `min_seconds`.

    The GPU is synchronised only before and after them, so the host may run ahead in between, as in training. The
    previous round sets the number of calls, so at least one round must be warm-up.
    """

    def __init__(self, device: torch.device, min_seconds: float) -> None:
        self._device, self._min_seconds = device, min_seconds
        self._calls: dict[Run, int] = {}

    def __call__(self, run: Run) -> float:
        calls = self._calls.get(run, 1)
        synchronize(self._device)
        start = time.perf_counter()
        for _ in range(calls):
            run()
        synchronize(self._device)
        seconds = (time.perf_counter() - start) / calls
        self._calls[run] = min(MAX_CALLS, max(1, math.ceil(self._min_seconds / seconds)))
        return seconds


def attention_kernel(run: Run, device: torch.device = CPU.device) -> str:
    """The implementation of `scaled_dot_product_attention` in a run, with its operators and GPU kernels."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        run()
        synchronize(device)
    events = profiler.key_averages()
    operators = {event.key for event in events if event.key.startswith("aten::_scaled_dot_product")}
    on_gpu = {event.key for event in events if str(event.device_type).endswith("CUDA")}
    kernels = {name[:90] for name in on_gpu if re.search(r"fmha|flash|sdpa|softmax|attention", name, re.IGNORECASE)}
    return f"{implementation(operators)} ({', '.join(sorted(operators | kernels))})"


def implementation(operators: set[str]) -> str:
    """The implementation in torch's operators: flash, cudnn, efficient or math; "none" without attention."""
    names = ("flash", "cudnn", "efficient", "math")
    return next((name for name in names if any(name in operator for operator in operators)), "none")
