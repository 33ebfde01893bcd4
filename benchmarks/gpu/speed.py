"""Forward pass and training step against timm's static twin and the GEMM limit; a new subnet in each step;
torch.compile."""

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

from autoformer.attention import PositionBuffers
from autoformer.errors import quantity
from autoformer.space import SubnetSpec
from autoformer.supernet import Supernet
from benchmarks.engine import KINDS, Case, Kind, Models, Run, Setting, gemms, models_of, peak_bytes, random_batch, runs
from benchmarks.engine import training_step as step_of
from benchmarks.gpu.recorder import DTYPES, GIGA, Recorder, Timer, attention_kernel, synchronize
from benchmarks.rows import ratio

MIN_OF_TIMM = 0.85  # goals on an H100: T and S in bf16
MIN_IN_SUPERNET = 0.9
WARMUP = 3  # rounds: kernels are loaded, libraries set up, memory is allocated, calls are counted


def speed(recorder: Recorder) -> None:
    """Forward passes and training steps of all cases; those with a goal come first."""
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    recorder.fact("fp32", f"torch's defaults: matrix products '{precision}', TF32 in convolutions {tf32}")
    models = {letter: models_of(case, recorder.device) for letter, case in recorder.size.cases().items()}
    cases = product(DTYPES, recorder.size.batches, models.items(), KINDS)
    recorder.each(
        {
            f"{letter} {kind} {precision} {batch}": partial(_speed_of, recorder, forms, batch, kind, precision)
            for precision, batch, (letter, forms), kind in cases
        }
    )


def _speed_of(recorder: Recorder, models: Models, batch: int, kind: Kind, precision: str, name: str) -> None:
    for model in models[1:]:
        model.zero_grad(set_to_none=True)  # of a step that did not fit
    compared = runs(models, batch, kind, Setting(recorder.device, DTYPES[precision]))
    seconds = recorder.time(compared, WARMUP)
    ours, twin = seconds["extracted"], seconds["timm"]
    if not ours:
        recorder.cut(f"{name}, after its warm-up")
        return
    min_of_timm = MIN_OF_TIMM if recorder.on_gpu and precision == "bf16" and name[0] in "TS" else None
    min_in_supernet = MIN_IN_SUPERNET if recorder.on_gpu else None
    recorder.row(f"{name}: images/s", ratio([batch] * len(ours), ours), "")
    recorder.row(f"{name}: of timm", ratio(twin, ours), "x", min_of_timm, at_least=True)
    in_supernet = ratio(ours, seconds["supernet"])
    recorder.row(f"{name}: supernet of extracted", in_supernet, "x", min_in_supernet, at_least=True)
    recorder.row(f"{name}: of GEMMs", 100 * ratio(seconds["GEMM"], ours), "%")
    recorder.row(f"{name}: timm of GEMMs", 100 * ratio(seconds["GEMM"], twin), "%")
    if kind == "step":
        recorder.row(f"{name}: memory", peak_bytes(compared["extracted"], recorder.device) / GIGA, "GB")
    if batch == recorder.size.batches[0]:
        for form in ("extracted", "timm"):
            recorder.fact(f"{name} {form}: attention", attention_kernel(compared[form], recorder.device))


def changing(recorder: Recorder) -> None:
    """Steps of the supernet with changing subnets: seen for the first time, seen again, and unchanged."""
    cases = product(DTYPES.items(), recorder.size.batches, recorder.size.cases().items())
    recorder.each(
        {
            f"{letter} {precision} {batch}": partial(_changing, recorder, case, batch, Setting(recorder.device, dtype))
            for (precision, dtype), batch, (letter, case) in cases
        }
    )


def _changing(recorder: Recorder, case: Case, batch: int, setting: Setting, name: str) -> None:
    rng, space, subnets = Random(0), case.space, recorder.size.subnets
    supernet = Supernet(space).to(recorder.device)
    images, labels = random_batch(space, batch, recorder.device)
    now = [space.largest]
    step = step_of(supernet, images, labels, setting, lambda x: supernet(x, now[0]))

    def steps(specs: Iterable[SubnetSpec]) -> None:
        for spec in specs:
            now[0] = spec
            step()

    drawn = [space.sample(rng) for _ in range(subnets)]
    limits = [gemms(space, spec, batch, "step", setting) for spec in drawn]
    compared: dict[str, Run] = {
        "changing": lambda: steps(drawn * 2),
        "staying": lambda: steps(spec for spec in drawn for _ in range(2)),
        "GEMM": lambda: [limit() for limit in limits * 2],
    }
    steps(now)  # the largest: later steps reuse its memory
    rounds, timer = recorder.size.rounds // 2, Timer(recorder.device, 0.0)
    seconds = recorder.time(compared, rounds=rounds)
    first, again = list[float](), list[float]()
    while len(first) < rounds and not recorder.is_over():
        new = [space.sample(rng) for _ in range(subnets)]
        for taken in (first, again):
            taken.append(timer(partial(steps, new)))
    ours = seconds["changing"]
    if not ours or not first:
        recorder.cut(f"{name}, after its warm-up")
        return
    recorder.row(f"{name}: images/s", ratio([2 * subnets * batch] * len(ours), ours), "")
    recorder.row(f"{name}: of GEMMs", 100 * ratio(seconds["GEMM"], ours), "%")
    recorder.row(f"{name}: changing / staying", ratio(ours, seconds["staying"]), "x")
    recorder.row(f"{name}: first time / again", ratio(first, again), "x")
    recorder.row(f"{name}: memory", peak_bytes(lambda: steps([space.largest]), recorder.device) / GIGA, "GB")
    if recorder.on_gpu:
        recorder.row(f"{name}: reserved", torch.cuda.memory_reserved(recorder.device) / GIGA, "GB")


def compiling(recorder: Recorder) -> None:
    """Compile the extracted model, like `retrain_subnet.compile`, and a block of the supernet."""
    (letter, case), backend = next(iter(recorder.size.cases().items())), recorder.size.compile_backend
    recorder.fact("backend", backend)
    model, block = (partial(work, recorder, case, backend) for work in (_compile_model, _compile_block))
    recorder.each({f"{letter} step": model, f"{letter} supernet's block": block})


def reset_compiler() -> None:
    torch._dynamo.reset()
    counters.clear()


def _compile_model(recorder: Recorder, case: Case, backend: str, name: str) -> None:
    reset_compiler()
    images, labels = random_batch(case.space, recorder.size.batches[0], recorder.device)
    setting, model = Setting(recorder.device, torch.bfloat16), models_of(case, recorder.device).extracted
    eager = step_of(copy.deepcopy(model), images, labels, setting)
    model.compile(backend=backend)
    compiled = step_of(model, images, labels, setting)
    seconds = Timer(recorder.device, 0.0)(compiled)
    _compiled(recorder, name, eager, compiled, seconds)
    recorder.row(f"{name}: memory", peak_bytes(compiled, recorder.device) / GIGA, "GB")


def _compile_block(recorder: Recorder, case: Case, backend: str, name: str) -> None:
    """Forward and backward passes in many dynamic shapes: the number of graphs, and whether it stops growing."""
    reset_compiler()
    space, batch = case.space, recorder.size.batches[-1]
    shapes = list(product(space.choices.embed_dim, space.choices.num_heads, space.choices.mlp_ratio))
    Random(0).shuffle(shapes)
    shapes, graphs = shapes[: recorder.size.compile_shapes], list[int]()
    block = Supernet(space).blocks[0].to(recorder.device).train()
    position = PositionBuffers(space.grid, space.head_dim, space.max_relative_position).to(recorder.device)()
    setting = Setting(recorder.device, torch.bfloat16)
    inputs = {width: torch.randn(batch, space.num_patches + 1, width, device=recorder.device) for width, _, _ in shapes}

    def passes(call: Callable[..., Tensor], shapes: Sequence[tuple[int, int, float]]) -> None:
        for width, heads, mlp_ratio in shapes:
            with setting.autocast():
                out = call(inputs[width], heads, int(width * mlp_ratio), position)
            F.mse_loss(out.float(), inputs[width]).backward()
        block.zero_grad(set_to_none=True)

    compiled: Callable[..., Tensor] = torch.compile(block, dynamic=True, backend=backend)
    start = time.monotonic()
    for shape in shapes:
        passes(compiled, [shape])
        graphs.append(counters["stats"]["unique_graphs"])
    synchronize(recorder.device)
    seconds, limit = time.monotonic() - start, dynamo_config.recompile_limit
    end = "it comes to an end" if graphs[-1] < limit else f"at {limit} torch gives up and runs the block as it is"
    recorder.fact(name, f"graphs after each of {quantity(len(shapes), 'shape')}: {graphs}; {end}")
    _compiled(recorder, name, partial(passes, block, shapes), partial(passes, compiled, shapes), seconds)


def _compiled(recorder: Recorder, name: str, eager: Run, compiled: Run, seconds_to_compile: float) -> None:
    reasons = [f"{' '.join(reason.split())[:120]} ({times})" for reason, times in counters["graph_break"].items()]
    recorder.row(f"{name}: compiling", seconds_to_compile, "s")
    recorder.row(f"{name}: graphs", counters["stats"]["unique_graphs"], "")
    recorder.fact(f"{name}: graph breaks", "; ".join(reasons) or "none")
    seconds = recorder.time({"eager": eager, "compiled": compiled})
    if seconds["compiled"]:
        recorder.row(f"{name}: eager / compiled", ratio(seconds["eager"], seconds["compiled"]), "x")
    else:
        recorder.cut(f"{name}, once compiled")
