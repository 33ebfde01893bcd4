"""(b) Forward pass and training step against timm's static twin and the GEMM limit; (c) a new subnet in each step;
(d) torch.compile."""

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import product
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo import config as dynamo_config
from torch._dynamo.utils import counters

from autoformer.attention import position_features
from autoformer.space import SubnetSpec
from autoformer.supernet import Supernet
from benchmarks.engine import KINDS, Kind, Models, Run, Setting, gemms, models_of, peak_bytes, random_batch, runs
from benchmarks.engine import training_step as step_of
from benchmarks.gpu.bench import BF16, DTYPES, Bench, Case, Timer, attention_kernel, wait_for
from benchmarks.rows import in_turns, ratio

LEAST_OF_TIMM = 0.85  # goals on an H100: T and S in bf16
LEAST_IN_SUPERNET = 0.9
WARMUP = 3  # rounds: kernels are loaded, libraries set up, allocations made; then how often a run is called
SUBNETS = 3  # of a measurement of changing subnets, each taken twice
GIGA = 1e9


def speed(bench: Bench) -> None:
    """Of T, S and B; the cases that have a goal come first."""
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    bench.fact("fp32", f"torch's defaults: matrix products '{precision}', TF32 in convolutions {tf32}")
    models = {letter: models_of(*case, bench.device) for letter, case in bench.size.cases().items()}
    for precision, batch, letter, kind in product(DTYPES, bench.size.batches, models, KINDS):
        name = f"{letter} {kind} {precision} {batch}"
        if bench.cut(f"{name} and what follows"):
            return
        with bench.attempt(name):
            _speed_of(bench, name, models[letter], batch, kind, precision)
        for model in models[letter][2:]:
            model.zero_grad(set_to_none=True)  # of a step that did not fit


def _speed_of(bench: Bench, name: str, models: Models, batch: int, kind: Kind, precision: str) -> None:
    setting = Setting(bench.device, DTYPES[precision])
    compared = runs(models, batch, kind, setting)
    seconds = in_turns(
        compared, bench.size.rounds, Timer(bench.device, bench.size.least_seconds), WARMUP, bench.is_over
    )
    ours, twin, products = seconds["extracted"], seconds["timm"], seconds["GEMM"]
    if not ours:
        bench.cut(f"{name}, after its warm-up")
        return
    has_goal = bench.on_gpu and precision == "bf16" and name[0] in "TS"
    bench.row(f"{name}: images/s", batch * ratio([1.0] * len(ours), ours), "")
    bench.row(f"{name}: of timm", ratio(twin, ours), "x", LEAST_OF_TIMM if has_goal else None, least=True)
    bench.row(
        f"{name}: supernet of extracted", ratio(ours, seconds["supernet"]), "x",
        LEAST_IN_SUPERNET if bench.on_gpu else None, least=True,
    )  # fmt: skip
    bench.row(f"{name}: of GEMMs", 100 * ratio(products, ours), "%")
    bench.row(f"{name}: timm of GEMMs", 100 * ratio(products, twin), "%")
    if kind == "step":
        bench.row(f"{name}: memory", peak_bytes(compared["extracted"], bench.device) / GIGA, "GB")
    if batch == bench.size.batches[0]:
        for form in ("extracted", "timm"):
            bench.fact(f"{name} {form}: attention", attention_kernel(compared[form], bench.device))


# --- (c) ---


def changing(bench: Bench) -> None:
    """Steps of the supernet with another subnet each time: seen for the first time, again, and without changing."""
    for precision, batch, (letter, case) in product(DTYPES, bench.size.batches, bench.size.cases().items()):
        name = f"{letter} {precision} {batch}"
        if bench.cut(f"{name} and what follows"):
            return
        with bench.attempt(name):
            _changing(bench, name, Supernet(case.space).to(bench.device), batch, DTYPES[precision])


def _changing(bench: Bench, name: str, supernet: Supernet, batch: int, dtype: torch.dtype) -> None:
    setting, rng, space = Setting(bench.device, dtype), Random(0), supernet.space
    images, labels = random_batch(space, batch, bench.device)
    now, new = [space.largest], list[SubnetSpec]()
    step = step_of(supernet, lambda x: supernet(x, now[0]), images, labels, setting)

    def steps(specs: Iterable[SubnetSpec]) -> None:
        for spec in specs:
            now[0] = spec
            step()

    drawn = [space.sample(rng) for _ in range(SUBNETS)]
    limits = [gemms(space, spec, batch, "step", setting) for spec in drawn]
    compared: dict[str, Run] = {
        "changing": lambda: steps(drawn * 2),
        "staying": lambda: steps(spec for spec in drawn for _ in range(2)),
        "GEMM": lambda: [limit() for limit in limits * 2],
    }
    steps(now)  # the largest: what follows finds its memory there
    rounds, timer = bench.size.rounds // 2, Timer(bench.device, 0.0)
    seconds = in_turns(compared, rounds, timer, 1, bench.is_over)
    first, again = list[float](), list[float]()
    while len(first) < rounds and not bench.is_over():
        new[:] = [space.sample(rng) for _ in range(SUBNETS)]
        for taken in (first, again):
            taken.append(timer(partial(steps, new)))
    if not seconds["changing"] or not first:
        bench.cut(f"{name}, after its warm-up")
        return
    ours = seconds["changing"]
    bench.row(f"{name}: images/s", 2 * SUBNETS * batch * ratio([1.0] * len(ours), ours), "")
    bench.row(f"{name}: of GEMMs", 100 * ratio(seconds["GEMM"], ours), "%")
    bench.row(f"{name}: changing / staying", ratio(ours, seconds["staying"]), "x")
    bench.row(f"{name}: first time / again", ratio(first, again), "x")
    bench.row(f"{name}: memory", peak_bytes(lambda: steps([space.largest]), bench.device) / GIGA, "GB")
    if bench.on_gpu:
        bench.row(f"{name}: reserved", torch.cuda.memory_reserved(bench.device) / GIGA, "GB")


# --- (d) ---


def compiling(bench: Bench) -> None:
    """Of the extracted model, as `retrain_subnet.compile` does it, and of a block of the supernet."""
    (letter, case), backend = next(iter(bench.size.cases().items())), bench.size.compile_backend
    bench.fact("backend", backend)
    for name, work in ((f"{letter} step", _compile_model), (f"{letter} supernet's block", _compile_block)):
        if bench.cut(name):
            return
        with bench.attempt(name):
            torch._dynamo.reset()
            counters.clear()
            work(bench, name, case, backend)


def _compile_model(bench: Bench, name: str, case: Case, backend: str) -> None:
    images, labels = random_batch(case.space, bench.size.batches[0], bench.device)
    setting, model = Setting(bench.device, BF16), models_of(*case, bench.device).extracted
    eager = copy.deepcopy(model)
    model.compile(backend=backend)
    both = {
        "eager": step_of(eager, eager, images, labels, setting),
        "compiled": step_of(model, model, images, labels, setting),
    }
    start = time.monotonic()
    both["compiled"]()
    wait_for(bench.device)
    _compiled(bench, name, both, time.monotonic() - start)
    bench.row(f"{name}: memory", peak_bytes(both["compiled"], bench.device) / GIGA, "GB")


def _compile_block(bench: Bench, name: str, case: Case, backend: str) -> None:
    """Forward and backward passes in many shapes, which are dynamic: how many graphs, and whether there is an end."""
    space, batch = case.space, bench.size.batches[-1]
    shapes = list(product(space.choices.embed_dim, space.choices.num_heads, space.choices.mlp_ratio))
    Random(0).shuffle(shapes)
    shapes, graphs = shapes[: bench.size.compile_shapes], list[int]()
    block = Supernet(space).blocks[0].to(bench.device).train()
    features = position_features(space.grid, space.head_dim).to(bench.device)
    inputs = {width: torch.randn(batch, space.num_patches + 1, width, device=bench.device) for width, _, _ in shapes}

    def passes(call: Callable[..., Tensor], shapes: Sequence[tuple[int, int, float]]) -> None:
        for width, heads, mlp_ratio in shapes:
            with Setting(bench.device, BF16).autocast():
                out = call(inputs[width], heads, int(width * mlp_ratio), features)
            F.mse_loss(out.float(), inputs[width]).backward()
        block.zero_grad(set_to_none=True)

    compiled: Callable[..., Tensor] = torch.compile(block, dynamic=True, backend=backend)
    start = time.monotonic()
    for shape in shapes:
        passes(compiled, [shape])
        graphs.append(counters["stats"]["unique_graphs"])
    wait_for(bench.device)
    taken, limit = time.monotonic() - start, dynamo_config.recompile_limit
    end = "it comes to an end" if graphs[-1] < limit else f"at {limit} torch gives up and runs the block as it is"
    bench.fact(name, f"graphs after each of {len(shapes)} shapes: {graphs}; {end}")
    _compiled(
        bench, name, {"eager": lambda: passes(block, shapes), "compiled": lambda: passes(compiled, shapes)}, taken
    )


def _compiled(bench: Bench, name: str, both: dict[str, Run], seconds_to_compile: float) -> None:
    reasons = [f"{' '.join(reason.split())[:120]} ({times})" for reason, times in counters["graph_break"].items()]
    bench.row(f"{name}: compiling", seconds_to_compile, "s")
    bench.row(f"{name}: graphs", counters["stats"]["unique_graphs"], "")
    bench.fact(f"{name}: graph breaks", "; ".join(reasons) or "none")
    seconds = in_turns(both, bench.size.rounds, Timer(bench.device, bench.size.least_seconds), 1, bench.is_over)
    if not seconds["compiled"]:
        bench.cut(f"{name}, once compiled")
        return
    bench.row(f"{name}: eager / compiled", ratio(seconds["eager"], seconds["compiled"]), "x")
